// Scratch memory of the kernels, from a cache of the calling thread.
#pragma once
#include <limits>

#include "block_cache.h"

namespace FASTLSTM_ISA {

// Blocks on a cache-line boundary, not initialised. A released block stays in the list of the thread that released it:
// fresh pages cost as much as a tenth of a training step at H = 128. The list has no lock, since threads allocate at
// the same time inside a parallel region.
class Workspace {
 public:
  static void* allocate(size_t bytes) {
    void* data = cache().reuse(bytes);
    return data ? data : BlockCache::new_block(bytes, 64, 2 * kHugePage);
  }
  static void release(void* data, size_t bytes) { cache().release(data, bytes); }
  static void clear() { cache().clear(); }  // of the calling thread

 private:
  static BlockCache& cache() {
    static thread_local BlockCache blocks({size_t(48) << 20, 16, std::numeric_limits<int64_t>::max()});
    return blocks;
  }
};

// n numbers of the workspace, until the end of the scope; null for n = 0.
template <class R>
class Buffer {
 public:
  explicit Buffer(int64_t n) : bytes_(n > 0 ? (size_t(n) * sizeof(R) + 4095) / 4096 * 4096 : 0) {
    if (bytes_) data_ = static_cast<R*>(Workspace::allocate(bytes_));
  }
  ~Buffer() {
    if (bytes_) Workspace::release(data_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  R* get() const { return data_; }

 private:
  size_t bytes_;
  R* data_ = nullptr;
};

}  // namespace FASTLSTM_ISA
