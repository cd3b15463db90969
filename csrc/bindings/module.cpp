// fastlstm._C: the CPU kernels, the planner and the CUDA kernels that this build has. If one of the two kinds of
// kernels was left out, `no_cpu` or `no_cuda` says why (fastlstm/backends/native.py,
// fastlstm/backends/cuda/backend.py).
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_plan(py::module_& m);
#if defined(FASTLSTM_WITH_CPU)
void bind_array_cache(py::module_& m);
void bind_boundary(py::module_& m);
void bind_gemm(py::module_& m);
void bind_int8(py::module_& m);
void bind_isa(py::module_& m);
void bind_lstm(py::module_& m);
void bind_sampling(py::module_& m);
void bind_small_call(py::module_& m);
void bind_step(py::module_& m);
#endif
#if defined(FASTLSTM_WITH_CUDA)
void bind_cuda(py::module_& m);
void bind_device(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  m.attr("interface") = 5;  // INTERFACE in fastlstm/backends/native.py
  m.doc() = "Native kernels of fastlstm; use them through fastlstm.LSTM.";
#if defined(FASTLSTM_WITH_CPU)
  bind_boundary(m);
  bind_isa(m);
  bind_lstm(m);
  bind_gemm(m);
  bind_step(m);
  bind_int8(m);
  bind_sampling(m);
  bind_small_call(m);
  bind_array_cache(m);
#else
  m.attr("no_cpu") = "FASTLSTM_CPU=off";
#endif
  bind_plan(m);
#if defined(FASTLSTM_WITH_CUDA)
  bind_cuda(m);
  bind_device(m);
#else
  m.attr("no_cuda") = FASTLSTM_CUDA_REASON;
#endif
}
