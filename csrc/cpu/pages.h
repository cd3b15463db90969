// Large pages for large arrays that are about to be written for the first time.
//
// Memory that the allocator has just mapped is handed out by the kernel page by page, 4 KiB each, at the first touch:
// filling 26 MB so takes 7 ms where 0.6 would do. Asked for 2 MiB pages first (Linux, unless the system forbids it), a
// training step at H = 512 spends a tenth less. It is only advice: contents and addresses stay as they are.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace FASTLSTM_ISA {

constexpr size_t kLargePage = size_t(2) << 20;

inline void want_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (data != nullptr && to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

}  // namespace FASTLSTM_ISA
