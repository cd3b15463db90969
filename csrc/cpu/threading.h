// Parallel regions over torch's OpenMP threads: how work is partitioned, and the barrier between its phases.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <stdexcept>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace FASTLSTM_ISA {

// All threads of a region wait until each has arrived. Spins, since steps are microseconds apart, then yields. A thread
// that cannot go on abandons the barrier: every other thread that waits, or comes to wait, throws std::bad_alloc.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void set_single_thread() { threads_ = 1; }
  void abandon() { phase_.store(kAbandoned, std::memory_order_release); }
  void wait() {
    if (threads_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (phase == kAbandoned) throw std::bad_alloc();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store((phase + 1) & kLastPhase, std::memory_order_release);
      return;
    }
    int now;
    for (int spins = 0; (now = phase_.load(std::memory_order_acquire)) == phase; ++spins) {
#if defined(__x86_64__)
      _mm_pause();
#endif
      if (spins > 2000) sched_yield();
    }
    if (now == kAbandoned) throw std::bad_alloc();
  }

 private:
  static constexpr int kAbandoned = -1, kLastPhase = 0x3fffffff;
  int threads_;
  std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

// Calls work() in a parallel region, where an exception must not leave the thread: notes that memory ran out.
template <class Work>
void note_bad_alloc(std::atomic<bool>& failed, Work&& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    failed.store(true, std::memory_order_relaxed);
  } catch (const std::length_error&) {  // of a std::vector
    failed.store(true, std::memory_order_relaxed);
  }
}

// Calls piece(i) for i < count, on up to `threads` threads. Throws std::bad_alloc where a piece ran out of memory.
template <class Piece>
void parallel_for(int64_t count, int64_t threads, Piece&& piece) {
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(int(threads)) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) note_bad_alloc(failed, [&] { piece(i); });
  if (failed.load()) throw std::bad_alloc();
}

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
// limits), partition and barrier are set to one thread, and thread(0) does all. Throws std::bad_alloc where a thread
// ran out of memory; the others stop at their next barrier.
template <class Body>
void parallel_region(Partition& partition, Barrier& barrier, Body&& thread) {
  if (partition.threads > 1 && !omp_in_parallel()) {
    bool complete = true;
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads(partition.threads)
    {
      if (omp_get_num_threads() != partition.threads)
        complete = false;
      else
        note_bad_alloc(failed, [&] {
          try {
            thread(omp_get_thread_num());
          } catch (...) {
            barrier.abandon();
            throw;
          }
        });
    }
    if (failed.load()) throw std::bad_alloc();
    if (complete) return;
  }
  partition = {1, true};
  barrier.set_single_thread();
  thread(0);
}

}  // namespace FASTLSTM_ISA
