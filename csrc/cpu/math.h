// sigmoid and tanh for SIMD registers, and rounding to the half types.
//
// Both use expm1: y = n ln2 + r with |r| <= ln2 / 2, expm1(y) = 2^n expm1(r) + (2^n - 1), expm1(r) by its series.
//   sigmoid(x) = 1 / (1 + exp(-x)),   tanh(x) = e / (e + 2) with e = expm1(2x)
// so that tanh keeps its relative accuracy near zero. Largest error in units of the last place, |x| <= 80: float32
// sigmoid 1.2, tanh 1.6; float64 sigmoid 2.5, tanh 1. NaN gives NaN; at +-inf: sigmoid 1 and 0, tanh +-1.
#pragma once
#include <cmath>

#include "../kernels.h"
#include "simd.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Rounding;

template <class R>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int degree = 7, mantissa = 23;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr int32_t one_bits = 0x3f800000;
  // exp(-x) is infinite at the lower limit, where torch's sigmoid is 0 too; above the upper one it is below 1e-37
  static constexpr float sigmoid_low = -89.0f, sigmoid_high = 87.0f, tanh_limit = 10.0f;
};
template <>
struct ExpConstants<double> {
  static constexpr int degree = 13, mantissa = 52;
  static constexpr double magic = 6755399441055744.0;
  static constexpr double ln2_hi = 6.93145751953125e-1, ln2_lo = 1.42860682030941723212e-6;
  static constexpr int64_t one_bits = 0x3ff0000000000000;
  static constexpr double sigmoid_low = -710.0, sigmoid_high = 708.0, tanh_limit = 20.0;
};

constexpr double inverse_factorial(int n) { return n <= 1 ? 1.0 : inverse_factorial(n - 1) / n; }

// 1/2! + r/3! + ... up to r^(degree - 2) / degree!, by Horner
template <int n, class V>
FASTLSTM_INLINE V exp_tail(const V& r) {
  using R = typename V::Real;
  if constexpr (n == ExpConstants<R>::degree) {
    return V(R(inverse_factorial(n)));
  } else {
    return exp_tail<n + 1>(r) * r + V(R(inverse_factorial(n)));
  }
}

// y = n ln2 + r: sets scale = 2^n and returns expm1(r). V: Vec or VecArray.
template <class V>
FASTLSTM_INLINE V reduced_expm1(const V& y, V& scale) {
  using R = typename V::Real;
  using C = ExpConstants<R>;
  const V shifted = y * V(R(1.4426950408889634)) + V(C::magic);
  const V n = shifted - V(C::magic);
  const V r = (y - n * V(C::ln2_hi)) - n * V(C::ln2_lo);
  scale = map(shifted, [](const Vec<R>& v) FASTLSTM_INLINE_LAMBDA {
    using Int = typename Vec<R>::Int;
    const Int bits = (((Int)v.v) << C::mantissa) + C::one_bits;
    return Vec<R>((typename Vec<R>::Raw)bits);
  });
  return exp_tail<2>(r) * (r * r) + r;
}

struct Math {
  template <class V>
  static FASTLSTM_INLINE V sigmoid(const V& x) {
    using R = typename V::Real;
    V scale;
    using C = ExpConstants<R>;
    const V p = reduced_expm1(V(R(0)) - limited(x, C::sigmoid_low, C::sigmoid_high), scale);
    return V(R(1)) / (V(R(1)) + (p + V(R(1))) * scale);  // p * scale + scale would be inf - inf at the lower limit
  }
  template <class V>
  static FASTLSTM_INLINE V tanh(const V& x) {
    using R = typename V::Real;
    const V y = limited(x, -ExpConstants<R>::tanh_limit, ExpConstants<R>::tanh_limit), one(R(1)), two(R(2));
    V scale;
    const V p = reduced_expm1(y + y, scale);
    const V e = p * scale + (scale - one);
    const V q = e / (e + two);
    if constexpr (sizeof(R) == 4) return q;
    // float64 is the reference for the other types: the rounding errors of the sums and the quotient are added back.
    const V a = p * scale, s1 = scale - one, sum = a + s1, from_a = sum - s1;
    const V e_low = (a - from_a) + (s1 - (sum - from_a));
    const V d = sum + two, from_sum = d - two, d_low = (sum - from_sum) + (two - (d - from_sum)) + e_low;
    const V quotient = sum / d;
    return quotient + (multiply_subtract(quotient, d, sum) + (e_low - quotient * d_low)) / d;
  }

 private:
  template <class V>
  static FASTLSTM_INLINE V limited(const V& x, typename V::Real low, typename V::Real high) {
    using R = typename V::Real;
    return map(x, [low, high](const Vec<R>& v) FASTLSTM_INLINE_LAMBDA { return clamp(v, low, high); });
  }
  template <class R, int N>
  static FASTLSTM_INLINE VecArray<R, N> multiply_subtract(const VecArray<R, N>& a, const VecArray<R, N>& b,
                                                          const VecArray<R, N>& c) {
    VecArray<R, N> y;
    for (int i = 0; i < N; ++i) y.vec[i] = multiply_subtract(a.vec[i], b.vec[i], c.vec[i]);
    return y;
  }
  // c - a * b, rounded once
  template <class R>
  static FASTLSTM_INLINE Vec<R> multiply_subtract(Vec<R> a, Vec<R> b, Vec<R> c) {
    Vec<R> r;
    for (int k = 0; k < Vec<R>::width; ++k) r.v[k] = std::fma(-a.v[k], b.v[k], c.v[k]);
    return r;
  }
};

// Round to nearest even to the bits that bfloat16 keeps.
FASTLSTM_INLINE Vec<float> round_bfloat16(Vec<float> x) {
  using Int = Vec<float>::Int;
  const Int u = (Int)x.v;
  const Int rounded = (u + 0x7fff + ((u >> 16) & 1)) & Int(Int{} - 65536);
  return Vec<float>(x.v == x.v ? (Vec<float>::Raw)rounded : x.v);
}

// The same for float16: 11 significant bits, steps of 2^-24 below 2^-14, infinity from 65520 on.
FASTLSTM_INLINE Vec<float> round_float16(Vec<float> x) {
  using Int = Vec<float>::Int;
  using Raw = Vec<float>::Raw;
  const Int u = (Int)x.v;
  const Raw magnitude = (Raw)(u & 0x7fffffff);
  const Int sign = u & Int(Int{} + int32_t(0x80000000u));
  const Raw normal = (Raw)((((Int)magnitude) + 0xfff + ((u >> 13) & 1)) & Int(Int{} - 8192));
  const Raw small = (magnitude + 0.75f) - 0.75f;  // the spacing of floats in [0.5, 1) is 2^-24
  Raw y = magnitude < 6.103515625e-05f ? small : normal;
  y = y >= 65536.0f ? (Raw)(Int{} + 0x7f800000) : y;
  y = (Raw)(((Int)y) | sign);
  return Vec<float>(x.v == x.v ? y : x.v);
}

// h as its type stores it
template <class R>
FASTLSTM_INLINE Vec<R> round_stored(Vec<R> h, Rounding rounding) {
  if constexpr (sizeof(R) == 4) {
    if (rounding == Rounding::bfloat16) return round_bfloat16(h);
    if (rounding == Rounding::float16) return round_float16(h);
  }
  return h;
}

}  // namespace FASTLSTM_ISA
