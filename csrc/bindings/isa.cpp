// The instruction sets of this build and machine, and the one in use.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"

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

// OpenMP's threads do not exist in a forked child; a parallel region there would hang.
bool forked = false;

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

// what: 0 sigmoid, 1 tanh; for the tests
void unary(uintptr_t x, uintptr_t y, int64_t n, int what, bool is_double) {
  if (is_double)
    current->unary_f64(reinterpret_cast<double*>(x), reinterpret_cast<double*>(y), n, what);
  else
    current->unary_f32(reinterpret_cast<float*>(x), reinterpret_cast<float*>(y), n, what);
}

}  // namespace

const Kernels& kernels() { return *current; }
int usable_threads(int64_t threads) { return forked ? 1 : int(threads); }

void bind_isa(py::module_& m) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  m.def("isa_names", &isa_names, "Instruction sets that this machine can run, the weakest first.");
  m.def("isa", [] { return std::string(current->name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa);
  m.def("unary", &unary);
}
