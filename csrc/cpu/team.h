// How threads share one recurrence, the barrier they meet at, and the order of steps.
#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "../kernels.h"
#include "pages.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace FASTLSTM_ISA {

using fastlstm::cpu::Shape;

// Scratch memory on a cache-line boundary, not initialised. Blocks go back to a short list of the calling thread and
// are used again: fresh pages cost as much as a tenth of a training step at H = 128.
class Scratch {
 public:
  static void* take(size_t bytes) {
    auto& list = free_list().blocks;
    for (size_t i = list.size(); i-- > 0;)
      if (list[i].bytes == bytes) {
        void* p = list[i].data;
        list.erase(list.begin() + std::ptrdiff_t(i));
        return p;
      }
    void* p = nullptr;
    const bool large = bytes >= 2 * kLargePage;
    if (posix_memalign(&p, large ? kLargePage : 64, bytes) != 0) throw std::bad_alloc();
    if (large) want_large_pages(p, bytes);
    return p;
  }
  static void give(void* p, size_t bytes) {
    auto& list = free_list().blocks;
    if (bytes > kMostBytes) return std::free(p);
    list.push_back({p, bytes});
    size_t kept = 0;
    for (const auto& b : list) kept += b.bytes;
    for (; kept > kMostBytes || list.size() > kMostBlocks; list.erase(list.begin())) {
      kept -= list.front().bytes;
      std::free(list.front().data);
    }
  }

 private:
  static constexpr size_t kMostBytes = size_t(48) << 20, kMostBlocks = 16;  // of a thread
  struct Block {
    void* data;
    size_t bytes;
  };
  struct List {
    std::vector<Block> blocks;
    ~List() {
      for (auto& b : blocks) std::free(b.data);
    }
  };
  static List& free_list() {
    static thread_local List list;
    return list;
  }
};

template <class R>
class Buffer {
 public:
  explicit Buffer(int64_t n) : bytes_(n > 0 ? (size_t(n) * sizeof(R) + 4095) / 4096 * 4096 : 0) {
    if (bytes_) data_ = static_cast<R*>(Scratch::take(bytes_));
  }
  ~Buffer() {
    if (bytes_) Scratch::give(data_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  R* get() const { return data_; }

 private:
  size_t bytes_;
  R* data_ = nullptr;
};

// All threads of a team wait for each other. Spins, since steps are microseconds apart, then yields.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void alone() { threads_ = 1; }
  void wait() {
    if (threads_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
#if defined(__x86_64__)
      _mm_pause();
#endif
      if (spins > 2000) sched_yield();
    }
  }

 private:
  int threads_;
  std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

struct Range {
  int64_t from, to;
};

// The steps of a sequence in the order of processing, and which rows live in each.
struct Steps {
  const Shape& s;
  std::vector<int64_t> offset;  // (T + 1,) first row of each step
  std::vector<int64_t> length;  // (B,) steps of each row

  explicit Steps(const Shape& shape) : s(shape), offset(size_t(shape.T) + 1, 0), length(size_t(shape.B), 0) {
    for (int64_t t = 0; t < s.T; ++t) {
      offset[size_t(t) + 1] = offset[size_t(t)] + alive(t);
      for (int64_t b = alive(t) - 1; b >= 0 && length[size_t(b)] < t + 1; --b) length[size_t(b)] = t + 1;
    }
    if (!s.batch_sizes) {
      for (auto& n : length) n = s.T;
    } else {
      int64_t t = s.T;
      for (int64_t b = 0; b < s.B; ++b) {
        while (t > 0 && s.batch_sizes[t - 1] <= b) --t;
        length[size_t(b)] = t;
      }
    }
  }
  int64_t alive(int64_t t) const { return s.batch_sizes ? s.batch_sizes[t] : s.B; }
  // Of the rows `which`, how many live at time t
  int64_t living(int64_t t, Range which) const {
    const int64_t to = std::min(which.to, alive(t));
    return to > which.from ? to - which.from : 0;
  }
  int64_t time(int64_t k) const { return s.reverse ? s.T - 1 - k : k; }  // the k-th step processed
  int64_t row(int64_t t, int64_t b) const { return offset[size_t(t)] + b; }
  bool is_first(int64_t t, int64_t b) const { return s.reverse ? t == length[size_t(b)] - 1 : t == 0; }
  bool is_last(int64_t t, int64_t b) const { return s.reverse ? t == 0 : t == length[size_t(b)] - 1; }
  bool resets(int64_t t, int64_t b) const { return s.reset && s.reset[row(t, b)]; }

  // Contiguous rows for thread i of n, so that the steps of all rows together are shared evenly.
  Range rows_of(int i, int n) const {
    const int64_t total = offset[size_t(s.T)];
    auto edge = [&](int part) {
      if (part == n) return s.B;
      int64_t b = 0;
      for (int64_t seen = 0; b < s.B && (seen + length[size_t(b)] / 2) * n < total * part; ++b)
        seen += length[size_t(b)];
      return b;
    };
    return {edge(i), edge(i + 1)};
  }
};

inline Range share(int64_t n, int i, int parts) { return {n * i / parts, n * (i + 1) / parts}; }

// Either every thread has rows of its own and never waits (split_rows), or all share the rows, own unit blocks, and
// meet after every step.
struct Plan {
  int threads;
  bool split_rows;
};

// A thread splits rows when that leaves it enough of them to amortise reading all weights in each step.
inline Plan make_plan(const Shape& s, int64_t rows_per_block, int64_t weight_bytes, int64_t unit_blocks) {
  const int64_t flops = 8 * s.B * s.H * s.P;  // of one step
  int64_t threads = s.threads < 1 ? 1 : s.threads;
  if (flops < 8192) threads = 1;  // a barrier costs about as much as such a step
  const int64_t few = weight_bytes > (1 << 20) ? 4 * rows_per_block : rows_per_block;
  if (threads == 1) return {1, true};
  if (s.B >= threads * few || unit_blocks < threads) return {int(threads < s.B ? threads : s.B > 0 ? s.B : 1), true};
  if (s.B >= threads * rows_per_block / 2 && flops < 2000000) return {int(threads), true};
  return {int(threads < unit_blocks ? threads : unit_blocks), false};
}

// Runs pass.thread(i) on plan.threads threads, or on one where OpenMP grants fewer (nested regions, thread limits).
template <class Pass>
void run_team(Plan& plan, Barrier& barrier, Pass&& thread) {
  if (plan.threads > 1 && !omp_in_parallel()) {
    bool complete = true;
#pragma omp parallel num_threads(plan.threads)
    {
      if (omp_get_num_threads() == plan.threads)
        thread(omp_get_thread_num());
      else
        complete = false;
    }
    if (complete) return;
  }
  plan = {1, true};
  barrier.alone();
  thread(0);
}

}  // namespace FASTLSTM_ISA
