// Python's view of the planner and its cost model: `plan` in fastlstm._C, with or without CUDA, and in the host
// simulation. Types are local to their module, since tests load both.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "decode_args.h"
#include "plan.h"

namespace py = pybind11;
using namespace fastlstm::cuda;

namespace {

void bind_gpu(py::module_& m) {
  py::class_<Cost> cost(m, "Cost", py::module_local());
#define FASTLSTM_FIELD(name, value, part, meaning) cost.def_readwrite(#name, &Cost::name);
  FASTLSTM_COST(FASTLSTM_FIELD)
#undef FASTLSTM_FIELD
  py::class_<Gpu>(m, "Gpu", py::module_local())
      .def(py::init([] { return Gpu{}; }))
      .def_readwrite("name", &Gpu::name)
      .def_readwrite("capability", &Gpu::capability)
      .def_readwrite("sms", &Gpu::sms)
      .def_readwrite("ghz", &Gpu::ghz)
      .def_readwrite("hbm_gbs", &Gpu::hbm_gbs)
      .def_readwrite("l2_gbs", &Gpu::l2_gbs)
      .def_readwrite("shared_bytes", &Gpu::shared_bytes)
      .def_readwrite("fma", &Gpu::fma)
      .def_readwrite("half", &Gpu::half)
      .def_readwrite("tf32", &Gpu::tf32)
      .def_readwrite("cost", &Gpu::cost);
}

void bind_work(py::module_& m) {
  py::class_<StepWork> work(m, "StepWork", py::module_local());
  work.def(py::init([] { return StepWork{}; }));
#define FASTLSTM_FIELD(name, meaning) work.def_readwrite(#name, &StepWork::name);
  FASTLSTM_WORK(FASTLSTM_FIELD)
#undef FASTLSTM_FIELD
  work.def("as_dict", [](const StepWork& w) {
    py::dict counts;
#define FASTLSTM_ITEM(name, meaning) counts[#name] = w.name;
    FASTLSTM_WORK(FASTLSTM_ITEM)
#undef FASTLSTM_ITEM
    return counts;
  });
}

// Microseconds of a step, and of its parts; as attributes of an object of its own.
struct Parts {
  double us;
  std::string bound;
  py::dict parts;
};

Parts parts_of(const Gpu& gpu, int type, const StepWork& work) {
  const Prediction p = predict(gpu, Type(type), work);
  Parts all{p.us, part_name(p.bound()), {}};
  for (size_t i = 0; i < p.parts.size(); ++i) all.parts[part_name(int(i))] = p.parts[i];
  return all;
}

void bind_model(py::module_& m) {
  py::class_<Parts>(m, "Prediction", py::module_local())
      .def_readonly("us", &Parts::us)
      .def_readonly("bound", &Parts::bound)
      .def_readonly("parts", &Parts::parts);
  m.def("predict", &parts_of, "What a step costs: a type (csrc/cuda/args.h) and a StepWork on a Gpu.");
  m.def(
      "floor_us", [](const Gpu& gpu, int type, int H, int B) { return floor_us(gpu, Type(type), H, B); },
      "Microseconds that no forward step can beat: a Gpu, a type, H and B.");
  m.def("devices", &devices, "GPUs whose rates are known.");
  m.def("known", &known, "The known GPU of that name, or one like it with an SM count and shared memory of its own.");
  m.def(
      "constants",
      [] {
        std::vector<std::tuple<std::string, double, std::string, std::string>> all;
#define FASTLSTM_ITEM(name, value, part, meaning) all.emplace_back(#name, value, part, meaning);
        FASTLSTM_COST(FASTLSTM_ITEM)
#undef FASTLSTM_ITEM
        return all;
      },
      "(name, value, part of a prediction that is linear in it, meaning) of every constant of the cost model.");
}

void bind_choice(py::module_& m) {
  py::class_<Tiling>(m, "Tiling", py::module_local())
      .def(py::init([] { return Tiling{}; }))
      .def_readwrite("unit_blocks", &Tiling::unit_blocks)
      .def_readwrite("row_blocks", &Tiling::row_blocks)
      .def_readwrite("groups", &Tiling::groups)
      .def_readwrite("k_splits", &Tiling::k_splits)
      .def_readwrite("row_tiles", &Tiling::row_tiles)
      .def_readwrite("phase", &Tiling::phase)
      .def_readwrite("gate_splits", &Tiling::gate_splits);
  py::class_<Choice>(m, "Choice", py::module_local())
      .def_property_readonly("kernel", [](const Choice& c) { return name_of(c.kernel); })
      .def_readonly("t", &Choice::t)
      .def_readonly("blocks", &Choice::blocks)
      .def_readonly("threads", &Choice::threads)
      .def_readonly("shared_bytes", &Choice::shared_bytes)
      .def_readonly("register_weights", &Choice::register_weights)
      .def_readonly("shared_weights", &Choice::shared_weights)
      .def_readonly("work", &Choice::work)
      .def_readonly("us", &Choice::us)
      .def_readonly("bound", &Choice::bound)
      .def_readonly("why", &Choice::why);
}

int kernel_number(const std::string& name) {
  for (const Kernel kernel : {Kernel::per_step, Kernel::single_block, Kernel::cooperative, Kernel::lean})
    if (name == name_of(kernel)) return int(kernel);
  throw py::value_error("kernel is '" + name + "', expected per_step, single_block, cooperative or lean");
}

void bind_decode(py::module_& m) {
  py::class_<DecodePlan>(m, "DecodePlan", py::module_local())
      .def_readonly("units", &DecodePlan::units)
      .def_readonly("blocks", &DecodePlan::blocks)
      .def_readonly("tile", &DecodePlan::tile)
      .def_readonly("keeps_h", &DecodePlan::keeps_h)
      .def_readonly("everywhere", &DecodePlan::everywhere)
      .def_readonly("bytes", &DecodePlan::bytes)
      .def("place", [](const DecodePlan& self, int l) { return self.place[l]; });
  m.def("plan_decode", &plan_decode, "How the sampling loop is spread over a GPU (csrc/cuda/decode_args.h).",
        py::arg("sms"), py::arg("shared_bytes"), py::arg("type_bytes"), py::arg("L"), py::arg("H"), py::arg("V"),
        py::arg("B"), py::arg("longest_stop"));
  m.def("decode_columns", &decode_columns, "Columns of a vector with its padding.", py::arg("H"),
        py::arg("type_bytes"));
  m.attr("most_decode_layers") = kMostDecodeLayers;
  m.attr("most_decode_streams") = kMostDecodeStreams;
}

}  // namespace

void bind_plan(py::module_& parent) {
  py::module_ m = parent.def_submodule("plan", "Chooses CUDA kernels and tilings; see fastlstm.backends.cuda.planner.");
  bind_gpu(m);
  bind_work(m);
  bind_model(m);
  bind_choice(m);
  bind_decode(m);
  m.def(
      "choose",
      [](const Gpu& gpu, int type, int H, int B, bool backward, bool projected, const std::string& only) {
        return plan(gpu, {Type(type), H, B, backward, projected}, only.empty() ? -1 : kernel_number(only));
      },
      "The cheapest kernel and tiling; blocks is -1 where `only` names a kernel that cannot run.");
  m.def(
      "choose_layers",
      [](const Gpu& gpu, int type, int H, int B, bool backward, int layers, bool chained) {
        return plan_layers(gpu, {Type(type), H, B, backward, false, layers, chained});
      },
      "The cheapest tiling of `lean` for layers (chained) or directions in one launch; blocks is -1 where none fits.");
  m.def(
      "tilings",
      [](const Gpu& gpu, int type, int H, int B, bool backward) {
        return tilings(gpu, {Type(type), H, B, backward, false});
      },
      "Every tiling of single_block, cooperative or lean that fits, as a Choice, the cheapest first.");
  m.def(
      "fit",
      [](const Gpu& gpu, int type, int H, int B, bool backward, const std::string& kernel, const Tiling& t) {
        const Problem problem{Type(type), H, B, backward, false};
        const Kernel wanted = Kernel(kernel_number(kernel));
        const std::string wrong = unfit(gpu, problem, wanted, t);
        if (!wrong.empty()) throw py::value_error(wrong);
        return describe(gpu, problem, wanted, t);
      },
      "What a tiling means; ValueError with the reason where it does not fit.");
}
