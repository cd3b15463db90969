// The CPU kernels of fastlstm._C (module.cpp): addresses, sizes and flags in, nothing of torch. Python owns all memory
// and has checked every size (fastlstm/backends/cpu.py). The GIL is released while a kernel runs.
#include "bindings.h"

#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

namespace py = pybind11;
using namespace fastlstm::cpu;

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets{&kernels_baseline};
#if defined(FASTLSTM_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    sets.push_back(&kernels_avx512);
#endif
  return sets;
}

const Kernels* current = available().back();

// OpenMP's threads do not survive a fork; a child that asked for them would wait for ever. It works on one thread.
bool forked = false;

// (T, B, H, P, batch_sizes, reset, reverse, rounding, threads)
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, bool, int, int>;

Shape shape_of(const ShapeTuple& v) {
  return {std::get<0>(v),
          std::get<1>(v),
          std::get<2>(v),
          std::get<3>(v),
          at<const int64_t>(std::get<4>(v)),
          at<const uint8_t>(std::get<5>(v)),
          std::get<6>(v),
          Rounding(std::get<7>(v)),
          usable(std::get<8>(v))};
}

// Pointers in the order of the structs in kernels.h
using ForwardPointers = std::array<uintptr_t, 14>;
using BackwardPointers = std::array<uintptr_t, 13>;
using ProductPointers = std::array<uintptr_t, 10>;

template <class R>
Forward<R> forward_args(const ForwardPointers& p, int64_t I) {
  return {at<R>(p[0]),
          at<R>(p[1]),
          at<R>(p[2]),
          at<R>(p[3]),
          at<R>(p[4]),
          at<R>(p[5]),
          at<const int64_t>(p[6]),
          at<R>(p[7]),
          at<R>(p[8]),
          at<R>(p[9]),
          at<R>(p[10]),
          at<R>(p[11]),
          at<R>(p[12]),
          at<R>(p[13]),
          I};
}

template <class R>
Backward<R> backward_args(const BackwardPointers& p, const ProductPointers& q, int64_t I, int64_t V) {
  const Products<R> products{at<R>(q[0]),
                             at<R>(q[1]),
                             at<R>(q[2]),
                             at<R>(q[3]),
                             at<R>(q[4]),
                             at<R>(q[5]),
                             at<const int64_t>(q[6]),
                             at<R>(q[7]),
                             at<R>(q[8]),
                             at<R>(q[9]),
                             I,
                             V};
  return {at<R>(p[0]), at<R>(p[1]), at<R>(p[2]), at<R>(p[3]),  at<R>(p[4]),  at<R>(p[5]),  at<R>(p[6]),
          at<R>(p[7]), at<R>(p[8]), at<R>(p[9]), at<R>(p[10]), at<R>(p[11]), at<R>(p[12]), products};
}

void forward(const ShapeTuple& shape, const ForwardPointers& pointers, int64_t I, bool is_double) {
  py::gil_scoped_release release;
  const Shape s = shape_of(shape);
  if (is_double)
    current->forward_f64(s, forward_args<double>(pointers, I));
  else
    current->forward_f32(s, forward_args<float>(pointers, I));
}

void backward(const ShapeTuple& shape, const BackwardPointers& pointers, const ProductPointers& products, int64_t I,
              int64_t V, bool is_double) {
  py::gil_scoped_release release;
  const Shape s = shape_of(shape);
  if (is_double)
    current->backward_f64(s, backward_args<double>(pointers, products, I, V));
  else
    current->backward_f32(s, backward_args<float>(pointers, products, I, V));
}

// pointers: out, x, h, c, y; layers: w, bias, w_hr, I of each; sizes: B, H, P
void stream(const std::array<uintptr_t, 5>& p, const std::vector<uintptr_t>& each, const std::array<int64_t, 3>& sizes,
            int side, bool half, int threads) {
  py::gil_scoped_release release;
  std::vector<StreamLayer> layers(each.size() / 4);
  for (size_t l = 0; l < layers.size(); ++l)
    layers[l] = {at<void>(each[4 * l]), at<float>(each[4 * l + 1]), at<void>(each[4 * l + 2]),
                 int64_t(each[4 * l + 3])};
  const auto [B, H, P] = sizes;
  const auto padded = [](int64_t n) { return (n + kStreamLanes - 1) / kStreamLanes * kStreamLanes; };
  (half ? current->stream_bf16 : current->stream_f32)(
      {at<float>(p[0]), at<float>(p[1]), at<float>(p[2]), at<float>(p[3]), at<float>(p[4]), layers.data(),
       int64_t(layers.size()), B, H, P, padded(H), padded(P), side, usable(threads)});
}

// pointers: c, a, b; sizes: M, N, K; strides: c_row, a_row, a_column, b_row, b_column
void gemm(const std::array<uintptr_t, 3>& p, const std::array<int64_t, 3>& sizes, const std::array<int64_t, 5>& strides,
          bool accumulate, bool is_double, int threads) {
  py::gil_scoped_release release;
  const auto [M, N, K] = sizes;
  const auto [c_row, a_row, a_column, b_row, b_column] = strides;
  auto run = [&](auto real, auto kernel) {
    using R = decltype(real);
    kernel({at<R>(p[0]), at<R>(p[1]), at<R>(p[2]), M, N, K, c_row, a_row, a_column, b_row, b_column, accumulate,
            usable(threads)});
  };
  is_double ? run(double(), current->gemm_f64) : run(float(), current->gemm_f32);
}

// sizes: N, V, width
void sum_by_id(uintptr_t out, uintptr_t rows, uintptr_t ids, const std::array<int64_t, 3>& sizes, bool is_double,
               int threads) {
  py::gil_scoped_release release;
  const auto id = at<const int64_t>(ids);
  const auto [N, V, width] = sizes;
  if (is_double)
    current->sum_by_id_f64({at<double>(out), at<double>(rows), id, N, V, width, usable(threads)});
  else
    current->sum_by_id_f32({at<float>(out), at<float>(rows), id, N, V, width, usable(threads)});
}

// Whether any of n ids is not in 0 ... V - 1
bool any_outside(uintptr_t ids, int64_t n, int64_t V) {
  bool found = false;
  for (int64_t k = 0; k < n; ++k) found |= uint64_t(at<const int64_t>(ids)[k]) >= uint64_t(V);
  return found;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.emplace_back(k->name);
  return names;
}

void set_isa(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->name) {
      current = k;
      return;
    }
  throw py::value_error("instruction set '" + name + "' is not available on this machine");
}

}  // namespace

const Kernels& kernels() { return *current; }
int usable(int threads) { return forked ? 1 : threads; }

void bind_cpu(py::module_& m) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("stream", &stream);
  m.def("gemm", &gemm);
  m.def("sum_by_id", &sum_by_id);
  m.def("any_outside", &any_outside);
  m.def("isa_names", &isa_names, "Instruction sets that this machine can run, the weakest first.");
  m.def("isa", [] { return std::string(current->name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa);
  m.def("unary", [](uintptr_t x, uintptr_t y, int64_t n, int what, bool is_double) {
    if (is_double)
      current->unary_f64(at<double>(x), at<double>(y), n, what);
    else
      current->unary_f32(at<float>(x), at<float>(y), n, what);
  });
}
