// Parallel regions over torch's OpenMP threads: how work is partitioned, and the barrier between its phases.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace FASTLSTM_ISA {

// All threads of a region wait until each has arrived. Spins, since steps are microseconds apart, then yields.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void set_single_thread() { threads_ = 1; }
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

// The part number `index` of [0, n) in `parts` of nearly the same size
inline Range split(int64_t n, int index, int parts) { return {n * index / parts, n * (index + 1) / parts}; }

// Thread `index` of the `count` threads that share a piece of work.
struct ThreadRank {
  int index, count;
  // This thread's part of [0, n), in whole units but for the last
  Range split(int64_t n, int64_t unit = 1) const {
    const Range units = FASTLSTM_ISA::split((n + unit - 1) / unit, index, count);
    return {units.from * unit, units.to * unit < n ? units.to * unit : n};
  }
};
inline constexpr ThreadRank kOnlyThread{0, 1};

// by_rows: each thread has rows (sequences) of its own and needs no barrier in the recurrence. Otherwise each thread
// has units of its own, all rows are shared, and every step ends with a barrier.
struct Partition {
  int threads;
  bool by_rows;
  ThreadRank rank(int thread) const { return {thread, threads}; }
  int unit_threads() const { return by_rows ? 1 : threads; }  // that share a row
  // The thread's rank among those that share its rows
  ThreadRank unit_rank(int thread) const { return by_rows ? kOnlyThread : rank(thread); }
};

// Calls thread(i) for i < partition.threads in parallel. Where OpenMP grants fewer threads (nested regions, thread
// limits), partition and barrier are set to one thread, and thread(0) does all.
template <class Body>
void parallel_region(Partition& partition, Barrier& barrier, Body&& thread) {
  if (partition.threads > 1 && !omp_in_parallel()) {
    bool complete = true;
#pragma omp parallel num_threads(partition.threads)
    {
      if (omp_get_num_threads() == partition.threads)
        thread(omp_get_thread_num());
      else
        complete = false;
    }
    if (complete) return;
  }
  partition = {1, true};
  barrier.set_single_thread();
  thread(0);
}

}  // namespace FASTLSTM_ISA
