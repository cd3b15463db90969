// The functions that -fsanitize=thread makes instrumented code call before every memory access. Linked in place of the
// sanitizer's own run-time library, they hand each access of a simulated thread to the shadow memory.
#include <dlfcn.h>
#include <link.h>

#include "engine.h"

namespace hostsim {
namespace {

// Addresses of this library itself: constants, and counters that coverage builds keep.
struct Image {
  uintptr_t low = ~uintptr_t(0), high = 0;
  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          auto* image = static_cast<Image*>(self);
          uintptr_t low = ~uintptr_t(0), high = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
            const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            low = std::min(low, begin);
            high = std::max(high, begin + info->dlpi_phdr[i].p_memsz);
          }
          const auto here = reinterpret_cast<uintptr_t>(&check_anywhere);
          if (here < low || here >= high) return 0;
          image->low = low, image->high = high;
          return 1;
        },
        this);
  }
};

void access(const void* address, uint32_t size, Kind kind, const void* pc) {
  static const Image image;
  const Engine& e = engine();
  const auto where = reinterpret_cast<uintptr_t>(address);
  if (!e.current || e.stacks.holds(where)) return;
  if (where >= image.low && where < image.high) return;
  const auto offset = reinterpret_cast<uintptr_t>(pc) - image.low;  // what addr2line wants
  check_anywhere({where, size, kind, false, reinterpret_cast<const void*>(offset)});
}

}  // namespace
}  // namespace hostsim

using hostsim::access;
using hostsim::Kind;

#define HOOK(name, size, kind) \
  extern "C" void name(void* address) { access(address, size, Kind::kind, __builtin_return_address(0)); }
#define HOOKS(size)                             \
  HOOK(__tsan_read##size, size, read)           \
  HOOK(__tsan_write##size, size, write)         \
  HOOK(__tsan_unaligned_read##size, size, read) \
  HOOK(__tsan_unaligned_write##size, size, write)

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(void* address, size_t size) {
  access(address, uint32_t(size), Kind::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, size_t size) {
  access(address, uint32_t(size), Kind::write, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}
