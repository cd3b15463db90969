// lstm_forward and lstm_backward: one layer in one direction. Python owns all memory; every tensor is checked here
// against the sizes of the call (arguments.h). The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>

#include "batch_sizes.h"
#include "bindings.h"
#include "entry_point.h"

using namespace fastlstm::cpu;

namespace {

// Steps and rows of a call, and which part of the states it works on
struct Call {
  Shape shape;
  int64_t N;     // rows of all steps together
  int64_t part;  // h0, c0, h_n, c_n and their gradients may hold those of several layers and directions
};

Call call_of(Arguments& a) {
  Call call{{.T = a.size("T"),
             .B = a.size("B"),
             .H = a.size("H", 1),
             .P = a.size("P", 1),
             .batch_sizes = nullptr,
             .reset = nullptr,
             .reverse = a.flag("reverse"),
             .rounding = Rounding(a.index("rounding", 3, 0)),
             .threads = usable_threads(a.size("threads", 1))},
            0,
            a.integer("part", 0)};
  Shape& s = call.shape;
  call.N = a.product({s.T, s.B});
  s.batch_sizes = a.given("batch_sizes") ? batch_sizes_of(a, s.T, s.B, call.N) : a.absent<const int64_t>("batch_sizes");
  static_assert(sizeof(bool) == sizeof(uint8_t));
  s.reset = reinterpret_cast<const uint8_t*>(a.optional_array<const bool>("reset", call.N));
  a.product({call.N + s.B, 5 * s.H + 2 * s.P + 64});       // more than any array or scratch memory of rows
  a.product({4 * s.H + 64, a.product({s.P + s.H + 64})});  // and of weights
  return call;
}

// The weights of the projection, or null; without them h is as wide as the layer.
template <class W>
const W* projected(Arguments& a, const Shape& s) {
  const W* w_hr = a.optional_array<const W>("w_hr", s.P, s.H);
  if (!w_hr && s.P != s.H) a.bad_size("P", s.P, "H = " + std::to_string(s.H) + " without w_hr");
  return w_hr;
}

template <class R, class S = R, class W = S>
Forward<R, S, W> forward_of(Arguments& a, const Call& call) {
  const auto& [s, N, part] = call;
  const bool dense = a.given("x"), by_id = a.given("ids");
  const int64_t G = 4 * s.H, I = dense ? a.size("I", 1) : a.integer("I", 0);
  const int64_t V = by_id ? a.rows_of<const R>("x_gates", G) : 0;
  return {.h = a.array<S>("h", N, s.P),
          .c = a.optional_array<R>("c", N, s.H),
          .gates = a.optional_array<S>("gates", N, G),
          .h_n = a.part<S>("h_n", part, s.B, s.P),
          .c_n = a.part<R>("c_n", part, s.B, s.H),
          .x_gates = dense ? a.absent<const R>("x_gates") : a.array<const R>("x_gates", by_id ? V : N, G),
          .ids = by_id ? a.ids("ids", N, V) : a.absent<const int64_t>("ids"),
          .bias = a.optional_array<const R>("bias", G),
          .w_hh = a.array<const W>("w_hh", G, s.P),
          .w_hr = projected<W>(a, s),
          .h0 = a.part<const S>("h0", part, s.B, s.P),
          .c0 = a.part<const R>("c0", part, s.B, s.H),
          .x = dense ? a.array<const S>("x", N, I) : a.absent<const S>("x"),
          .w_x = dense ? a.array<const W>("w_x", G, I) : a.absent<const W>("w_x"),
          .I = I};
}

template <class R, class S, class W>
Products<R, S, W> products_of(Arguments& a, const Call& call) {
  const auto& [s, N, part] = call;
  const int64_t G = 4 * s.H, V = a.integer("V", 0) == 0 ? 0 : a.size("V", 1);
  const bool dx = a.given("dx"), dw_hh = a.given("dw_hh"), dw_x = a.given("dw_x") && V == 0;
  const bool d_table = a.given("d_table") && V > 0;
  const int64_t I = dx || dw_x ? a.size("I", 1) : a.integer("I", 0);
  return {.dx = dx ? a.array<S>("dx", N, I) : a.absent<S>("dx"),
          .dw_x = dw_x ? a.array<W>("dw_x", G, I) : a.absent<W>("dw_x"),
          .d_table = d_table ? a.array<R>("d_table", V, G) : a.absent<R>("d_table"),
          .dbias = a.optional_array<R>("dbias", G),
          .dw_hh = a.optional_array<W>("dw_hh", G, s.P),
          .dw_hr = a.optional_array<W>("dw_hr", s.P, s.H),
          .x = dw_x ? a.array<const S>("x", N, I) : a.absent<const S>("x"),
          .ids = d_table ? a.ids("ids", N, V) : a.absent<const int64_t>("ids"),
          .w_x = dx ? a.array<const W>("w_x", G, I) : a.absent<const W>("w_x"),
          .h = dw_hh ? a.array<const S>("h", N, s.P) : a.absent<const S>("h"),
          .h0 = dw_hh ? a.part<const S>("h0", part, s.B, s.P) : a.absent<const S>("h0"),
          .I = I,
          .V = V};
}

template <class R, class S = R, class W = S>
Backward<R, S, W> backward_of(Arguments& a, const Call& call) {
  const auto& [s, N, part] = call;
  const int64_t G = 4 * s.H;
  return {.d_gates = a.optional_array<S>("d_gates", N, G),
          .dh_proj = a.optional_array<S>("dh_proj", N, s.P),
          .dh0 = a.part<S>("dh0", part, s.B, s.P),
          .dc0 = a.part<R>("dc0", part, s.B, s.H),
          .dh = a.optional_array<const S>("dh", N, s.P),
          .dc = a.optional_array<const R>("dc", N, s.H),
          .dh_n = a.optional_part<const S>("dh_n", part, s.B, s.P),
          .dc_n = a.optional_part<const R>("dc_n", part, s.B, s.H),
          .gates = a.array<const S>("gates", N, G),
          .c = a.array<const R>("c", N, s.H),
          .c0 = a.part<const R>("c0", part, s.B, s.H),
          .w_hh = a.array<const W>("w_hh", G, s.P),
          .w_hr = projected<W>(a, s),
          .products = products_of<R, S, W>(a, call)};
}

template <class Args>
void run(Arguments& a, const Shape& shape, const Args& args, void (*kernel)(const Shape&, const Args&)) {
  a.finish();
  py::gil_scoped_release release;
  kernel(shape, args);
}

// Keyword `bfloat16`: which rows and weights are of that type
enum class Bfloat : int { none = 0, all = 1, rows = 2 };

Bfloat bfloat_of(Arguments& a, bool is_double) {
  const Bfloat kind = Bfloat(a.index("bfloat16", 3, 0));
  if (kind != Bfloat::none && (is_double || !bfloat_kernels()))
    a.fail("was called for bfloat16, expected float or double: " + std::string(kernels().name) +
           " does not multiply bfloat16");
  return kind;
}

void lstm_forward(Arguments& a) {
  const bool is_double = a.flag("double");
  const Bfloat bfloat = bfloat_of(a, is_double);
  const Call call = call_of(a);
  if (bfloat == Bfloat::all)
    run(a, call.shape, forward_of<float, uint16_t>(a, call), bfloat_kernels()->forward);
  else if (bfloat == Bfloat::rows)
    run(a, call.shape, forward_of<float, uint16_t, float>(a, call), bfloat_kernels()->forward_mixed);
  else if (is_double)
    run(a, call.shape, forward_of<double>(a, call), kernels().forward_f64);
  else
    run(a, call.shape, forward_of<float>(a, call), kernels().forward_f32);
}

void lstm_backward(Arguments& a) {
  const bool is_double = a.flag("double");
  const Bfloat bfloat = bfloat_of(a, is_double);
  const Call call = call_of(a);
  if (bfloat == Bfloat::all)
    run(a, call.shape, backward_of<float, uint16_t>(a, call), bfloat_kernels()->backward);
  else if (bfloat == Bfloat::rows)
    run(a, call.shape, backward_of<float, uint16_t, float>(a, call), bfloat_kernels()->backward_mixed);
  else if (is_double)
    run(a, call.shape, backward_of<double>(a, call), kernels().backward_f64);
  else
    run(a, call.shape, backward_of<float>(a, call), kernels().backward_f32);
}

}  // namespace

void bind_lstm(py::module_& m) {
  define<&lstm_forward>(m, "lstm_forward",
                        "Runs one layer in one direction. Keywords: double (else float); bfloat16: 1 = rows and "
                        "weights, 2 = rows only; the "
                        "fields of Shape and Forward in csrc/kernels.h, as tensors; what is null there is None or left "
                        "out. part: of states "
                        "that hold several.");
  define<&lstm_backward>(
      m, "lstm_backward",
      "The gradients of lstm_forward. Keywords: as lstm_forward, the fields of Shape, Backward and Products in "
      "csrc/kernels.h.");
}
