// gemm and sum_by_id: what the layers need beside the recurrence (fastlstm/ops/gemm.py, ops/lstm.py).
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "entry_point.h"

using namespace fastlstm::cpu;

namespace {

// Sizes and strides are those of the tensors.
template <class R>
Gemm<R> gemm_of(Arguments& a) {
  boundary::View c, left, right;
  a.matrix<R>("c", c), a.matrix<const R>("a", left), a.matrix<const R>("b", right);
  const int64_t M = left.tensor.shape[0], K = left.tensor.shape[1], N = right.tensor.shape[1];
  if (right.tensor.shape[0] != K || !c.has({M, N}) || (N > 1 && c.tensor.strides[1] != 1) ||
      (M > 1 && c.tensor.strides[0] < N))
    throw std::runtime_error(
        "gemm: the sizes of c, a and b do not belong together, expected (M, N), (M, K), (K, N) and "
        "rows of c one after another");
  a.product({M, N, K});
  return {.c = c.data<R>(),
          .a = left.data<R>(),
          .b = right.data<R>(),
          .M = M,
          .N = N,
          .K = K,
          .c_row = M > 1 ? c.tensor.strides[0] : N,
          .a_row = left.tensor.strides[0],
          .a_column = left.tensor.strides[1],
          .b_row = right.tensor.strides[0],
          .b_column = right.tensor.strides[1],
          .accumulate = a.flag("accumulate"),
          .threads = usable_threads(a.size("threads", 1)),
          .c_at = nullptr,
          .a_at = nullptr};
}

template <class R>
SumById<R> sum_by_id_of(Arguments& a) {
  const int64_t N = a.size("N"), V = a.size("V"), width = a.size("width");
  return {.out = a.array<R>("out", V, width),
          .rows = a.array<const R>("rows", N, width),
          .ids = a.ids("ids", N, V),
          .N = N,
          .V = V,
          .width = width,
          .threads = usable_threads(a.size("threads", 1))};
}

template <class Args>
void run(Arguments& a, const Args& args, void (*kernel)(const Args&)) {
  a.finish();
  py::gil_scoped_release release;
  kernel(args);
}

void gemm(Arguments& a) {
  a.flag("double") ? run(a, gemm_of<double>(a), kernels().gemm_f64) : run(a, gemm_of<float>(a), kernels().gemm_f32);
}

void sum_by_id(Arguments& a) {
  a.flag("double") ? run(a, sum_by_id_of<double>(a), kernels().sum_by_id_f64)
                   : run(a, sum_by_id_of<float>(a), kernels().sum_by_id_f32);
}

}  // namespace

void bind_gemm(py::module_& m) {
  define<&gemm>(
      m, "gemm",
      "C = A @ B. Keywords: double (else float), the tensors c, a and b, and flags of Gemm in csrc/kernels.h.");
  define<&sum_by_id>(m, "sum_by_id",
                     "out[ids[n]] += rows[n]. Keywords: double (else float), the fields of SumById in csrc/kernels.h.");
}
