// A register of reals, by the compiler's vector extensions: one source for every instruction set.
// Compiled once per instruction set (FASTLSTM_VECTOR_BYTES 16, 32 or 64) inside a namespace of its own.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace FASTLSTM_ISA {

template <class R>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  using Word = int32_t;
};
template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  using Word = int64_t;
};

#define FASTLSTM_INLINE inline __attribute__((always_inline))
#define FASTLSTM_INLINE_LAMBDA __attribute__((always_inline))

// Vec<R> wraps the raw register so that V(1.0f) broadcasts, as it does for a plain float.
template <class R>
struct Vec {
  using Real = R;
  using Raw = typename Lanes<R>::Vec;
  using Int = typename Lanes<R>::Int;
  static constexpr int width = FASTLSTM_VECTOR_BYTES / int(sizeof(R));
  Raw v;
  Vec() = default;
  FASTLSTM_INLINE Vec(Raw raw) : v(raw) {}
  // x - 0 is x, bit for bit, so this compiles to one broadcast (0 + x would not: it turns -0 into 0)
  FASTLSTM_INLINE explicit Vec(R x) : v(x - Raw{}) {}
  static FASTLSTM_INLINE Vec load(const R* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  FASTLSTM_INLINE void store(R* p) const { std::memcpy(p, &v, sizeof(v)); }
  // Bypasses the caches: for memory that is not read again soon. p must be aligned to the register.
  FASTLSTM_INLINE void store_nontemporal(R* p) const {
#if FASTLSTM_VECTOR_BYTES == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif FASTLSTM_VECTOR_BYTES == 32
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
    store(p);
#endif
  }
  // The first n lanes (the rest read as zero); n >= width is the plain load.
  static FASTLSTM_INLINE Vec load(const R* p, int64_t n) {
    if (n >= width) return load(p);
    R lanes[width] = {};
    for (int64_t k = 0; k < n; ++k) lanes[k] = p[k];
    return load(lanes);
  }
  FASTLSTM_INLINE void store(R* p, int64_t n) const {
    if (n >= width) return store(p);
    R lanes[width];
    store(lanes);
    for (int64_t k = 0; k < n; ++k) p[k] = lanes[k];
  }
  // `whole`: all lanes exist, known at compile time
  template <bool whole>
  static FASTLSTM_INLINE Vec load_some(const R* p, int64_t n) {
    return whole ? load(p) : load(p, n);
  }
  template <bool whole>
  FASTLSTM_INLINE void store_some(R* p, int64_t n) const {
    whole ? store(p) : store(p, n);
  }
  friend FASTLSTM_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FASTLSTM_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FASTLSTM_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FASTLSTM_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  FASTLSTM_INLINE Vec& operator+=(Vec b) {
    v += b.v;
    return *this;
  }
};

// After `store_nontemporal`, before another thread reads that memory
FASTLSTM_INLINE void nontemporal_fence() {
#if FASTLSTM_VECTOR_BYTES > 16
  _mm_sfence();
#endif
}

// N registers that take the same operations side by side. One sigmoid is a chain of dependent operations and leaves
// most of a core idle; four chains fill it (a cell takes 14 ns instead of 23 with AVX2 on a Zen 4).
template <class R, int N>
struct VecArray {
  using Real = R;
  Vec<R> vec[N];
  VecArray() = default;
  FASTLSTM_INLINE explicit VecArray(R x) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) vec[i] = Vec<R>(x);
  }
#define FASTLSTM_VEC_ARRAY(op)                                                           \
  friend FASTLSTM_INLINE VecArray operator op(const VecArray& a, const VecArray& b) {    \
    VecArray y;                                                                          \
    _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) y.vec[i] = a.vec[i] op b.vec[i]; \
    return y;                                                                            \
  }
  FASTLSTM_VEC_ARRAY(+)
  FASTLSTM_VEC_ARRAY(-)
  FASTLSTM_VEC_ARRAY(*)
  FASTLSTM_VEC_ARRAY(/)
#undef FASTLSTM_VEC_ARRAY
};

// f applied to a register, or to each register of an array
template <class R, class F>
FASTLSTM_INLINE Vec<R> map(const Vec<R>& x, F f) {
  return f(x);
}
template <class R, int N, class F>
FASTLSTM_INLINE VecArray<R, N> map(const VecArray<R, N>& x, F f) {
  VecArray<R, N> y;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) y.vec[i] = f(x.vec[i]);
  return y;
}

// x limited to [low, high]; NaN stays NaN (the comparison is false for it).
template <class R>
FASTLSTM_INLINE Vec<R> clamp(Vec<R> x, R low, R high) {
#if FASTLSTM_VECTOR_BYTES == 64
  if constexpr (sizeof(R) == 4)
    return Vec<R>(_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x.v)));
  else
    return Vec<R>(_mm512_min_pd(_mm512_set1_pd(high), _mm512_max_pd(_mm512_set1_pd(low), x.v)));
#elif FASTLSTM_VECTOR_BYTES == 32
  if constexpr (sizeof(R) == 4)
    return Vec<R>(_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x.v)));
  else
    return Vec<R>(_mm256_min_pd(_mm256_set1_pd(high), _mm256_max_pd(_mm256_set1_pd(low), x.v)));
#else
  const auto hi = Vec<R>(high).v, lo = Vec<R>(low).v;
  auto y = x.v < lo ? lo : x.v;
  return Vec<R>(y > hi ? hi : y);
#endif
}

template <class R>
FASTLSTM_INLINE R sum(Vec<R> x) {
  R lanes[Vec<R>::width];
  x.store(lanes);
  for (int half = Vec<R>::width / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return lanes[0];
}

}  // namespace FASTLSTM_ISA
