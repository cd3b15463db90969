// A free list of memory blocks by exact size. It has two users: the thread-local workspace of the kernels (workspace.h)
// and the process-wide cache of tensors (bindings/array_cache.cpp), which adds the lock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "hugepages.h"

namespace FASTLSTM_ISA {

class BlockCache {
 public:
  struct Limits {
    size_t bytes;           // cached together
    size_t blocks;          // cached together
    int64_t idle_requests;  // a block that this many allocations passed by is freed
  };

  explicit BlockCache(Limits limits) : limits_(limits) {}
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache() { clear(); }

  // Frees every block.
  void clear() {
    for (const Block& block : blocks_) std::free(block.data);
    blocks_.clear();
    cached_bytes_ = 0;
  }
  // From now on at most so many bytes are cached together.
  void limit(size_t bytes) {
    limits_.bytes = bytes;
    evict();
  }

  // The block of this size that was released last, or null.
  void* reuse(size_t bytes) {
    ++requests_;
    for (size_t i = blocks_.size(); i-- > 0;)
      if (blocks_[i].bytes == bytes) {
        void* data = blocks_[i].data;
        blocks_.erase(blocks_.begin() + std::ptrdiff_t(i));
        cached_bytes_ -= bytes;
        return data;
      }
    evict();
    return nullptr;
  }

  // Takes over a block that `reuse` or `new_block` returned.
  void release(void* data, size_t bytes) {
    if (bytes > limits_.bytes) return std::free(data);
    try {
      blocks_.push_back({data, bytes, requests_});
    } catch (const std::bad_alloc&) {
      return std::free(data);
    }
    cached_bytes_ += bytes;
    evict();
  }

  size_t cached_bytes() const { return cached_bytes_; }

  // Fresh memory, not initialised. From `hugepages_from` bytes on it is aligned to huge pages and asks for them.
  static void* new_block(size_t bytes, size_t alignment, size_t hugepages_from) {
    void* data = nullptr;
    const bool huge = bytes >= hugepages_from;
    if (posix_memalign(&data, huge ? kHugePage : alignment, bytes) != 0) throw std::bad_alloc();
    if (huge) advise_hugepages(data, bytes);
    return data;
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
    int64_t released_at;  // number of the request before it
  };

  // Frees the blocks that were released first while a limit is exceeded.
  void evict() {
    size_t n = 0;
    for (; n < blocks_.size(); ++n) {
      const Block& oldest = blocks_[n];
      if (cached_bytes_ <= limits_.bytes && blocks_.size() - n <= limits_.blocks &&
          requests_ - oldest.released_at <= limits_.idle_requests)
        break;
      cached_bytes_ -= oldest.bytes;
      std::free(oldest.data);
    }
    if (n > 0) blocks_.erase(blocks_.begin(), blocks_.begin() + std::ptrdiff_t(n));
  }

  Limits limits_;
  std::vector<Block> blocks_;  // in the order of their release
  size_t cached_bytes_ = 0;
  int64_t requests_ = 0;
};

}  // namespace FASTLSTM_ISA
