// Python's view of the CUDA kernels: argument blocks whose pointers are integers, and one function per entry point.
// Included in fastlstm._C when it is built with CUDA, and in the host simulation. Python owns all memory, has checked
// every size (fastlstm/backends/cuda/launch.py), and sets the current device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "api.h"
#include "decode_args.h"
#include "layout.h"

namespace py = pybind11;
using namespace fastlstm::cuda;

namespace {

// A pointer member as an integer property.
template <class Class, class Pointer>
void pointer(py::class_<Class>& c, const char* name, Pointer Class::* member) {
  c.def_property(
      name, [member](const Class& self) { return reinterpret_cast<uintptr_t>(self.*member); },
      [member](Class& self, uintptr_t address) { self.*member = reinterpret_cast<Pointer>(address); });
}

template <class Class>
void sequence(py::class_<Class>& c) {
  const auto number = [&](const char* name, int Sequence::* member) {
    c.def_property(
        name, [member](const Class& self) { return self.s.*member; },
        [member](Class& self, int value) { self.s.*member = value; });
  };
  number("T", &Sequence::T), number("B", &Sequence::B), number("H", &Sequence::H);
  number("begin", &Sequence::begin), number("end", &Sequence::end), number("reverse", &Sequence::reverse);
  c.def_property("N", [](const Class& self) { return self.s.N; }, [](Class& self, int64_t n) { self.s.N = n; });
  c.def_property(
      "offsets", [](const Class& self) { return reinterpret_cast<uintptr_t>(self.s.offsets); },
      [](Class& self, uintptr_t address) { self.s.offsets = reinterpret_cast<const int64_t*>(address); });
  c.def_property(
      "reset", [](const Class& self) { return reinterpret_cast<uintptr_t>(self.s.reset); },
      [](Class& self, uintptr_t address) { self.s.reset = reinterpret_cast<const uint8_t*>(address); });
  c.def_readwrite("t", &Class::t);
}

void bind_args(py::module_& m) {
  py::class_<ForwardArgs> f(m, "ForwardArgs", py::module_local());
  f.def(py::init([] { return ForwardArgs{}; })).def(py::init<const ForwardArgs&>());
  sequence(f);
  pointer(f, "h", &ForwardArgs::h), pointer(f, "c", &ForwardArgs::c), pointer(f, "gates", &ForwardArgs::gates);
  pointer(f, "h_n", &ForwardArgs::h_n), pointer(f, "c_n", &ForwardArgs::c_n),
      pointer(f, "x_gates", &ForwardArgs::x_gates);
  pointer(f, "table", &ForwardArgs::table), pointer(f, "ids", &ForwardArgs::ids);
  pointer(f, "below", &ForwardArgs::below), pointer(f, "w_ih", &ForwardArgs::w_ih),
      pointer(f, "bias", &ForwardArgs::bias);
  pointer(f, "absent", &ForwardArgs::absent), pointer(f, "zeros", &ForwardArgs::zeros);
  pointer(f, "w_hh", &ForwardArgs::w_hh), pointer(f, "h0", &ForwardArgs::h0), pointer(f, "hw", &ForwardArgs::hw);
  pointer(f, "h_unprojected", &ForwardArgs::h_unprojected), pointer(f, "exchange", &ForwardArgs::exchange);
  pointer(f, "status", &ForwardArgs::status);
  f.def_readwrite("V", &ForwardArgs::V).def_readwrite("exchange_width", &ForwardArgs::exchange_width);

  py::class_<BackwardArgs> b(m, "BackwardArgs", py::module_local());
  b.def(py::init([] { return BackwardArgs{}; })).def(py::init<const BackwardArgs&>());
  sequence(b);
  pointer(b, "d_gates", &BackwardArgs::d_gates), pointer(b, "dh_state", &BackwardArgs::dh_state);
  pointer(b, "dc_state", &BackwardArgs::dc_state), pointer(b, "dh", &BackwardArgs::dh);
  pointer(b, "dc", &BackwardArgs::dc), pointer(b, "gates", &BackwardArgs::gates), pointer(b, "c", &BackwardArgs::c);
  pointer(b, "c0", &BackwardArgs::c0), pointer(b, "w_hh_t", &BackwardArgs::w_hh_t),
      pointer(b, "dh_unprojected", &BackwardArgs::dh_unprojected);
  pointer(b, "dh_proj", &BackwardArgs::dh_proj), pointer(b, "exchange", &BackwardArgs::exchange);
  pointer(b, "above", &BackwardArgs::above), pointer(b, "w_above_t", &BackwardArgs::w_above_t);
  pointer(b, "bias", &BackwardArgs::bias), pointer(b, "partial", &BackwardArgs::partial),
      pointer(b, "status", &BackwardArgs::status);
  b.def_readwrite("P", &BackwardArgs::P).def_readwrite("exchange_width", &BackwardArgs::exchange_width);
}

void bind_decode_args(py::module_& m) {
  py::class_<DecodeArgs> d(m, "DecodeArgs", py::module_local());
  d.def(py::init([] { return DecodeArgs{}; }));
  d.def_readwrite("L", &DecodeArgs::L).def_readwrite("H", &DecodeArgs::H).def_readwrite("V", &DecodeArgs::V);
  d.def_readwrite("B", &DecodeArgs::B)
      .def_readwrite("known", &DecodeArgs::known)
      .def_readwrite("fed", &DecodeArgs::fed);
  d.def_readwrite("T", &DecodeArgs::T).def_readwrite("first_stream", &DecodeArgs::first_stream);
  d.def_readwrite("plan", &DecodeArgs::plan).def_readwrite("temperature", &DecodeArgs::temperature);
  d.def_readwrite("top_p", &DecodeArgs::top_p).def_readwrite("top_k", &DecodeArgs::top_k);
  d.def_readwrite("stop_count", &DecodeArgs::stop_count).def_readwrite("drawn", &DecodeArgs::drawn);
  d.def_readwrite("states", &DecodeArgs::states).def_readwrite("seed", &DecodeArgs::seed);
  d.def_readwrite("position", &DecodeArgs::position);
  pointer(d, "stops", &DecodeArgs::stops), pointer(d, "stop_ends", &DecodeArgs::stop_ends);
  pointer(d, "follows", &DecodeArgs::follows), pointer(d, "ids", &DecodeArgs::ids);
  pointer(d, "log_probs", &DecodeArgs::log_probs), pointer(d, "h", &DecodeArgs::h), pointer(d, "c", &DecodeArgs::c);
  pointer(d, "ended_before", &DecodeArgs::ended_before), pointer(d, "state_before", &DecodeArgs::state_before);
  pointer(d, "ended", &DecodeArgs::ended), pointer(d, "state", &DecodeArgs::state);
  pointer(d, "h_words", &DecodeArgs::h_words), pointer(d, "score_words", &DecodeArgs::score_words);
  pointer(d, "id_words", &DecodeArgs::id_words), pointer(d, "status", &DecodeArgs::status);
  d.def(
      "set_layer",
      [](DecodeArgs& self, int l, uintptr_t weights, uintptr_t start) {
        if (l < 0 || l > kMostDecodeLayers) throw py::index_error("layer " + std::to_string(l));
        self.weights[l] = reinterpret_cast<const void*>(weights);
        self.start[l] = reinterpret_cast<const float*>(start);
      },
      "Weights and starts of layer l, or of the output layer, which is number L.");
}

void check(const char* what, int code) {
  if (code) throw std::runtime_error(std::string(what) + ": " + describe_error(code));
}

// A launch whose blocks wait for each other was refused, and nothing ran: they are more than the context may have at
// once (MIG, MPS, a green context: cudaErrorCooperativeLaunchTooLarge), or it takes no such launches.
struct RefusedLaunch : std::runtime_error {
  using std::runtime_error::runtime_error;
};
constexpr int kTooLarge = 720, kNotSupported = 801;

void check_cooperative(const char* what, int code) {
  if (code == kTooLarge || code == kNotSupported)
    throw RefusedLaunch(std::string(what) + ": " + describe_error(code) + ", code " + std::to_string(code));
  check(what, code);
}

// A launch of part of one step.
template <class Args>
auto step(const char* name, int (*run)(Type, Type, const Args&, int, void*)) {
  return [name, run](int type, int products, Args& args, int k, int rows, uintptr_t stream) {
    args.s.begin = k;
    args.s.end = k + 1;
    check(name, run(Type(type), Type(products), args, rows, reinterpret_cast<void*>(stream)));
  };
}

// A launch of steps [begin, end), which args hold.
template <class Args>
auto sequence_launch(const char* name, int (*run)(Type, const Args&, void*)) {
  return [name, run](int type, Args& args, uintptr_t stream) {
    check(name, run(Type(type), args, reinterpret_cast<void*>(stream)));
  };
}

template <class Args>
auto cooperative_launch(const char* name, int (*run)(Type, const Args&, int64_t, int64_t, void*)) {
  return [name, run](int type, Args& args, int64_t first, int64_t rows, uintptr_t stream) {
    check_cooperative(name, run(Type(type), args, first, rows, reinterpret_cast<void*>(stream)));
  };
}

// Layers or directions in one launch; all have the Tiling of the first.
template <class All, class Args>
auto layers_launch(const char* name, int (*run)(Type, const All&, const int64_t*, const int64_t*, void*)) {
  return [name, run](int type, const std::vector<const Args*>& layers, const std::vector<int64_t>& first,
                     const std::vector<int64_t>& rows, uintptr_t stream) {
    if (layers.empty() || layers.size() > kMostLayers || first.size() != layers.size() || rows.size() != layers.size())
      throw py::value_error(std::string(name) + " takes 1 to " + std::to_string(kMostLayers) +
                            " layers, and first row and rows of each");
    const Sequence& like = layers[0]->s;
    for (const Args* layer : layers) {
      const Sequence& s = layer->s;
      if (s.T != like.T || s.B != like.B || s.H != like.H || s.N != like.N || s.begin != like.begin ||
          s.end != like.end)
        throw py::value_error(std::string(name) + ": a layer has T " + std::to_string(s.T) + ", B " +
                              std::to_string(s.B) + " and H " + std::to_string(s.H) + ", the first has T " +
                              std::to_string(like.T) + ", B " + std::to_string(like.B) + " and H " +
                              std::to_string(like.H) + "; give layers of one size and the same steps");
    }
    All all{};
    all.count = int(layers.size());
    all.blocks = layers[0]->t.unit_blocks * layers[0]->t.row_blocks;
    for (int i = 0; i < all.count; ++i) all.layers[i] = *layers[i], all.layers[i].t = layers[0]->t;
    check_cooperative(name, run(Type(type), all, first.data(), rows.data(), reinterpret_cast<void*>(stream)));
  };
}

}  // namespace

void bind_plan(py::module_& parent);

// After bind_plan, which brings the Tiling.
void bind_cuda(py::module_& parent) {
  py::module_ m = parent.def_submodule("cuda", "Launchers of the CUDA kernels; use them through fastlstm.LSTM.");
  py::register_local_exception<RefusedLaunch>(m, "RefusedLaunchError", PyExc_RuntimeError);
  bind_args(m);
  bind_decode_args(m);
  m.attr("timeout_ms") = timeout_ms();
  m.def("partial_words", &partial_words, "Words of the partial sums that blocks of a tiling exchange in one step.");
  m.def("per_step_forward", step("per_step_forward", per_step_forward));
  m.def("per_step_backward_sum", step("per_step_backward_sum", per_step_backward_sum));
  m.def("per_step_backward", step("per_step_backward", per_step_backward));
  m.def("single_block_forward", sequence_launch("single_block_forward", single_block_forward));
  m.def("single_block_backward", sequence_launch("single_block_backward", single_block_backward));
  m.def("cooperative_forward", cooperative_launch("cooperative_forward", cooperative_forward));
  m.def("cooperative_backward", cooperative_launch("cooperative_backward", cooperative_backward));
  m.def("lean_forward", cooperative_launch("lean_forward", lean_forward));
  m.def("lean_layers_forward", layers_launch<LayersArgs, ForwardArgs>("lean_layers_forward", lean_layers_forward));
  m.def("lean_layers_backward",
        layers_launch<LayersBackwardArgs, BackwardArgs>("lean_layers_backward", lean_layers_backward));
  m.def("decode", [](int weights, const DecodeArgs& args, uintptr_t stream) {
    check_cooperative("decode", decode(Type(weights), args, reinterpret_cast<void*>(stream)));
  });
  m.attr("most_layers") = kMostLayers;
  m.def("lean_backward", cooperative_launch("lean_backward", lean_backward));
}

#if defined(FASTLSTM_HOSTSIM)
void bind_kernels(py::module_& m) {
  bind_plan(m);
  bind_cuda(m);
}
#endif
