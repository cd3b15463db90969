// Rows of float as int8 with one scale a row: the left sides of int8 products.
//
//   scale = max|row| / 127,  q = row * (127 / max|row|), rounded half to even
//
// A row below 2^-100 counts as zeros: scale 0, q 0. A row that holds NaN or infinity has the scale NaN and q 0, so that
// what is computed from it is NaN. The file is compiled without fused multiply-adds (CMakeLists.txt): every instruction
// set then rounds alike, and a row has the same integers everywhere.
#pragma once
#include <limits>

#include "simd.h"

namespace FASTLSTM_ISA {

// Products run over whole groups of this many k; what is past the last k is zero.
inline constexpr int64_t kInt8Depth = 64;
inline int64_t int8_depth(int64_t k) { return (k + kInt8Depth - 1) / kInt8Depth * kInt8Depth; }

// The largest of the magnitudes of x[0 ... n), as the bits of a float: they order as the numbers do, infinity and NaN
// above all others.
inline int32_t largest_bits(const float* x, int64_t n) {
  using V = Vec<float>;
  constexpr int width = V::width;
  V::Int most[2] = {};
  int64_t k = 0;
  for (; k + 2 * width <= n; k += 2 * width)
    for (int i = 0; i < 2; ++i) {
      const V::Int bits = (V::Int)V::load(x + k + i * width).v & 0x7fffffff;
      most[i] = bits > most[i] ? bits : most[i];
    }
  for (; k < n; k += width) {
    const V::Int bits = (V::Int)V::load(x + k, n - k).v & 0x7fffffff;
    most[0] = bits > most[0] ? bits : most[0];
  }
  int32_t largest = 0;
  for (int i = 0; i < 2; ++i)
    for (int lane = 0; lane < width; ++lane) largest = most[i][lane] > largest ? most[i][lane] : largest;
  return largest;
}

// q[0 ... int8_depth(n)) and the scale of x[0 ... n)
inline float quantise_row(const float* x, int64_t n, int8_t* q) {
  using V = Vec<float>;
  typedef int8_t Bytes __attribute__((vector_size(V::width)));
  constexpr int32_t kSmallest = 0x0d800000, kInfinity = 0x7f800000;  // 2^-100
  const int64_t depth = int8_depth(n);
  const int32_t bits = largest_bits(x, n);
  if (bits < kSmallest || bits >= kInfinity) {
    std::memset(q, 0, size_t(depth));
    return bits < kSmallest ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  const V inverse(127.0f / largest), magic(12582912.0f);  // 1.5 * 2^23: a sum holds the rounded number in its low bits
  const auto rounded = [&](const V& v) FASTLSTM_INLINE_LAMBDA {
    return __builtin_convertvector((V::Int)(v * inverse + magic).v - 0x4b400000, Bytes);
  };
  int64_t k = 0;
  for (; k + V::width <= n; k += V::width) {
    const Bytes bytes = rounded(V::load(x + k));
    std::memcpy(q + k, &bytes, sizeof(bytes));
  }
  for (; k < depth; k += V::width) {
    const Bytes bytes = rounded(V::load(x + k, n > k ? n - k : 0));
    std::memcpy(q + k, &bytes, sizeof(bytes));
  }
  return largest / 127.0f;
}

}  // namespace FASTLSTM_ISA
