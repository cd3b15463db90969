#include <pybind11/pybind11.h>

#include <stdexcept>

#include "sim/device.h"

int run_kernel(const char* name, uint32_t grid, uint32_t block, size_t shared_bytes, bool cooperative, uintptr_t stream,
               uintptr_t a, uintptr_t b, int n);

void bind_kernels(pybind11::module_& m) {
  m.def("run", [](const char* name, uint32_t grid, uint32_t block, size_t shared, bool cooperative, uintptr_t stream,
                  uintptr_t a, uintptr_t b, int n) {
    if (run_kernel(name, grid, block, shared, cooperative, stream, a, b, n))
      throw std::runtime_error(hostsim::last_error());
  });
}
