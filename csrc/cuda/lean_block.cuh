// Shared by the lean kernels: the passes of a block through time, and the wait for words of other blocks.
#pragma once
#include "lean_layout.h"
#include "memory.cuh"
#include "product.cuh"
#include "rows.cuh"

namespace fastlstm::cuda {

// The rows of one step, in 32 bits: a lean kernel is launched for less than 2^31 rows.
struct StepRows {
  int first, count;
};

// The rows of the step at hand and of its neighbours, at(1) being the next to be processed and at(-1) the last that
// was.
template <bool Dense>
struct NearRows;

template <>
struct NearRows<true> {
  int first, by, count;

  __device__ __forceinline__ NearRows(const Sequence& s, int k, int step)
      : first((s.reverse ? s.T - 1 - k : k) * s.B), by(s.reverse ? -step * s.B : step * s.B), count(s.B) {}
  __device__ __forceinline__ void advance(const Sequence&, int, int) { first += by; }
  __device__ __forceinline__ StepRows at(int steps) const { return {first + steps * by, count}; }
};

template <>
struct NearRows<false> {
  StepRows rows[5];

  static __device__ __forceinline__ StepRows of(const Sequence& s, int k) {
    const Rows all = rows_of(s, k);
    return {int(all.first), all.count};
  }
  __device__ __forceinline__ NearRows(const Sequence& s, int k, int step) {
#pragma unroll
    for (int i = 0; i < 5; ++i) rows[i] = of(s, k + (i - 1) * step);
  }
  // On to step k.
  __device__ __forceinline__ void advance(const Sequence& s, int k, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = rows[i + 1];
    rows[4] = of(s, k + 3 * step);
  }
  __device__ __forceinline__ StepRows at(int steps) const {
    StepRows found = rows[0];
#pragma unroll
    for (int i = 1; i < 5; ++i)
      if (steps == i - 1) found = rows[i];
    return found;
  }
};

// Loads the words at from[t] + i * Step, for Spans i of each of Tiles rows t, and waits for those rows that other
// blocks of this launch write (`waits`). All loads are issued before the first is tested: one round trip through L2.
// Only words that are not there yet are loaded again: polling takes L2 bandwidth from the blocks that send. The lane
// has `count` spans, at least Sure of them; zeros are in the place of the others.
//
// Every wait ends: it is for words of an earlier step or (backward) of this step's cells, which their block sends
// before it waits for anything of that step. All blocks of a launch are resident at once (a cooperative launch), so by
// induction over the steps each block comes to send. One block fewer than the planner asked for, and the wait times
// out.
template <int Tiles, int Spans, int Sure, int Step>
__device__ __forceinline__ void await_words(uint4 (&v)[Tiles][Spans], const uint32_t* const (&from)[Tiles],
                                            const bool (&waits)[Tiles], int count, bool& timed_out, int* status) {
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
#pragma unroll
    for (int i = 0; i < Spans; ++i) {
      if (i >= Sure) v[t][i] = uint4{0, 0, 0, 0};
      // MUTATE: lean-spans-tail
      if (i < Sure || i < count) v[t][i] = load_relaxed<uint4>(from[t] + i * Step);
    }
  }
  SpinTimeout timeout;
  const auto most = [&] {
    uint32_t all = 0;
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
      // MUTATE: lean-test-every-load
      if (waits[t]) all = larger(all, largest_of(v[t]));
    return all;
  };
  // MUTATE: lean-poll-until-written
  while (most() == kNotWritten && !timed_out && timeout.keep_polling(status, timed_out)) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int i = 0; i < Spans; ++i)
        // MUTATE: lean-poll-again
        if (not_written(v[t][i])) v[t][i] = load_relaxed<uint4>(from[t] + i * Step);
  }
}

// Adds four numbers in pairs.
__device__ __forceinline__ float4 add(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

}  // namespace fastlstm::cuda
