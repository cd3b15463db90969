// The instruction sets of this build and machine, and the one in use.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "entry_point.h"

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
template <class R>
void unary_of(Arguments& a, void (*kernel)(const R*, R*, int64_t, int)) {
  const int64_t n = a.size("n");
  const R* x = a.array<const R>("x", n);
  R* y = a.array<R>("y", n);
  const int what = int(a.index("what", 2));
  a.finish();
  kernel(x, y, n, what);
}

void unary(Arguments& a) {
  a.flag("double") ? unary_of<double>(a, current->unary_f64) : unary_of<float>(a, current->unary_f32);
}

}  // namespace

const Kernels& kernels() { return *current; }
int usable_threads(int64_t threads) { return forked ? 1 : int(threads); }

void bind_isa(py::module_& m) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  m.def("isa_names", &isa_names, "Instruction sets that this machine can run, the weakest first.");
  m.def("isa", [] { return std::string(current->name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa);
  define<&unary>(m, "unary",
                 "Sigmoid or tanh of n numbers, for the tests. Keywords: double (else float), n, x, y, what.");
}
