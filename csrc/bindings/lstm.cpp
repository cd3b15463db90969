// lstm_forward and lstm_backward: one layer in one direction. Python owns all memory and has checked every size
// (fastlstm/modules/call.py, fastlstm/ops/validation.py). The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "bindings.h"

using namespace fastlstm::cpu;

namespace {

Shape shape_of(Arguments& a) {
  return {.T = a.integer("T"),
          .B = a.integer("B"),
          .H = a.integer("H"),
          .P = a.integer("P"),
          .batch_sizes = a.optional_address<const int64_t>("batch_sizes"),
          .reset = a.optional_address<const uint8_t>("reset"),
          .reverse = a.flag("reverse"),
          .rounding = Rounding(a.integer("rounding", 0)),
          .threads = usable_threads(a.integer("threads"))};
}

template <class R>
Forward<R> forward_of(Arguments& a) {
  const bool dense = a.given("x");
  return {.h = a.address<R>("h"),
          .c = a.optional_address<R>("c"),
          .gates = a.optional_address<R>("gates"),
          .h_n = a.address<R>("h_n"),
          .c_n = a.address<R>("c_n"),
          .x_gates = a.address_if<R>(!dense, "x_gates"),
          .ids = a.optional_address<const int64_t>("ids"),
          .bias = a.optional_address<R>("bias"),
          .w_hh = a.address<R>("w_hh"),
          .w_hr = a.optional_address<R>("w_hr"),
          .h0 = a.address<R>("h0"),
          .c0 = a.address<R>("c0"),
          .x = a.optional_address<R>("x"),
          .w_x = a.address_if<R>(dense, "w_x"),
          .I = dense ? a.integer("I") : a.integer("I", 0)};
}

template <class R>
Products<R> products_of(Arguments& a) {
  const bool dx = a.given("dx"), dw_x = a.given("dw_x"), dw_hh = a.given("dw_hh");
  const int64_t V = a.integer("V", 0);
  return {.dx = a.optional_address<R>("dx"),
          .dw_x = a.optional_address<R>("dw_x"),
          .dbias = a.optional_address<R>("dbias"),
          .dw_hh = a.optional_address<R>("dw_hh"),
          .dw_hr = a.optional_address<R>("dw_hr"),
          .x = a.address_if<R>(dw_x && V == 0, "x"),
          .ids = a.address_if<const int64_t>(dw_x && V > 0, "ids"),
          .w_x = a.address_if<R>(dx, "w_x"),
          .h = a.address_if<R>(dw_hh, "h"),
          .h0 = a.address_if<R>(dw_hh, "h0"),
          .I = dx || (dw_x && V == 0) ? a.integer("I") : a.integer("I", 0),
          .V = V};
}

template <class R>
Backward<R> backward_of(Arguments& a) {
  return {.d_gates = a.optional_address<R>("d_gates"),
          .dh_proj = a.optional_address<R>("dh_proj"),
          .dh0 = a.address<R>("dh0"),
          .dc0 = a.address<R>("dc0"),
          .dh = a.optional_address<R>("dh"),
          .dc = a.optional_address<R>("dc"),
          .dh_n = a.optional_address<R>("dh_n"),
          .dc_n = a.optional_address<R>("dc_n"),
          .gates = a.address<R>("gates"),
          .c = a.address<R>("c"),
          .c0 = a.address<R>("c0"),
          .w_hh = a.address<R>("w_hh"),
          .w_hr = a.optional_address<R>("w_hr"),
          .products = products_of<R>(a)};
}

template <class Args>
void run(Arguments& a, const Shape& shape, const Args& args, void (*kernel)(const Shape&, const Args&)) {
  a.finish();
  py::gil_scoped_release release;
  kernel(shape, args);
}

void lstm_forward(Arguments& a) {
  const bool is_double = a.flag("double");
  const Shape shape = shape_of(a);
  is_double ? run(a, shape, forward_of<double>(a), kernels().forward_f64)
            : run(a, shape, forward_of<float>(a), kernels().forward_f32);
}

void lstm_backward(Arguments& a) {
  const bool is_double = a.flag("double");
  const Shape shape = shape_of(a);
  is_double ? run(a, shape, backward_of<double>(a), kernels().backward_f64)
            : run(a, shape, backward_of<float>(a), kernels().backward_f32);
}

}  // namespace

void bind_lstm(py::module_& m) {
  define<&lstm_forward>(
      m, "lstm_forward",
      "Runs one layer in one direction. Keywords: double (else float), the fields of Shape and Forward "
      "in csrc/kernels.h; a null pointer is 0 or left out.");
  define<&lstm_backward>(
      m, "lstm_backward",
      "The gradients of lstm_forward. Keywords: double (else float), the fields of Shape, Backward and "
      "Products in csrc/kernels.h; a null pointer is 0 or left out.");
}
