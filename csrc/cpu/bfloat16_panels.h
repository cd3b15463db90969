// bfloat16 numbers in registers, and matrices packed for products of pairs.
//
// The multiply instructions (AMX's tdpbf16ps, AVX512-BF16's vdpbf16ps) add the products of two neighbours along k to
// one float. A right side is packed so that the two lie in one 32-bit word. A panel is 32 columns; for each block of 32
// k it holds two squares of 16 pairs x 16 columns, columns 0 ... 15 and 16 ... 31. A left side lies in rows along k,
// with zeros up to a whole block. What is past the last k or column is zero on both sides.
#pragma once
#include <immintrin.h>

#include "simd.h"
#include "workspace.h"

namespace FASTLSTM_ISA {

using bfloat16 = uint16_t;  // its bits

constexpr int kPanelColumns = 32, kBlockDepth = 32;
constexpr int64_t kSquare = 16 * 32, kPanelBlock = 2 * kSquare;  // numbers of a square, and of a panel for one block
inline int64_t blocks_of(int64_t k) { return (k + kBlockDepth - 1) / kBlockDepth; }
inline int64_t panels_of(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }
inline int64_t padded_depth(int64_t k) { return blocks_of(k) * kBlockDepth; }

// The first n of the lanes, 16 or 32
inline __mmask16 first_16(int64_t n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n > 0 ? n : 0)) - 1); }
inline __mmask32 first_32(int64_t n) {
  return n >= 32 ? __mmask32(0xffffffff) : __mmask32((1u << (n > 0 ? n : 0)) - 1);
}

FASTLSTM_INLINE __m512 widen(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// To the nearest, ties to even; numbers below 2^-126 become 0.
FASTLSTM_INLINE __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

FASTLSTM_INLINE Vec<float> load_bfloat16(const bfloat16* p) {
  return Vec<float>(widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
FASTLSTM_INLINE Vec<float> load_bfloat16(const bfloat16* p, int64_t n) {
  return Vec<float>(widen(_mm256_maskz_loadu_epi16(first_16(n), p)));
}
FASTLSTM_INLINE void store_bfloat16(Vec<float> x, bfloat16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x.v));
}
FASTLSTM_INLINE void store_bfloat16(Vec<float> x, bfloat16* p, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_16(n), narrow(x.v));
}

// The first n of 16 or of 32 numbers as bfloat16, the rest zero
FASTLSTM_INLINE __m256i load_16(const bfloat16* p, int64_t n) { return _mm256_maskz_loadu_epi16(first_16(n), p); }
FASTLSTM_INLINE __m256i load_16(const float* p, int64_t n) { return narrow(_mm512_maskz_loadu_ps(first_16(n), p)); }
FASTLSTM_INLINE __m512i load_32(const bfloat16* p, int64_t n) { return _mm512_maskz_loadu_epi16(first_32(n), p); }
FASTLSTM_INLINE __m512i load_32(const float* p, int64_t n) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(first_16(n - 16), p + 16),
                                      _mm512_maskz_loadu_ps(first_16(n), p));
}

// Writes a result as its type
FASTLSTM_INLINE void store_16(Vec<float> x, float* p, int64_t n) { _mm512_mask_storeu_ps(p, first_16(n), x.v); }
FASTLSTM_INLINE void store_16(Vec<float> x, bfloat16* p, int64_t n) { store_bfloat16(x, p, n); }

// 16 registers of 16 words, transposed
FASTLSTM_INLINE void transpose_words(__m512i (&r)[16]) {
  __m512i s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4;
       ++i) {  // lanes of 128 bits: column i, 4 + i, 8 + i, 12 + i of rows 0 ... 3, 4 ... 7, and so on
    s[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    s[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    s[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    s[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(s[i], s[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0xdd);
  }
}

FASTLSTM_INLINE void store_words(const __m512i (&r)[16], bfloat16* to, int64_t stride) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * stride, r[i]);
}

// Words of 16 pairs of rows: word c of register p holds number c of the rows 2p and 2p + 1. row(n): where 16 numbers of
// row n begin, of which the first `columns` count; null: a row of zeros.
template <class Row>
FASTLSTM_INLINE void load_pairs(__m512i (&r)[16], Row row, int64_t columns) {
  const auto half = [&](int n) {
    const auto* from = row(n);
    return from ? _mm512_cvtepu16_epi32(load_16(from, columns)) : _mm512_setzero_si512();
  };
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) r[p] = _mm512_or_si512(half(2 * p), _mm512_slli_epi32(half(2 * p + 1), 16));
}

// A panel whose columns are `count` rows of w, each of K numbers, `stride` apart.
template <class W>
void pack_panel_of_rows(const W* w, int64_t stride, int64_t count, int64_t K, bfloat16* panel) {
  for (int64_t k = 0; k < K; k += kBlockDepth)
    for (int64_t u0 = 0; u0 < kPanelColumns; u0 += 16, panel += kSquare) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int u = 0; u < 16; ++u)
        r[u] = u0 + u < count ? load_32(w + (u0 + u) * stride + k, K - k) : _mm512_setzero_si512();
      transpose_words(r);
      store_words(r, panel, 32);
    }
}

// A panel of the columns from u0 on of a matrix with K rows of `columns` numbers; row(k): where row k begins, or null:
// a row of zeros.
template <class Row>
void pack_panel_of_columns(Row row, int64_t u0, int64_t columns, int64_t K, bfloat16* panel) {
  for (int64_t k = 0; k < K; k += kBlockDepth)
    for (int64_t u = u0; u < u0 + kPanelColumns; u += 16, panel += kSquare) {
      __m512i r[16];
      load_pairs(
          r,
          [&](int n) {
            const auto* from = k + n < K ? row(k + n) : nullptr;
            return from && u < columns ? from + u : nullptr;
          },
          columns - u);
      store_words(r, panel, 32);
    }
}

// 16 columns from u0 on of a matrix with N rows, as 16 rows `stride` apart of N numbers and zeros up to a whole block.
template <class Row>
void pack_transposed(Row row, int64_t u0, int64_t columns, int64_t N, bfloat16* to, int64_t stride) {
  for (int64_t k = 0; k < N; k += kBlockDepth) {
    __m512i r[16];
    load_pairs(
        r,
        [&](int n) {
          const auto* from = k + n < N ? row(k + n) : nullptr;
          return from && u0 < columns ? from + u0 : nullptr;
        },
        columns - u0);
    transpose_words(r);
    store_words(r, to + k, stride);
  }
}

}  // namespace FASTLSTM_ISA
