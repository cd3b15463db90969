// The instruction sets of this build and machine, and the one in use.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>
#if defined(FASTLSTM_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "bindings.h"
#include "entry_point.h"

using namespace fastlstm::cpu;

namespace {

// bfloat: null where the set does not multiply bfloat16. int8: the fastest that the set has.
struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  const BfloatKernels* bfloat;
  const Int8Kernels* int8;
};

#if defined(FASTLSTM_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

#if defined(FASTLSTM_NEW_X86)  // the compiler knows the instructions
struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has_avx512_bf16() { return Cpuid(7, 1).a >> 5 & 1; }

bool has_avx_vnni() { return Cpuid(7, 1).a >> 4 & 1; }

// AMX with these products: the processor has it, the operating system saves its registers, and lets this process use
// them.
constexpr unsigned kAmxBfloat16 = 1u << 22, kAmxInt8 = 1u << 25;
bool has_amx(unsigned products) {
  constexpr unsigned kTile = 1u << 24, kState = 1u << 17 | 1u << 18, kSavesState = 1u << 27;
  const unsigned all = kTile | products;
  if ((Cpuid(7, 0).d & all) != all || !(Cpuid(1, 0).c & kSavesState)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kState) != kState) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool is_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// The int8 kernels that this machine can run, the weakest first
std::vector<const Int8Kernels*> find_int8() {
  std::vector<const Int8Kernels*> found{&kernels_int8_baseline};
#if defined(FASTLSTM_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&kernels_int8_avx2);
#if defined(FASTLSTM_NEW_X86)
    if (has_avx_vnni()) found.push_back(&kernels_int8_avx_vnni);
#endif
  }
#if defined(FASTLSTM_NEW_X86)
  if (has_avx512() && __builtin_cpu_supports("avx512vnni")) {
    found.push_back(&kernels_int8_avx512_vnni);
    if (has_amx(kAmxInt8)) found.push_back(&kernels_int8_amx);
  }
#endif
#endif
  return found;
}

const std::vector<const Int8Kernels*>& available_int8() {
  static const std::vector<const Int8Kernels*> found = find_int8();
  return found;
}

// The first of these that this machine can run
[[maybe_unused]] const Int8Kernels* int8_named(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names)
    for (const Int8Kernels* kernels : available_int8())
      if (name == kernels->name) return kernels;
  return &kernels_int8_baseline;
}

std::vector<InstructionSet> find_sets() {
  std::vector<InstructionSet> sets{{kernels_baseline.name, &kernels_baseline, nullptr, &kernels_int8_baseline}};
#if defined(FASTLSTM_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    sets.push_back({kernels_avx2.name, &kernels_avx2, nullptr, int8_named({"int8_avx_vnni", "int8_avx2"})});
  if (has_avx512()) {
    const Int8Kernels* int8 = int8_named({"int8_avx512_vnni", "int8_avx_vnni", "int8_avx2"});
    const InstructionSet avx512{kernels_avx512.name, &kernels_avx512, nullptr, int8};
    sets.push_back(avx512);
#if defined(FASTLSTM_NEW_X86)
    if (has_avx512_bf16()) {
      sets.push_back({bfloat_kernels_avx512_bf16.name, &kernels_avx512, &bfloat_kernels_avx512_bf16, int8});
      // On Intel's processors its dot products run at half the speed of float's: without AMX, float is the better way.
      if (is_intel()) std::swap(sets.back(), sets[sets.size() - 2]);
      if (has_amx(kAmxBfloat16))
        sets.push_back({bfloat_kernels_amx.name, &kernels_avx512, &bfloat_kernels_amx, available_int8().back()});
    }
#endif
  }
#endif
  return sets;
}

const std::vector<InstructionSet>& available() {
  static const std::vector<InstructionSet> sets = find_sets();
  return sets;
}

InstructionSet current = available().back();

// OpenMP's threads do not exist in a forked child; a parallel region there would hang.
bool forked = false;

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const InstructionSet& set : available()) names.emplace_back(set.name);
  return names;
}

void set_isa(const std::string& name) {
  for (const InstructionSet& set : available())
    if (name == set.name) {
      current = set;
      return;
    }
  throw py::value_error("instruction set '" + name + "' is not available on this machine");
}

std::vector<std::string> int8_isa_names() {
  std::vector<std::string> names;
  for (const Int8Kernels* kernels : available_int8()) names.emplace_back(kernels->name);
  return names;
}

void set_int8_isa(const std::string& name) {
  for (const Int8Kernels* kernels : available_int8())
    if (name == kernels->name) {
      current.int8 = kernels;
      return;
    }
  throw py::value_error("int8 kernels '" + name + "' are not available on this machine");
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
  a.flag("double") ? unary_of<double>(a, current.kernels->unary_f64) : unary_of<float>(a, current.kernels->unary_f32);
}

}  // namespace

const Kernels& kernels() { return *current.kernels; }
const BfloatKernels* bfloat_kernels() { return current.bfloat; }
const Int8Kernels& int8_kernels() { return *current.int8; }
void empty_workspaces(int threads) {
  for (const InstructionSet& set : available()) {
    set.kernels->empty_workspaces(threads);
    if (set.bfloat) set.bfloat->empty_workspaces(threads);
  }
  for (const Int8Kernels* int8 : available_int8()) int8->empty_workspaces(threads);
}
int usable_threads(int64_t threads) { return forked ? 1 : int(threads); }

void bind_isa(py::module_& m) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  m.def("isa_names", &isa_names, "Instruction sets that this machine can run, the weakest first.");
  m.def("isa", [] { return std::string(current.name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa);
  m.def("int8_isa_names", &int8_isa_names, "The int8 kernels that this machine can run, the weakest first.");
  m.def("int8_isa", [] { return std::string(current.int8->name); }, "The int8 kernels in use; `set_isa` chooses them.");
  m.def("set_int8_isa", &set_int8_isa, "Chooses int8 kernels alone, until the next `set_isa`; for the tests.");
  m.def("is_intel", &is_intel, "Whether the processor is one of Intel's.");
  m.def(
      "multiplies_bfloat16", [] { return current.bfloat != nullptr; },
      "Whether the instruction set in use multiplies bfloat16.");
  define<&unary>(m, "unary",
                 "Sigmoid or tanh of n numbers, for the tests. Keywords: double (else float), n, x, y, what.");
}
