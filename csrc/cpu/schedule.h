// The order in which a recurrence takes the steps of a sequence, and the rows that are active in each.
#pragma once
#include <algorithm>
#include <vector>

#include "../kernels.h"
#include "threading.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Shape;

struct Schedule {
  const Shape& s;
  std::vector<int64_t> offset;  // (T + 1,) first row of each step
  std::vector<int64_t> length;  // (B,) steps of each row

  explicit Schedule(const Shape& shape) : s(shape), offset(size_t(shape.T) + 1, 0), length(size_t(shape.B), 0) {
    for (int64_t t = 0; t < s.T; ++t) {
      offset[size_t(t) + 1] = offset[size_t(t)] + active(t);
      for (int64_t b = active(t) - 1; b >= 0 && length[size_t(b)] < t + 1; --b) length[size_t(b)] = t + 1;
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
  int64_t rows() const { return offset.back(); }  // N, of all steps together
  int64_t active(int64_t t) const { return s.batch_sizes ? s.batch_sizes[t] : s.B; }
  // The number of rows of `range` that are active at time t
  int64_t active_in(int64_t t, Range range) const {
    const int64_t to = std::min(range.to, active(t));
    return to > range.from ? to - range.from : 0;
  }
  int64_t time(int64_t k) const { return s.reverse ? s.T - 1 - k : k; }  // of the k-th step processed
  int64_t row(int64_t t, int64_t b) const { return offset[size_t(t)] + b; }
  int64_t previous_row(int64_t t, int64_t b) const { return row(t + (s.reverse ? 1 : -1), b); }  // not of the first
  bool is_first(int64_t t, int64_t b) const { return s.reverse ? t == length[size_t(b)] - 1 : t == 0; }
  bool is_last(int64_t t, int64_t b) const { return s.reverse ? t == 0 : t == length[size_t(b)] - 1; }
  bool resets(int64_t t, int64_t b) const { return s.reset && s.reset[row(t, b)]; }

  // Contiguous rows b for a thread, so that all threads have nearly the same number of steps.
  Range rows_of(ThreadRank thread) const {
    const int64_t total = rows(), n = thread.count;
    auto edge = [&](int index) {
      if (index == n) return s.B;
      int64_t b = 0;
      for (int64_t seen = 0; b < s.B && (seen + length[size_t(b)] / 2) * n < total * index; ++b)
        seen += length[size_t(b)];
      return b;
    };
    return {edge(thread.index), edge(thread.index + 1)};
  }
};

// A partition by rows needs enough rows for every thread to amortise reading all weights in each step; half as many if
// the weights stay in a thread's second-level cache.
inline Partition make_partition(const Shape& s, int64_t rows_per_block, int64_t weight_bytes, int64_t unit_blocks) {
  const int64_t flops = 8 * s.B * s.H * s.P;  // of one step
  int64_t threads = s.threads < 1 ? 1 : s.threads;
  if (flops < 8192) threads = 1;  // a barrier costs about as much as such a step
  const int64_t few = weight_bytes > (1 << 20) ? 4 * rows_per_block : rows_per_block;
  if (threads == 1) return {1, true};
  if (s.B >= threads * few || unit_blocks < threads) return {int(threads < s.B ? threads : s.B > 0 ? s.B : 1), true};
  if (s.B >= threads * rows_per_block / 2 && weight_bytes <= (512 << 10)) return {int(threads), true};
  return {int(threads < unit_blocks ? threads : unit_blocks), false};
}

}  // namespace FASTLSTM_ISA
