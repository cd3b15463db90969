// What the CUDA runtime says of this machine, for fastlstm/backends/cuda/backend.py. It is linked statically, so its
// idea of the current device is its own: `set_device` comes before launches. Only in fastlstm._C built with CUDA.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

namespace py = pybind11;

namespace {

void check(const char* what, cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Why no kernel can be launched on this machine; empty where one can.
std::string missing() {
  int driver = 0, runtime = 0, devices = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "there is no NVIDIA driver; install one for CUDA " + version(runtime) + " or newer";
  if (driver / 1000 < runtime / 1000)
    return "the NVIDIA driver is for CUDA " + version(driver) + " and the kernels were built with CUDA " +
           version(runtime) + "; update the driver, or build fastlstm with an nvcc of version " +
           std::to_string(driver / 1000);
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code == cudaSuccess) return devices ? "" : "the NVIDIA driver has no GPU";
  cudaGetLastError();
  return std::string("the NVIDIA driver does not answer: ") + cudaGetErrorString(code);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Compute capability (80 for 8.0), multiprocessors, and shared memory that one block can ask for in bytes.
std::tuple<int, int, int> properties(int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  return {10 * major + minor, attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

}  // namespace

// After bind_cuda, into the same submodule.
void bind_device(py::module_& parent) {
  py::module_ m = parent.attr("cuda");
  m.attr("archs") = FASTLSTM_CUDA_ARCHS;
  m.def("missing", &missing, "Why no kernel can be launched on this machine; empty where one can.");
  m.def("properties", &properties, "Compute capability, multiprocessors, shared memory of a block in bytes.");
  m.def("set_device", [](int device) { check("cudaSetDevice", cudaSetDevice(device)); });
}
