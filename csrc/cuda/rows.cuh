// The rows of a step, and loads and stores of a few neighbouring numbers, shared by the kernels.
#pragma once
#include "args.h"
#include "types.cuh"

namespace fastlstm::cuda {

// The rows of one step: the first among all N, and how many sequences are running.
struct Rows {
  int64_t first;
  int count;
};

// k may lie outside [0, T): no rows.
__device__ __forceinline__ Rows rows_of(const Sequence& s, int k) {
  if (k < 0 || k >= s.T) return {0, 0};
  const int t = s.reverse ? s.T - 1 - k : k;
  if (!s.offsets) return {int64_t(t) * s.B, s.B};
  const int64_t first = s.offsets[t];
  return {first, int((t + 1 < s.T ? s.offsets[t + 1] : s.N) - first)};
}

__device__ __forceinline__ bool is_reset(const Sequence& s, const Rows& rows, int b) {
  return s.reset && b < rows.count && s.reset[rows.first + b];
}

// V neighbours: V == 1 or, aligned to V * sizeof(T), V == 4.
template <class T, int V>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[V]) {
  if constexpr (V == 1) {
    to[0] = to_float(from[0]);
  } else if constexpr (sizeof(T) == 4) {
    const uint4 w = load_vector<uint4>(from);
    to[0] = __builtin_bit_cast(float, w.x), to[1] = __builtin_bit_cast(float, w.y);
    to[2] = __builtin_bit_cast(float, w.z), to[3] = __builtin_bit_cast(float, w.w);
  } else {
    const uint2 w = load_vector<uint2>(from);
    to[0] = to_float(T{uint16_t(w.x)}), to[1] = to_float(T{uint16_t(w.x >> 16)});
    to[2] = to_float(T{uint16_t(w.y)}), to[3] = to_float(T{uint16_t(w.y >> 16)});
  }
}

template <class T, int V>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[V]) {
  if constexpr (V == 1) {
    to[0] = from_float<T>(from[0]);
  } else if constexpr (sizeof(T) == 4) {
    const auto word = [&](int i) { return __builtin_bit_cast(uint32_t, from[i]); };
    store_vector(to, uint4{word(0), word(1), word(2), word(3)});
  } else {
    const auto word = [&](int i) {
      return uint32_t(from_float<T>(from[i]).bits) | uint32_t(from_float<T>(from[i + 1]).bits) << 16;
    };
    store_vector(to, uint2{word(0), word(2)});
  }
}

}  // namespace fastlstm::cuda
