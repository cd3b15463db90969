// z (+)= a @ b of bfloat16 with float sums, b a packed panel (bfloat16_panels.h): by the tiles of AMX where
// FASTLSTM_TILES is defined, else by AVX512-BF16's dot products.
#pragma once
#include "bfloat16_panels.h"
#include "panel.h"
#if defined(FASTLSTM_TILES)
#include "tiles.h"
#endif

namespace FASTLSTM_ISA {

#if defined(FASTLSTM_TILES)

// Products by tiles of 16 rows x 32 k and squares of a panel.
class Tiles : public TileScope {
 public:
  static constexpr int most_rows = 16;

  // z[m * z_row + u] = sum over k of a[m * a_row + k] * panel[k][u] for m < rows, u < 32; with `add`, added to z: then
  // `rows` must be a multiple of 16.
  template <bool add>
  static FASTLSTM_INLINE void panel(int64_t rows, const bfloat16* a, int64_t a_row, const bfloat16* panel,
                                    int64_t blocks, float* z, int64_t z_row) {
    const TilePieces pieces(rows);
    int64_t i = 0;
    for (; i + 1 < pieces.count; i += 2) {
      const int64_t m = pieces.first(i), n = pieces.first(i + 1);
      square<add>(a + m * a_row, a + n * a_row, a_row, panel, blocks, z + m * z_row, z + n * z_row, z_row);
    }
    if (i < pieces.count)
      split<add>(a + pieces.first(i) * a_row, a_row, panel, blocks, z + pieces.first(i) * z_row, z_row, pieces.size);
  }

  // The same for four panels, `panel_size` apart: z[panel * z_panel + m * 32 + u].
  static FASTLSTM_INLINE void panels4(int64_t rows, const bfloat16* a, int64_t a_row, const bfloat16* panel,
                                      int64_t panel_size, int64_t blocks, float* z, int64_t z_panel) {
    const TilePieces pieces(rows);
    int64_t i = 0;
    for (; i + 1 < pieces.count; i += 2) {
      const int64_t m = pieces.first(i), n = pieces.first(i + 1);
      for (int g = 0; g < 4; ++g)
        square<false>(a + m * a_row, a + n * a_row, a_row, panel + g * panel_size, blocks, z + g * z_panel + m * 32,
                      z + g * z_panel + n * 32, 32);
    }
    if (i == pieces.count) return;
    const int64_t m = pieces.first(i);
    for (int g = 0; g < 4; g += 2)
      two_panels(a + m * a_row, a_row, panel + g * panel_size, panel + (g + 1) * panel_size, blocks,
                 z + g * z_panel + m * 32, z + (g + 1) * z_panel + m * 32, 32);
  }

 private:
  static constexpr int64_t kWord = sizeof(float), kHalf = sizeof(bfloat16), kSquareRow = 64;

  // Two pieces of rows, one panel
  template <bool add>
  static FASTLSTM_INLINE void square(const bfloat16* a0, const bfloat16* a1, int64_t a_row, const bfloat16* panel,
                                     int64_t blocks, float* z0, float* z1, int64_t z_row) {
    if constexpr (add) {
      _tile_loadd(0, z0, z_row * kWord);
      _tile_loadd(1, z0 + 16, z_row * kWord);
      _tile_loadd(2, z1, z_row * kWord);
      _tile_loadd(3, z1 + 16, z_row * kWord);
    } else {
      zero_sums();
    }
    for (int64_t k = 0; k < blocks; ++k, a0 += 32, a1 += 32, panel += kPanelBlock) {
      _tile_loadd(4, a0, a_row * kHalf);
      _tile_loadd(6, panel, kSquareRow);
      _tile_loadd(7, panel + kSquare, kSquareRow);
      _tile_loadd(5, a1, a_row * kHalf);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, z0, z_row * kWord);
    _tile_stored(1, z0 + 16, z_row * kWord);
    _tile_stored(2, z1, z_row * kWord);
    _tile_stored(3, z1 + 16, z_row * kWord);
  }

  // One piece of rows, two panels
  static FASTLSTM_INLINE void two_panels(const bfloat16* a, int64_t a_row, const bfloat16* panel0,
                                         const bfloat16* panel1, int64_t blocks, float* z0, float* z1, int64_t z_row) {
    zero_sums();
    for (int64_t k = 0; k < blocks; ++k, a += 32, panel0 += kPanelBlock, panel1 += kPanelBlock) {
      _tile_loadd(4, a, a_row * kHalf);
      _tile_loadd(6, panel0, kSquareRow);
      _tile_loadd(7, panel0 + kSquare, kSquareRow);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(6, panel1, kSquareRow);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(7, panel1 + kSquare, kSquareRow);
      _tile_dpbf16ps(2, 4, 6);
      _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, z0, z_row * kWord);
    _tile_stored(1, z0 + 16, z_row * kWord);
    _tile_stored(2, z1, z_row * kWord);
    _tile_stored(3, z1 + 16, z_row * kWord);
  }

  // One piece of rows, one panel: even and odd blocks in sums of their own, since a sum takes 52 clocks.
  template <bool add>
  static FASTLSTM_INLINE void split(const bfloat16* a, int64_t a_row, const bfloat16* panel, int64_t blocks, float* z,
                                    int64_t z_row, int64_t rows) {
    zero_sums();
    if constexpr (add) {
      _tile_loadd(0, z, z_row * kWord);
      _tile_loadd(1, z + 16, z_row * kWord);
    }
    int64_t k = 0;
    for (; k + 1 < blocks; k += 2, a += 64, panel += 2 * kPanelBlock) {
      _tile_loadd(4, a, a_row * kHalf);
      _tile_loadd(6, panel, kSquareRow);
      _tile_loadd(7, panel + kSquare, kSquareRow);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + 32, a_row * kHalf);
      _tile_loadd(6, panel + 2 * kSquare, kSquareRow);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(7, panel + 3 * kSquare, kSquareRow);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (k < blocks) {
      _tile_loadd(4, a, a_row * kHalf);
      _tile_loadd(6, panel, kSquareRow);
      _tile_loadd(7, panel + kSquare, kSquareRow);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    alignas(64) float odd[16 * 32];
    _tile_stored(0, z, z_row * kWord);
    _tile_stored(1, z + 16, z_row * kWord);
    if (blocks < 2) return;
    _tile_stored(2, odd, 32 * kWord);
    _tile_stored(3, odd + 16, 32 * kWord);
    for (int64_t m = 0; m < rows; ++m)
      for (int u = 0; u < 32; u += 16)
        (Vec<float>::load(z + m * z_row + u) + Vec<float>::load(odd + m * 32 + u)).store(z + m * z_row + u);
  }
};
using Multiply = Tiles;

#else

// Sums of up to 12 rows x 32 columns stay in registers. Few rows keep several sums of each, over every second or fourth
// pair of k: one sum waits for the one before.
class Dots {
 public:
  static constexpr int most_rows = 12;

  // See Tiles.
  template <bool add>
  static FASTLSTM_INLINE void panel(int64_t rows, const bfloat16* a, int64_t a_row, const bfloat16* panel,
                                    int64_t blocks, float* z, int64_t z_row) {
    for_pieces(0, rows, most_rows,
               [&](int64_t m, int n) { rows_for<add>(n)(a + m * a_row, a_row, panel, blocks, z + m * z_row, z_row); });
  }
  static FASTLSTM_INLINE void panels4(int64_t rows, const bfloat16* a, int64_t a_row, const bfloat16* panels,
                                      int64_t panel_size, int64_t blocks, float* z, int64_t z_panel) {
    for (int g = 0; g < 4; ++g) panel<false>(rows, a, a_row, panels + g * panel_size, blocks, z + g * z_panel, 32);
  }

 private:
  using Rows = void (*)(const bfloat16*, int64_t, const bfloat16*, int64_t, float*, int64_t);

  static constexpr int sums_of(int rows) { return rows <= 2 ? 4 : rows <= 5 ? 2 : 1; }

  template <int rows, bool add>
  static __attribute__((noinline)) void product(const bfloat16* a, int64_t a_row, const bfloat16* panel, int64_t blocks,
                                                float* z, int64_t z_row) {
    constexpr int sums = sums_of(rows);
    __m512 sum[sums][rows][2];
#pragma GCC unroll 4
    for (int s = 0; s < sums; ++s)
#pragma GCC unroll 12
      for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n)
          sum[s][m][n] = add && s == 0 ? _mm512_loadu_ps(z + m * z_row + 16 * n) : _mm512_setzero_ps();
    for (int64_t k = 0; k < blocks; ++k, a += 32, panel += kPanelBlock)
      for (int q = 0; q < 16; q += sums)
#pragma GCC unroll 4
        for (int s = 0; s < sums; ++s) {
          const int p = q + s;
          const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel + p * 32);
          const __m512bh w1 = (__m512bh)_mm512_loadu_si512(panel + kSquare + p * 32);
#pragma GCC unroll 12
          for (int m = 0; m < rows; ++m) {
            int32_t pair;
            std::memcpy(&pair, a + m * a_row + 2 * p, sizeof(pair));
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            sum[s][m][0] = _mm512_dpbf16_ps(sum[s][m][0], x, w0);
            sum[s][m][1] = _mm512_dpbf16_ps(sum[s][m][1], x, w1);
          }
        }
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        __m512 all = sum[0][m][n];
#pragma GCC unroll 4
        for (int s = 1; s < sums; ++s) all = _mm512_add_ps(all, sum[s][m][n]);
        _mm512_storeu_ps(z + m * z_row + 16 * n, all);
      }
  }

  template <bool add>
  static Rows rows_for(int rows) {
    switch (rows) {
      // clang-format off
#define FASTLSTM_ROWS(n) case n: return product<n, add>;
      FASTLSTM_ROWS(1) FASTLSTM_ROWS(2) FASTLSTM_ROWS(3) FASTLSTM_ROWS(4) FASTLSTM_ROWS(5) FASTLSTM_ROWS(6)
      FASTLSTM_ROWS(7) FASTLSTM_ROWS(8) FASTLSTM_ROWS(9) FASTLSTM_ROWS(10) FASTLSTM_ROWS(11) FASTLSTM_ROWS(12)
#undef FASTLSTM_ROWS
      // clang-format on
    }
    return nullptr;
  }
};
using Multiply = Dots;

#endif

}  // namespace FASTLSTM_ISA
