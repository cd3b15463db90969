// One draw of a block from a row of scores: temperature, top-k, top-p, then Gumbel-max with a counter-based generator,
// as csrc/cpu/sampler.h, whose noise this is, in float. Ids are compared by (score, lower id first): of a score and its
// id one number is made, so that no two are equal and a maximum is an id.
#pragma once
#include "decode_args.h"
#include "types.cuh"

namespace fastlstm::cuda {

// Grows with x; NaN is the largest. Zeros of both signs are equal.
__device__ __forceinline__ uint32_t order_of(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __builtin_bit_cast(uint32_t, x + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
constexpr uint32_t kInfinityOrder = 0xff800000u, kMinusInfinityOrder = 0x007fffffu;

__device__ __forceinline__ uint64_t ranked(float x, int id) {
  return uint64_t(order_of(x)) << 32 | (0xffffffffu - uint32_t(id));
}
__device__ __forceinline__ int id_of(uint64_t rank) { return int(0xffffffffu - uint32_t(rank)); }

// Philox4x32-10 (Salmon et al. 2011): the word of id v for stream b at a position.
__device__ __forceinline__ uint32_t philox(uint64_t seed, uint64_t position, uint32_t stream, int v) {
  uint32_t x[4] = {uint32_t(v) / 4, uint32_t(position), stream, uint32_t(position >> 32)};
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(x[0]) * 0xD2511F53u, b = uint64_t(x[2]) * 0xCD9E8D57u;
    const uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ key[1],
                              uint32_t(a)};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = next[i];
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return v % 4 < 2 ? (v % 4 ? x[1] : x[0]) : (v % 4 == 2 ? x[2] : x[3]);
}

// -log(-log(u)) with u = (word + 1/2) / 2^32. Near 1 the inner logarithm is taken of 1 - u, which keeps its digits.
__device__ __forceinline__ float gumbel(uint32_t word) {
  const bool low = word < 0x80000000u;
  const float x = (float(low ? word : ~word) + 0.5f) * 0x1p-32f;
  return -logf(low ? -logf(x) : -log1pf(-x));
}

// A block's draws; `scores` (V,) and `scratch` (2 warps' words) are in shared memory.
struct Draw {
  const DecodeArgs& p;
  const float* scores;
  uint64_t* scratch;
  int parity = 0;

  // Combines two numbers of each thread of the block; all threads get the results. Two halves of the scratch in turn: a
  // half is written again only behind the barrier that follows its last reads.
  struct Pair {
    uint64_t a, b;
  };
  template <class Combine>
  __device__ __forceinline__ Pair reduce(Pair own, Combine combine) {
    const auto other = [](uint64_t x, int by) {
      const uint32_t low = __shfl_xor_sync(0xffffffffu, uint32_t(x), by);
      return uint64_t(__shfl_xor_sync(0xffffffffu, uint32_t(x >> 32), by)) << 32 | low;
    };
#pragma unroll
    for (int by = 16; by > 0; by /= 2) own = {combine(own.a, other(own.a, by)), combine(own.b, other(own.b, by))};
    Pair* of_warps = reinterpret_cast<Pair*>(scratch) + parity * kDecodeWarps;
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
    // MUTATE: decode-reduce-barrier
    __syncthreads();
    own = of_warps[0];
#pragma unroll
    for (int w = 1; w < kDecodeWarps; ++w) own = {combine(own.a, of_warps[w].a), combine(own.b, of_warps[w].b)};
    parity ^= 1;
    return own;
  }
  __device__ __forceinline__ Pair largest_ranks(uint64_t a, uint64_t b) {
    return reduce({a, b}, [](uint64_t x, uint64_t y) { return x > y ? x : y; });
  }
  __device__ __forceinline__ Pair sums(uint64_t a, uint64_t b) {
    return reduce({a, b}, [](uint64_t x, uint64_t y) { return x + y; });
  }

  // f(id) for the thread's ids.
  template <class F>
  __device__ __forceinline__ void for_own_ids(F f) const {
#pragma unroll 1
    for (int v = int(threadIdx.x); v < p.V; v += kDecodeThreads) f(v);
  }

  // exp(x) for x up to 0 with 40 bits behind the point: sums of such do not depend on their order.
  static __device__ __forceinline__ uint64_t weight(float x) { return uint64_t(expf(x) * 0x1p40f); }
  __device__ __forceinline__ float key(int v, float top) const { return (scores[v] - top) / p.temperature; }

  // What ids of rank `least` and above have together: how many they are and, above that, their weights.
  struct Together {
    uint64_t count, weight;
  };
  __device__ __forceinline__ Together from(uint64_t least, const int32_t* next, float top) {
    uint64_t count = 0, all = 0;
    for_own_ids([&](int v) {
      if (rank(v, next) < least) return;
      ++count;
      all += weight(key(v, top));
    });
    const Pair of_block = sums(count, all);
    return {of_block.a, of_block.b};
  }

  // The largest rank from which on `enough` holds, between one that has it and one above all ids. Each step halves the
  // ranks in between; it ends where one id is left between the two.
  template <class Enough>
  __device__ __forceinline__ uint64_t cut(uint64_t low, const int32_t* next, float top, Enough enough) {
    Together of_low = from(low, next, top), of_high{0, 0};
    uint64_t high = ~uint64_t(0);
    // MUTATE: decode-cut-end
    while (of_low.count - of_high.count > 1) {
      const uint64_t middle = low + (high - low) / 2;
      const Together of_middle = from(middle, next, top);
      // MUTATE: decode-cut-side
      if (enough(of_middle))
        low = middle, of_low = of_middle;
      else
        high = middle, of_high = of_middle;
    }
    return low;
  }

  // 0: forbidden.
  __device__ __forceinline__ uint64_t rank(int v, const int32_t* next) const {
    // MUTATE: decode-forbidden
    return next && next[v] < 0 ? 0 : ranked(scores[v], v);
  }

  // An id, or -2 where a score is NaN or +inf or none is left. next: (V,), below 0 where an id is forbidden, or null.
  __device__ __forceinline__ int draw(const int32_t* next, uint64_t position, uint32_t stream) {
    uint64_t worst = 0, best = 0;
    for_own_ids([&](int v) {
      const uint64_t all = ranked(scores[v], v), allowed = rank(v, next);
      worst = all > worst ? all : worst;
      best = allowed > best ? allowed : best;
    });
    const Pair largest = largest_ranks(worst, best);
    worst = largest.a, best = largest.b;
    if (uint32_t(worst >> 32) >= kInfinityOrder || uint32_t(best >> 32) <= kMinusInfinityOrder) return -2;
    if (p.temperature == 0) return id_of(best);
    const float top = scores[id_of(best)];
    uint64_t least = 1;
    if (p.top_k > 0 && p.top_k < p.V) {
      const uint64_t most = uint64_t(p.top_k);
      // MUTATE: decode-top-k
      if (from(least, next, top).count > most)
        least = cut(least, next, top, [&](const Together& t) { return t.count >= most; });
    }
    if (p.top_p < 1) {
      const double wanted = p.top_p * double(from(least, next, top).weight);
      // MUTATE: decode-top-p
      least = cut(least, next, top, [&](const Together& t) { return double(t.weight) >= wanted; });
    }
    uint64_t chosen = 0;
    for_own_ids([&](int v) {
      const uint64_t own = rank(v, next);
      // MUTATE: decode-least
      if (own == 0 || own < least) return;
      const uint64_t noisy = ranked(key(v, top) + gumbel(philox(p.seed, position, stream, v)), v);
      chosen = noisy > chosen ? noisy : chosen;
    });
    return id_of(largest_ranks(chosen, 0).a);
  }

  // log softmax of the scores (temperature 1, nothing forbidden) at an id.
  __device__ __forceinline__ float log_probability(int id) {
    uint64_t best = 0, all = 0;
    for_own_ids([&](int v) {
      const uint64_t own = ranked(scores[v], v);
      best = own > best ? own : best;
    });
    const float top = scores[id_of(largest_ranks(best, 0).a)];
    for_own_ids([&](int v) { all += weight(scores[v] - top); });
    return scores[id] - top - logf(float(sums(all, 0).a) * 0x1p-40f);
  }
};

}  // namespace fastlstm::cuda
