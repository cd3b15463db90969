// gemm, sum_by_id and any_outside: what the layers need beside the recurrence (fastlstm/ops/gemm.py, ops/lstm.py).
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "bindings.h"

using namespace fastlstm::cpu;

namespace {

template <class R>
Gemm<R> gemm_of(Arguments& a) {
  return {.c = a.address<R>("c"),
          .a = a.address<R>("a"),
          .b = a.address<R>("b"),
          .M = a.integer("M"),
          .N = a.integer("N"),
          .K = a.integer("K"),
          .c_row = a.integer("c_row"),
          .a_row = a.integer("a_row"),
          .a_column = a.integer("a_column"),
          .b_row = a.integer("b_row"),
          .b_column = a.integer("b_column"),
          .accumulate = a.flag("accumulate"),
          .threads = usable_threads(a.integer("threads")),
          .c_at = nullptr,
          .a_at = nullptr};
}

template <class R>
SumById<R> sum_by_id_of(Arguments& a) {
  return {.out = a.address<R>("out"),
          .rows = a.address<R>("rows"),
          .ids = a.address<const int64_t>("ids"),
          .N = a.integer("N"),
          .V = a.integer("V"),
          .width = a.integer("width"),
          .threads = usable_threads(a.integer("threads"))};
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

// True if any of n ids is not in 0 ... V - 1
bool any_outside(uintptr_t ids, int64_t n, int64_t V) {
  const int64_t* values = reinterpret_cast<const int64_t*>(ids);
  bool outside = false;
  for (int64_t k = 0; k < n; ++k) outside |= uint64_t(values[k]) >= uint64_t(V);
  return outside;
}

}  // namespace

void bind_gemm(py::module_& m) {
  define<&gemm>(m, "gemm", "C = A @ B. Keywords: double (else float), the fields of Gemm in csrc/kernels.h.");
  define<&sum_by_id>(m, "sum_by_id",
                     "out[ids[n]] += rows[n]. Keywords: double (else float), the fields of SumById in csrc/kernels.h.");
  m.def("any_outside", &any_outside, py::arg("ids"), py::arg("n"), py::arg("V"));
}
