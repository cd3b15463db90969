// The matrix product inside the recurrence: a few rows times packed panels of weights.
//
// A panel holds `Panel::units` columns for every k, one after the other: b[k][units]. The kernel keeps MR rows of NG
// panels ("groups") as sums in registers: 6 x 16 floats with AVX2, 6 x 64 with AVX-512. With few rows there are too few
// independent sums to hide the latency of a multiply-add, so more panels run side by side.
#pragma once
#include "transpose.h"

namespace FASTLSTM_ISA {

#if FASTLSTM_VECTOR_BYTES == 64
constexpr int kRegisters = 32, kMaxRows = 12, kMaxSums = 24;
#else
constexpr int kRegisters = 16, kMaxRows = 6, kMaxSums = 12;
#endif

// Panels of a tile of many rows, and its rows. With AVX-512, 6 rows of two panels take 10 loads for 24 multiply-adds
// where 12 rows of one take 14: a tenth faster on an Intel Xeon. Sums are the same, bit for bit.
constexpr int kTilePanels = FASTLSTM_VECTOR_BYTES == 64 ? 2 : 1;
constexpr int kPieceRows = kMaxRows / kTilePanels;

template <class R>
struct Panel {
  static constexpr int vectors = 2;
  static constexpr int units = vectors * Vec<R>::width;
};

// Prefetches the lines of one block of units into the second-level cache before a tile uses them. (Rows lie 16 H bytes
// apart, which often maps them to few sets of the first-level cache: there they would evict each other.)
template <int units, class R>
FASTLSTM_INLINE void prefetch_units(const R* p) {
  for (int i = 0; i < units; i += 64 / int(sizeof(R))) __builtin_prefetch(p + i, 0, 2);
}
template <int units, class R>
FASTLSTM_INLINE void prefetch_units_for_write(R* p) {
  for (int i = 0; i < units; i += 64 / int(sizeof(R))) __builtin_prefetch(p + i, 1, 2);
}

// Groups that fit into the registers beside MR rows: 4, 2 or 1.
constexpr int groups(int MR) { return MR * 8 <= kMaxSums ? 4 : MR * 4 <= kMaxSums ? 2 : 1; }

// z[g * z_group + m * units + :] (+)= sum_k a[m * lda + g * a_group + k] * b[g * b_group + k][:]   for g < NG, m < MR
// same_rows: a_group is 0; a number of `a` is then loaded once for all groups whose weights fit into registers.
template <class R, int MR, int NG, bool same_rows>
__attribute__((noinline)) void product(const R* a, int64_t lda, int64_t a_group, const R* b, int64_t b_group, int64_t K,
                                       R* z, int64_t z_group, bool accumulate) {
  constexpr int NV = Panel<R>::vectors, units = Panel<R>::units, width = Vec<R>::width;
  typename Vec<R>::Raw sum[NG][MR][NV];
#pragma GCC unroll 16
  for (int g = 0; g < NG; ++g)
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < NV; ++n)
        sum[g][m][n] = accumulate ? Vec<R>::load(z + g * z_group + m * units + n * width).v : typename Vec<R>::Raw{};
  constexpr bool rows_first = same_rows && (MR + 1) * NG * NV < kRegisters;  // all weights of a k fit beside the sums
#pragma GCC unroll 4
  for (int64_t k = 0; k < K; ++k) {
    if constexpr (rows_first) {
      typename Vec<R>::Raw w[NG][NV];
#pragma GCC unroll 16
      for (int g = 0; g < NG; ++g)
#pragma GCC unroll 16
        for (int n = 0; n < NV; ++n) w[g][n] = Vec<R>::load(b + g * b_group + k * units + n * width).v;
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const auto x = Vec<R>(a[m * lda + k]).v;
#pragma GCC unroll 16
        for (int g = 0; g < NG; ++g)
#pragma GCC unroll 16
          for (int n = 0; n < NV; ++n) sum[g][m][n] += x * w[g][n];
      }
    } else {
#pragma GCC unroll 16
      for (int g = 0; g < NG; ++g) {
        typename Vec<R>::Raw w[NV];
#pragma GCC unroll 16
        for (int n = 0; n < NV; ++n) w[n] = Vec<R>::load(b + g * b_group + k * units + n * width).v;
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const auto x = Vec<R>(a[m * lda + g * a_group + k]).v;
#pragma GCC unroll 16
          for (int n = 0; n < NV; ++n) sum[g][m][n] += x * w[n];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < NG; ++g)
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < NV; ++n) Vec<R>(sum[g][m][n]).store(z + g * z_group + m * units + n * width);
}

template <class R>
using Product = void (*)(const R*, int64_t, int64_t, const R*, int64_t, int64_t, R*, int64_t, bool);

// How a product takes its panels: one; the panels of a tile with the same rows; as many as fit beside the rows, with
// the same rows, or each with rows of its own.
enum class Groups { kOne, kTile, kSameRows, kOwnRows };

template <class R, int rows>
constexpr Product<R> product_of(Groups how) {
  if (how == Groups::kTile) {
    if constexpr (rows <= kPieceRows) return product<R, rows, kTilePanels, kTilePanels != 1>;
    return nullptr;  // a tile has no more rows
  }
  if constexpr (groups(rows) > 1) {
    if (how == Groups::kSameRows) return product<R, rows, groups(rows), true>;
    if (how == Groups::kOwnRows) return product<R, rows, groups(rows), false>;
  }
  return product<R, rows, 1, false>;
}

template <class R>
Product<R> product_for(int rows, Groups how) {
  switch (rows) {
    // clang-format off
#define FASTLSTM_ROWS(n) case n: return product_of<R, n>(how);
    FASTLSTM_ROWS(1) FASTLSTM_ROWS(2) FASTLSTM_ROWS(3) FASTLSTM_ROWS(4) FASTLSTM_ROWS(5) FASTLSTM_ROWS(6)
#if FASTLSTM_VECTOR_BYTES == 64
    FASTLSTM_ROWS(7) FASTLSTM_ROWS(8) FASTLSTM_ROWS(9) FASTLSTM_ROWS(10) FASTLSTM_ROWS(11) FASTLSTM_ROWS(12)
#endif
    // clang-format on
#undef FASTLSTM_ROWS
  }
  return nullptr;
}

// Calls body(first, count) for pieces of [from, to) of at most `most`, all of nearly the same size.
template <class Body>
FASTLSTM_INLINE void for_pieces(int64_t from, int64_t to, int64_t most, Body body) {
  if (to <= from) return;
  const int64_t n = to - from, pieces = (n + most - 1) / most, size = n / pieces, larger = n % pieces;
  for (int64_t i = 0, at = from; i < pieces; ++i) {
    const int64_t count = size + (i < larger);
    body(at, int(count));
    at += count;
  }
}

// Rows whose sums for one panel (four gates) lie in the cache together: reading a panel once serves them all.
constexpr int kTileRows = 48;
// Depth of a piece of a panel that stays in the first-level cache while the rows of a tile pass over it. (The two
// panels of an AVX-512 tile take 48 KB, as much as that cache has at best; on a Xeon half the depth is not faster.)
template <class R>
constexpr int64_t kDepth = (FASTLSTM_VECTOR_BYTES == 64 ? 24576 : 16384) / (Panel<R>::units * int64_t(sizeof(R)));

// Weights of more bytes than this are not in a thread's second-level cache, nor quickly read, in the next step. The
// next piece of the panels is then prefetched while the rows pass over the current one: H = 1024 gains a quarter. With
// smaller weights the prefetches only cost: 5 % at H = 256.
constexpr int64_t kL2Weights = int64_t(6) << 20;
inline bool gains_by_prefetch(int64_t weight_bytes) {
#if defined(__x86_64__)
  // Intel's processors fetch ahead well themselves, and are slowed down: a Xeon at H = 1024 by 5 to 20 % with AVX-512,
  // by 0 to 19 % with AVX2.
  static const bool intel = __builtin_cpu_is("intel");
  if (intel) return false;
#endif
  return weight_bytes > kL2Weights;
}

// For a product whose epilogue needs no prefetch
constexpr auto kNoPrefetch = [](int, int) {};

// z[g * z_group + m * units + :] = a[m] @ panel number g for the rows of a tile and NG panels, `panel_size` apart.
// prefetch_weights: also fetches what follows the panels in memory. before(m, n): called before the first product of
// the rows m ... m + n; prefetches what their epilogue needs.
template <class R, int NG, class Before>
FASTLSTM_INLINE void tile_product(int rows, const R* a, int64_t lda, const R* panels, int64_t panel_size, int64_t K,
                                  R* z, int64_t z_group, bool prefetch_weights, Before before) {
  constexpr int units = Panel<R>::units, piece = NG == 1 ? kMaxRows : kPieceRows;
  constexpr Groups how = NG == 1 ? Groups::kOne : Groups::kTile;
  for_pieces(0, K, rows <= piece ? K : kDepth<R>, [&](int64_t k, int count) {
    const R* next = panels + (k + count) * units + (k + count == K ? (NG - 1) * panel_size : 0);
    const int64_t ahead = prefetch_weights && rows > piece ? int64_t(count) * units : 0;
    for_pieces(0, rows, piece, [&](int64_t m, int n) {
      constexpr int64_t line = 64 / int64_t(sizeof(R));
      if (k == 0) before(int(m), n);
      for (int g = 0; g < NG; ++g)
        for (int64_t i = ahead * m / rows / line * line; i < ahead * (m + n) / rows; i += line)
          __builtin_prefetch(next + g * panel_size + i, 0, 2);
      product_for<R>(n, how)(a + m * lda + k, lda, 0, panels + k * units, panel_size, count, z + m * units, z_group,
                             k > 0);
    });
  });
}

// The same for four panels
template <class R, class Before>
FASTLSTM_INLINE void tile_product4(int rows, const R* a, int64_t lda, const R* panels, int64_t panel_size, int64_t K,
                                   R* z, int64_t z_gate, bool prefetch_weights, Before before) {
  const int together = rows <= kMaxRows ? groups(rows) : 1;
  if (together > 1) {
    before(0, rows);
    for (int g = 0; g < 4; g += together)
      product_for<R>(rows, Groups::kSameRows)(a, lda, 0, panels + g * panel_size, panel_size, K, z + g * z_gate, z_gate,
                                              false);
    return;
  }
  tile_product<R, kTilePanels>(rows, a, lda, panels, panel_size, K, z, z_gate, prefetch_weights, before);
  for (int g = kTilePanels; g < 4; g += kTilePanels)
    tile_product<R, kTilePanels>(rows, a, lda, panels + g * panel_size, panel_size, K, z + g * z_gate, z_gate,
                                 prefetch_weights, kNoPrefetch);
}

// tile_product of one panel with a long K (a multiple of 4): with few rows its quarters run side by side, and are added
// at the end.
template <class R, class Before>
FASTLSTM_INLINE void tile_product_deep(int rows, const R* a, int64_t lda, const R* panel, int64_t K, R* z,
                                       bool prefetch_weights, Before before) {
  constexpr int units = Panel<R>::units;
  const int pieces = rows <= kMaxRows && K % 4 == 0 ? groups(rows) : 1;
  if (pieces == 1) return tile_product<R, 1>(rows, a, lda, panel, 0, K, z, 0, prefetch_weights, before);
  const int64_t size = rows * units, part = K / pieces;
  before(0, rows);
  product_for<R>(rows, Groups::kOwnRows)(a, lda, part, panel, part * units, part, z, size, false);
  for (int g = 1; g < pieces; ++g)
    for (int64_t i = 0; i < size; ++i) z[i] += z[g * size + i];
}

// A weight matrix in panels. Column j of the product lies in panel j / units; columns past the last are zero.
// One panel takes K * units reals; `groups` matrices (the four gates) can share one block index.
template <class R>
struct Packed {
  R* data = nullptr;
  int64_t K = 0, columns = 0;
  int64_t blocks() const { return (columns + Panel<R>::units - 1) / Panel<R>::units; }
  int64_t panel_size() const { return K * Panel<R>::units; }
  int64_t matrix_size() const { return blocks() * panel_size(); }

  // panel[k][u] = w[(u0 + u) * row_stride + k * column_stride]
  void pack_panel(int64_t block, const R* w, int64_t row_stride, int64_t column_stride) {
    constexpr int units = Panel<R>::units;
    R* panel = data + block * panel_size();
    const int64_t u0 = block * units, n = columns - u0 < units ? columns - u0 : units;
    if (column_stride == 1) return transpose_rows(w + u0 * row_stride, row_stride, n, K, units, panel);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t u = 0; u < units; ++u)
        panel[k * units + u] = u < n ? w[k * column_stride + (u0 + u) * row_stride] : R(0);
  }
};

}  // namespace FASTLSTM_ISA
