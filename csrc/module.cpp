// fastlstm._C: what a build has of the CPU kernels, the planner and the CUDA kernels. Where one of the two kinds of
// kernels was left out, `no_cpu` or `no_cuda` says why; fastlstm/native.py and fastlstm/backends/cuda.py ask for them.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_plan(py::module_& m);
#if defined(FASTLSTM_WITH_CPU)
void bind_cpu(py::module_& m);
void bind_decode(py::module_& m);
void bind_short_call(py::module_& m);
void bind_arrays(py::module_& m);
#endif
#if defined(FASTLSTM_WITH_CUDA)
void bind_cuda(py::module_& m);
void bind_device(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of fastlstm; use them through fastlstm.LSTM.";
#if defined(FASTLSTM_WITH_CPU)
  bind_cpu(m);
  bind_decode(m);
  bind_short_call(m);
  bind_arrays(m);
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
