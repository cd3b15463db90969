// Python's view of the planner: `plan` in fastlstm._C, with or without CUDA, and in the host simulation.
// Types are local to their module, since tests load both.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "plan.h"

namespace py = pybind11;
using namespace fastlstm::cuda;

namespace {

void bind_gpu(py::module_& m) {
  py::class_<Gpu>(m, "Gpu", py::module_local())
      .def(py::init([] { return Gpu{}; }))
      .def_readwrite("capability", &Gpu::capability)
      .def_readwrite("sms", &Gpu::sms)
      .def_readwrite("shared_bytes", &Gpu::shared_bytes)
      .def_readwrite("ghz", &Gpu::ghz)
      .def_readwrite("hbm_gbs", &Gpu::hbm_gbs)
      .def_readwrite("l2_gbs", &Gpu::l2_gbs)
      .def_readwrite("fma", &Gpu::fma)
      .def_readwrite("half", &Gpu::half)
      .def_readwrite("tf32", &Gpu::tf32)
      .def_readwrite("barrier_clocks", &Gpu::barrier_clocks)
      .def_readwrite("l2_clocks", &Gpu::l2_clocks)
      .def_readwrite("cell_clocks", &Gpu::cell_clocks)
      .def_readwrite("efficiency", &Gpu::efficiency)
      .def_readwrite("launch_us", &Gpu::launch_us)
      .def_readwrite("grid_wait_us", &Gpu::grid_wait_us);
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
  py::class_<Work>(m, "Work", py::module_local())
      .def_readonly("blocks", &Work::blocks)
      .def_readonly("l2_bytes", &Work::l2_bytes)
      .def_readonly("shared_bytes", &Work::shared_bytes)
      .def_readonly("products", &Work::products)
      .def_readonly("cells", &Work::cells)
      .def_readonly("barriers", &Work::barriers)
      .def_readonly("l2_rounds", &Work::l2_rounds)
      .def_readonly("hbm_bytes", &Work::hbm_bytes)
      .def_readonly("launches", &Work::launches)
      .def_readonly("grid_waits", &Work::grid_waits);
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
      .def_readonly("why", &Choice::why);
}

int kernel_number(const std::string& name) {
  for (const Kernel kernel : {Kernel::step, Kernel::tile, Kernel::persistent})
    if (name == name_of(kernel)) return int(kernel);
  throw py::value_error("kernel is '" + name + "', expected step, tile or persistent");
}

}  // namespace

void bind_plan(py::module_& parent) {
  py::module_ m = parent.def_submodule("plan", "Chooses CUDA kernels and tilings; see fastlstm.backends.cuda_plan.");
  bind_gpu(m);
  bind_choice(m);
  m.def(
      "choose",
      [](const Gpu& gpu, int type, int H, int B, bool backward, bool projected, const std::string& only) {
        return plan(gpu, {Type(type), H, B, backward, projected}, only.empty() ? -1 : kernel_number(only));
      },
      "The cheapest kernel and tiling; blocks is -1 where `only` names a kernel that cannot run.");
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
