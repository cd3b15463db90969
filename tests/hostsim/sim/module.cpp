// The Python module of one build of the simulation: controls, and whatever kernels were linked with it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "engine.h"
#include "ptx.h"

namespace py = pybind11;

void bind_kernels(py::module_& m);  // the kernels' own bindings: csrc/cuda/bindings_cuda.cpp, or those of a test

namespace {

void set_device(int sm_count, size_t shared_per_block, size_t shared_per_sm, int threads_per_sm) {
  hostsim::Device& device = hostsim::engine().device;
  device.sm_count = sm_count;
  device.shared_per_block = shared_per_block;
  device.shared_per_sm = shared_per_sm;
  device.threads_per_sm = threads_per_sm;
}

// Tells the simulation of a tensor. `written` false: the kernel must write before it reads; such memory gets a pattern.
void memory(uintptr_t address, size_t bytes, const std::string& name, bool writable, bool written) {
  if (!written) memset(reinterpret_cast<void*>(address), 0xFE, bytes);
  if (bytes) hostsim::engine().memory.add(address, bytes, name, writable, written);
}

void release() {
  if (!hostsim::engine().run()) throw std::runtime_error(hostsim::engine().error);
}

std::pair<int, int> position(const std::string& shape, char matrix, int lane, int index) {
  const hostsim::Position p = hostsim::position_of(shape, matrix, lane, index);
  return {p.row, p.column};
}

}  // namespace

PYBIND11_MODULE(HOSTSIM_MODULE, m) {
  m.doc() = "The CUDA kernels of fastlstm in a simulation on the CPU; for tests only.";
  m.def("set_device", &set_device);
  m.def("memory", &memory);
  m.def("forget", [] { hostsim::engine().memory.clear(); });
  m.def("seed", [](uint32_t seed) { hostsim::engine().seed(seed); });
  m.def("hold", [] { hostsim::engine().hold(); }, "Only queue the launches that follow.");
  m.def("release", &release, "Run what is queued; streams run at once.");
  m.def("clock_jumps", [](bool on) { hostsim::engine().clock_jumps = on; });
  m.def("rewrite", &hostsim::rewrite, "Read one PTX text as another; empty: all as they are.");
  m.def("texts", &hostsim::texts, "PTX texts that have run since the last rewrite.");
  m.def("mma_position", &position);
  m.def("to_half", &hostsim::to_half);
  m.def("from_half", &hostsim::from_half);
  m.def("to_bfloat", &hostsim::to_bfloat);
  bind_kernels(m);
}
