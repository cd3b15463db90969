// Products of int8 rows with a block of int8 weights; sums are exact int32.
//
// A block is 64 columns (four gates of 16 units, or 64 columns of a projection). Four neighbours along k lie in one
// 32-bit word, w[k / 4][64][4], so that every instruction set reads a block from one end to the other:
//
// baseline     plain C++
// avx2         vpmaddubsw of |w| and x with the sign of w: 2 * 128 * 127 fits 16 bits, so nothing saturates
// avx_vnni     vpdpbusd of x + 128 and w; 128 times the sum of a column of w is subtracted
// avx512_vnni  the same on 64 bytes
// amx          tdpbssd on tiles of up to 16 rows x 16 columns x 64 k; one or two rows as avx512_vnni
#pragma once
#include "int8_rows.h"
#if defined(FASTLSTM_TILES)
#include "tiles.h"
#endif

namespace FASTLSTM_ISA {

inline constexpr int64_t kInt8Columns = 64;
// Rows of one product. Weights of a block (32 KiB at 512 k) come from the first-level cache for all but the first.
inline constexpr int64_t kInt8Rows = 32;

#if defined(__AVX512VNNI__)
struct Int8Lanes {
  static constexpr int width = 16;
  static constexpr bool offset = true;  // left sides are taken as x + 128
  using Sum = __m512i;
  using Left = __m512i;
  static FASTLSTM_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static FASTLSTM_INLINE Left left(int32_t word) {
    return _mm512_xor_si512(_mm512_set1_epi32(word), _mm512_set1_epi8(-128));
  }
  static FASTLSTM_INLINE Sum dot(Sum sum, const int8_t* w, Left x) {
    return _mm512_dpbusd_epi32(sum, x, _mm512_loadu_si512(w));
  }
  static FASTLSTM_INLINE Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static FASTLSTM_INLINE void store(Sum sum, const int32_t* subtracted, int32_t* z) {
    _mm512_storeu_si512(z, _mm512_sub_epi32(sum, _mm512_loadu_si512(subtracted)));
  }
};
#elif defined(__AVX2__)
struct Int8Lanes {
  static constexpr int width = 8;
  using Sum = __m256i;
  using Left = __m256i;
  static FASTLSTM_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static FASTLSTM_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static FASTLSTM_INLINE Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
#if defined(__AVXVNNI__)
  static constexpr bool offset = true;
  static FASTLSTM_INLINE Left left(int32_t word) {
    return _mm256_xor_si256(_mm256_set1_epi32(word), _mm256_set1_epi8(-128));
  }
  static FASTLSTM_INLINE Sum dot(Sum sum, const int8_t* w, Left x) { return _mm256_dpbusd_avx_epi32(sum, x, load(w)); }
#else
  static constexpr bool offset = false;
  static FASTLSTM_INLINE Left left(int32_t word) { return _mm256_set1_epi32(word); }
  static FASTLSTM_INLINE Sum dot(Sum sum, const int8_t* w, Left x) {
    const __m256i weights = load(w);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
  static FASTLSTM_INLINE void store(Sum sum, const int32_t* subtracted, int32_t* z) {
    if constexpr (offset) sum = _mm256_sub_epi32(sum, load(subtracted));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(z), sum);
  }
};
#else
struct Int8Lanes {
  static constexpr int width = 4;
  static constexpr bool offset = false;
  typedef int32_t Sum __attribute__((vector_size(16)));
  struct Left {
    int8_t k[4];
  };
  static FASTLSTM_INLINE Sum zero() { return Sum{}; }
  static FASTLSTM_INLINE Left left(int32_t word) {
    Left x;
    std::memcpy(x.k, &word, sizeof(word));
    return x;
  }
  static FASTLSTM_INLINE Sum dot(Sum sum, const int8_t* w, Left x) {
    for (int c = 0; c < 4; ++c)
      sum[c] += w[4 * c] * x.k[0] + w[4 * c + 1] * x.k[1] + w[4 * c + 2] * x.k[2] + w[4 * c + 3] * x.k[3];
    return sum;
  }
  static FASTLSTM_INLINE Sum add(Sum a, Sum b) { return a + b; }
  static FASTLSTM_INLINE void store(Sum sum, const int32_t*, int32_t* z) { std::memcpy(z, &sum, sizeof(sum)); }
};
#endif

// Sums of a few rows in registers. One row keeps two sums of each column, over every second word of k: a sum waits for
// the one before.
class Int8Dots {
 public:
  // z[m][64] = a[m] @ block for `rows` rows, a_row apart; subtracted: (64,) 128 times the sum of each column.
  static void block(int64_t rows, const int8_t* a, int64_t a_row, const int8_t* w, int64_t depth,
                    const int32_t* subtracted, int32_t* z) {
    int64_t m = 0;
    for (; m + kMost <= rows; m += kMost)
      columns<kMost>(a + m * a_row, a_row, w, depth, subtracted, z + m * kInt8Columns);
    a += m * a_row, z += m * kInt8Columns;
    switch (rows - m) {
      // clang-format off
#define FASTLSTM_ROWS(n) case n: if constexpr (n < kMost) columns<n>(a, a_row, w, depth, subtracted, z); return;
      FASTLSTM_ROWS(1) FASTLSTM_ROWS(2) FASTLSTM_ROWS(3) FASTLSTM_ROWS(4) FASTLSTM_ROWS(5)
#undef FASTLSTM_ROWS
      // clang-format on
    }
  }

 private:
  using L = Int8Lanes;
  static constexpr bool wide = L::width == 16;
  static constexpr int kMost = wide ? 6 : 4;
  static constexpr int registers(int rows) { return wide ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2; }

  template <int rows>
  static FASTLSTM_INLINE void columns(const int8_t* a, int64_t a_row, const int8_t* w, int64_t depth,
                                      const int32_t* subtracted, int32_t* z) {
    constexpr int at_once = registers(rows) * L::width;
    for (int64_t at = 0; at < kInt8Columns; at += at_once)
      tile<rows>(a, a_row, w + 4 * at, depth, subtracted + at, z + at);
  }

  template <int rows>
  static __attribute__((noinline)) void tile(const int8_t* a, int64_t a_row, const int8_t* w, int64_t depth,
                                             const int32_t* subtracted, int32_t* z) {
    constexpr int vecs = registers(rows), sums = rows == 1 && wide ? 2 : 1;
    L::Sum sum[sums][rows][vecs];
#pragma GCC unroll 2
    for (int s = 0; s < sums; ++s)
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < vecs; ++n) sum[s][m][n] = L::zero();
    for (int64_t k = 0; k < depth; k += 4 * sums)
#pragma GCC unroll 2
      for (int s = 0; s < sums; ++s, w += 4 * kInt8Columns) {
        if constexpr (rows == 1) {
#pragma GCC unroll 8
          for (int n = 0; n < vecs * L::width * 4; n += 64) __builtin_prefetch(w + 4096 + n, 0, 3);
        }
#pragma GCC unroll 8
        for (int m = 0; m < rows; ++m) {
          int32_t word;
          std::memcpy(&word, a + m * a_row + k + 4 * s, sizeof(word));
          const L::Left x = L::left(word);
#pragma GCC unroll 8
          for (int n = 0; n < vecs; ++n) sum[s][m][n] = L::dot(sum[s][m][n], w + 4 * n * L::width, x);
        }
      }
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < vecs; ++n) {
        L::Sum all = sum[0][m][n];
        if constexpr (sums == 2) all = L::add(all, sum[1][m][n]);
        L::store(all, subtracted + n * L::width, z + m * kInt8Columns + n * L::width);
      }
  }
};

#if defined(FASTLSTM_TILES)

class Int8Product {
 public:
  using Scope = TileScope;

  // See Int8Dots; up to kInt8Rows rows.
  static void block(int64_t rows, const int8_t* a, int64_t a_row, const int8_t* w, int64_t depth,
                    const int32_t* subtracted, int32_t* z) {
    if (rows < kFewest) return Int8Dots::block(rows, a, a_row, w, depth, subtracted, z);
    const TilePieces pieces(rows);
    if (pieces.count == 1) return one_piece(a, a_row, w, depth, z);
    const int64_t second = pieces.first(1);
    for (int g = 0; g < 4; g += 2)
      two_pieces(a, a + second * a_row, a_row, w + 64 * g, depth, z + 16 * g, z + second * kInt8Columns + 16 * g);
  }

 private:
  static constexpr int64_t kFewest = 3, kWordRow = 4 * kInt8Columns, kSumRow = kInt8Columns * int64_t(sizeof(int32_t));

  // Up to 16 rows, all columns
  static void one_piece(const int8_t* a, int64_t a_row, const int8_t* w, int64_t depth, int32_t* z) {
    zero_sums();
    for (int64_t k = 0; k < depth; k += kInt8Depth, w += kInt8Depth * kInt8Columns) {
      _tile_loadd(4, a + k, a_row);
      _tile_loadd(6, w, kWordRow);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, w + 64, kWordRow);
      _tile_dpbssd(1, 4, 7);
      _tile_loadd(6, w + 128, kWordRow);
      _tile_dpbssd(2, 4, 6);
      _tile_loadd(7, w + 192, kWordRow);
      _tile_dpbssd(3, 4, 7);
    }
    _tile_stored(0, z, kSumRow);
    _tile_stored(1, z + 16, kSumRow);
    _tile_stored(2, z + 32, kSumRow);
    _tile_stored(3, z + 48, kSumRow);
  }

  // Two pieces of rows, 32 columns
  static void two_pieces(const int8_t* a0, const int8_t* a1, int64_t a_row, const int8_t* w, int64_t depth, int32_t* z0,
                         int32_t* z1) {
    zero_sums();
    for (int64_t k = 0; k < depth; k += kInt8Depth, w += kInt8Depth * kInt8Columns) {
      _tile_loadd(4, a0 + k, a_row);
      _tile_loadd(6, w, kWordRow);
      _tile_loadd(7, w + 64, kWordRow);
      _tile_loadd(5, a1 + k, a_row);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, z0, kSumRow);
    _tile_stored(1, z0 + 16, kSumRow);
    _tile_stored(2, z1, kSumRow);
    _tile_stored(3, z1 + 16, kSumRow);
  }
};

#else

class Int8Product : public Int8Dots {
 public:
  struct Scope {};
};

#endif

}  // namespace FASTLSTM_ISA
