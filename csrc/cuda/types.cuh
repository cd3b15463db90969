// Number types of the kernels, and the functions of a cell in two accuracies. All arithmetic is float.
#pragma once
#include "../cell.h"
#include "compat.cuh"

namespace fastlstm::cuda {

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};
// float32 whose products run on tensor cores with 10 bits of mantissa; stored as float
struct tf32_t {
  float value;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(tf32_t x) { return x.value; }
__device__ __forceinline__ float to_float(bfloat_t x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
__device__ __forceinline__ float to_float(half_t x) {
  float y;
  PTX_VALUE("cvt.f32.f16 %0, %1;", (OUT_F(y)), (IN_H(x.bits)));
  return y;
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ tf32_t from_float<tf32_t>(float x) {
  return {x};
}
template <>
__device__ __forceinline__ half_t from_float<half_t>(float x) {
  half_t y;
  PTX_VALUE("cvt.rn.f16.f32 %0, %1;", (OUT_H(y.bits)), (IN_F(x)));
  return y;
}
template <>
__device__ __forceinline__ bfloat_t from_float<bfloat_t>(float x) {
#if FASTLSTM_ARCH >= 800
  bfloat_t y;
  PTX_VALUE("cvt.rn.bf16.f32 %0, %1;", (OUT_H(y.bits)), (IN_F(x)));
  return y;
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return {x != x ? uint16_t(0x7fff) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

// The bits of a number, in the low half of the word for half types.
template <class T>
__device__ __forceinline__ uint32_t bits_of(T x) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint32_t, x);
  else
    return x.bits;
}

template <class T>
__device__ __forceinline__ T from_bits(uint32_t bits) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(T, bits);
  else
    return {uint16_t(bits)};
}

// For float: the library's functions, within 2 units in the last place. tanhf is right at ±inf and passes NaN on.
struct Precise {
  static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
};

// For half types: absolute error below 3e-7, far under their rounding; about a third of the instructions. ex2 gives 0
// and inf where it must, rcp(inf) is 0, NaN passes.
struct Fast {
  static __device__ __forceinline__ float sigmoid(float x) {
    float e, y;
    PTX_VALUE("ex2.approx.ftz.f32 %0, %1;", (OUT_F(e)), (IN_F(-1.4426950408889634f * x)));
    PTX_VALUE("rcp.approx.ftz.f32 %0, %1;", (OUT_F(y)), (IN_F(1.0f + e)));
    return y;
  }
  static __device__ __forceinline__ float tanh(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
};

template <class T>
struct MathOf {
  using type = Fast;
};
template <>
struct MathOf<float> {
  using type = Precise;
};
template <>
struct MathOf<tf32_t> {
  using type = Precise;
};

}  // namespace fastlstm::cuda
