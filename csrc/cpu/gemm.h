// The large matrix products beside the recurrence: input projection, its gradient, weight gradients.
//
// C tiles of kPieceRows rows and kTilePanels panels stay in registers while k runs; a piece of B (kDepth deep) is
// packed so that it stays in the first- or second-level cache, a block of A in the second. Torch's BLAS keeps to AVX2
// on some processors: on a Zen 5 it runs at 96 GFLOP/s a core where this runs at 110 (AVX2) and 215 (AVX-512).
//
// Threads split C into rectangles, without barriers. Every sum over k has one fixed order, whatever the split.
#pragma once
#include "panel.h"
#include "threading.h"
#include "workspace.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Gemm;

template <class R>
class GemmBlock {
  static constexpr int units = Panel<R>::units, width = Vec<R>::width, vectors = Panel<R>::vectors, rows = kPieceRows;
  static constexpr int64_t kBlockColumns = 16 * units;  // of B, packed together

 public:
  // B packed beforehand, by several threads and for several products: panel j of the piece of depth d from k on begins
  // at k * round(N) + j * d * units.
  static int64_t panels(int64_t N) { return (N + units - 1) / units; }
  static int64_t packed_size(int64_t N, int64_t K) { return panels(N) * units * K; }
  static void pack(const Gemm<R>& g, Range which, R* to) {
    for_pieces(0, g.K, kDepth<R>, [&](int64_t k, int depth) {
      for (int64_t j = which.from; j < which.to; ++j) {
        const int64_t n = j * units, count = g.N - n < units ? g.N - n : units;
        pack_b(g, n, count, k, depth, to + k * panels(g.N) * units + n * depth);
      }
    });
  }
  // The product for the rows m of C, B as `pack` left it.
  static void run_packed(const Gemm<R>& g, Range m, R* packed) {
    if (m.to <= m.from || g.N == 0) return;
    if (g.K == 0 && !g.accumulate) return clear(g, m, {0, g.N});
    Buffer<R> a(kDepth<R> * kBlockRows);
    for_pieces(0, g.K, kDepth<R>, [&](int64_t k, int depth) {
      slab(g, m, {0, g.N}, k, depth, a.get(), packed + k * panels(g.N) * units, false);
    });
  }

  // For callers that pack A as well: `pack_columns` packs a block of kBlockRows rows of A that is read by columns
  // (rows are adjacent in memory), `block` multiplies it.
  static constexpr int64_t kBlockRows = 16 * kMaxRows;  // kept in the second-level cache
  static void pack_columns(const R* from, int64_t stride, int64_t n, int64_t depth, R* to) {
    const int64_t whole = n / rows * rows;
    for (int64_t k = 0; k < depth; ++k) {  // along memory; each tile of A is written along memory too
      const R* at = from + k * stride;
      for (int64_t m = 0; m < whole; m += rows) std::memcpy(to + m * depth + k * rows, at + m, rows * sizeof(R));
    }
    if (whole == n) return;
    R* last = to + whole * depth;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t m = 0; m < rows; ++m) last[k * rows + m] = whole + m < n ? from[k * stride + whole + m] : R(0);
  }
  // c (m, N) = a block of A times the panels, or added to it
  static void block(const R* a, int64_t m, int64_t depth, const R* panels_of_b, int64_t N, R* c, int64_t ldc,
                    bool add) {
    for (int64_t j = 0; j < N; j += kTileColumns)
      for (int64_t r = 0; r < m; r += rows)
        packed_tile(a + r * depth, panels_of_b + j * depth, depth, c + r * ldc + j, ldc,
                    int(m - r < rows ? m - r : rows), N - j < kTileColumns ? N - j : kTileColumns, add);
  }

  // The product for the rectangle [m.from, m.to) x [n.from, n.to) of C.
  static void run(const Gemm<R>& g, Range m, Range n) {
    if (m.to <= m.from || n.to <= n.from) return;
    const int64_t columns = n.to - n.from < kBlockColumns ? n.to - n.from : kBlockColumns;
    Buffer<R> b(kDepth<R> * ((columns + units - 1) / units) * units), a(kDepth<R> * kBlockRows);
    if (g.K == 0 && !g.accumulate) return clear(g, m, n);
    for (int64_t j = n.from; j < n.to; j += kBlockColumns) {
      const Range part{j, j + kBlockColumns < n.to ? j + kBlockColumns : n.to};
      for_pieces(0, g.K, kDepth<R>, [&](int64_t k, int depth) { slab(g, m, part, k, depth, a.get(), b.get(), true); });
    }
  }

 private:
  static constexpr int64_t kTileColumns = kTilePanels * units;

  static R* row_of_c(const Gemm<R>& g, int64_t m) { return g.c + (g.c_at ? g.c_at[m] : m) * g.c_row; }
  static const R* row_of_a(const Gemm<R>& g, int64_t m) { return g.a + (g.a_at ? g.a_at[m] : m) * g.a_row; }

  static void clear(const Gemm<R>& g, Range m, Range n) {
    for (int64_t i = m.from; i < m.to; ++i)
      for (int64_t j = n.from; j < n.to; ++j) row_of_c(g, i)[j] = 0;
  }

  // The contribution of k ... k + depth to the rows m and the columns n. b: this part of B, packed here if `fill`.
  // Rows of A that are contiguous in k are read in place; columns are packed.
  static void slab(const Gemm<R>& g, Range m, Range n, int64_t k, int depth, R* a, R* b, bool fill) {
    const bool add = g.accumulate || k > 0, direct = g.a_column == 1;
    for (int64_t i = m.from; i < m.to; i += kBlockRows) {
      const Range block{i, i + kBlockRows < m.to ? i + kBlockRows : m.to};
      if (!direct && g.a_row == 1)
        pack_columns(g.a + i + k * g.a_column, g.a_column, block.to - i, depth, a);
      else if (!direct)
        for (int64_t r = i; r < block.to; r += rows)
          pack_a(g, r, block.to - r < rows ? block.to - r : rows, k, depth, a + (r - i) * depth);
      // Rows past the last repeat the first; their sums are not stored.
      R* c[kBlockRows];
      const R* from[kBlockRows];
      for (int64_t r = 0; r < kBlockRows; ++r) {
        const int64_t row = i + r < block.to ? i + r : i;
        c[r] = row_of_c(g, row);
        from[r] = direct ? row_of_a(g, row) + k : a + r * depth;
      }
      for (int64_t j = n.from; j < n.to; j += kTileColumns) {
        const int64_t count = n.to - j < kTileColumns ? n.to - j : kTileColumns;
        R* panel = b + (j - n.from) * depth;
        if (fill && i == m.from)
          for (int64_t u = 0; u < count; u += units)
            pack_b(g, j + u, count - u < units ? count - u : units, k, depth, panel + u * depth);
        for (int64_t r = 0; r < block.to - i; r += rows) {
          const int real = int(block.to - i - r < rows ? block.to - i - r : rows);
          direct ? some_tile<false>(from + r, panel, depth, c + r, j, real, count, add)
                 : some_tile<true>(from + r, panel, depth, c + r, j, real, count, add);
        }
      }
    }
  }

  // to[k][m], rows past the last zero
  static void pack_a(const Gemm<R>& g, int64_t r, int64_t n, int64_t k0, int depth, R* to) {
    if (n < rows) std::memset(to, 0, size_t(depth * rows) * sizeof(R));
    const R* from = g.a + r * g.a_row + k0 * g.a_column;
    for (int64_t m = 0; m < n; ++m)
      for (int64_t k = 0; k < depth; ++k) to[k * rows + m] = from[m * g.a_row + k * g.a_column];
  }

  // to[k][n], columns past the last zero
  static void pack_b(const Gemm<R>& g, int64_t j, int64_t n, int64_t k0, int depth, R* to) {
    const R* from = g.b + k0 * g.b_row + j * g.b_column;
    if (g.b_row == 1) return transpose_rows(from, g.b_column, n, depth, units, to);
    if (n < units) std::memset(to, 0, size_t(depth * units) * sizeof(R));
    if (g.b_column == 1 && n == units) {
      for (int64_t k = 0; k < depth; ++k) std::memcpy(to + k * units, from + k * g.b_row, units * sizeof(R));
    } else {
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t u = 0; u < n; ++u) to[k * units + u] = from[k * g.b_row + u * g.b_column];
    }
  }

  static void packed_tile(const R* a, const R* b, int64_t depth, R* c, int64_t ldc, int m_count, int64_t n_count,
                          bool add) {
    R* row[rows];
    for (int m = 0; m < rows; ++m) row[m] = c + (m < m_count ? m : 0) * ldc;
    some_tile<true>(&a, b, depth, row, 0, m_count, n_count, add);
  }

  template <bool packed>
  static FASTLSTM_INLINE void some_tile(const R* const* a, const R* b, int64_t depth, R* const* c, int64_t j,
                                        int m_count, int64_t n_count, bool add) {
    if (m_count == rows && n_count == kTileColumns)
      tile<packed, true, kTilePanels>(a, b, depth, c, j, m_count, n_count, add);
    else if (n_count > units)
      tile<packed, false, kTilePanels>(a, b, depth, c, j, m_count, n_count, add);
    else if (m_count == rows && n_count == units)
      tile<packed, true, 1>(a, b, depth, c, j, m_count, n_count, add);
    else
      tile<packed, false, 1>(a, b, depth, c, j, m_count, n_count, add);
  }

  // One tile of C, whose rows begin at c[m] + j, of `panels` panels of B. packed: A is a[0][k][rows]; else a[m][k].
  // whole: no row or column of the tile is past the last.
  template <bool packed, bool whole, int panels>
  static __attribute__((noinline)) void tile(const R* const* a, const R* b, int64_t depth, R* const* c, int64_t j,
                                             int m_count, int64_t n_count, bool add) {
    constexpr int all = panels * vectors, line = 64 / int(sizeof(R));
    // Rows of C are far apart and often not in a cache: they are fetched while k runs.
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 16
      for (int n = 0; n < panels * units; n += line)
        if (whole || n < n_count) __builtin_prefetch(c[m] + j + n, 1, 3);
      __builtin_prefetch(c[m] + j + (whole ? panels * units : n_count) - 1, 1, 3);
    }
    const R* from[rows];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) from[m] = a[packed ? 0 : m];
    typename Vec<R>::Raw sum[rows][all];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < all; ++n) sum[m][n] = typename Vec<R>::Raw{};
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      typename Vec<R>::Raw w[all];
#pragma GCC unroll 16
      for (int n = 0; n < all; ++n)
        w[n] = Vec<R>::load(b + n / vectors * depth * units + k * units + n % vectors * width).v;
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const auto x = Vec<R>(packed ? from[0][k * rows + m] : from[m][k]).v;
#pragma GCC unroll 16
        for (int n = 0; n < all; ++n) sum[m][n] += x * w[n];
      }
    }
    if constexpr (whole) {
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
        for (int n = 0; n < all; ++n) {
          R* to = c[m] + j + n * width;
          (add ? Vec<R>::load(to) + Vec<R>(sum[m][n]) : Vec<R>(sum[m][n])).store(to);
        }
      return;
    }
    constexpr int64_t columns = panels * units;
    alignas(64) R edge[rows * columns];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < all; ++n) Vec<R>(sum[m][n]).store(edge + m * columns + n * width);
    for (int m = 0; m < m_count; ++m)
      for (int64_t u = 0; u < n_count; ++u)
        c[m][j + u] = add ? c[m][j + u] + edge[m * columns + u] : edge[m * columns + u];
  }
};

// How the threads split C: `down` x `across` rectangles.
struct GemmSplit {
  int64_t down, across;
};

// The split with the least work for the busiest thread, in multiply-adds; a packed element costs about as much as 32.
inline GemmSplit split_gemm(int64_t M, int64_t N, int64_t K, int64_t threads, int64_t rows, int64_t units) {
  GemmSplit best{1, 1};
  int64_t least = -1;
  auto upto = [](int64_t n, int64_t parts, int64_t unit) { return ((n + parts - 1) / parts + unit - 1) / unit * unit; };
  for (int64_t down = 1; down <= threads; ++down)
    for (int64_t across = 1; down * across <= threads; ++across) {
      const int64_t m = upto(M, down, rows), n = upto(N, across, units), work = m * n * K + (m + n) * K * 32;
      if (least < 0 || work < least) {
        least = work;
        best = {down, across};
      }
    }
  return best;
}

template <class R>
void gemm(const Gemm<R>& g) {
  constexpr int units = kTilePanels * Panel<R>::units;
  const bool alone = g.threads < 2 || omp_in_parallel() || g.M * g.N * g.K < (1 << 18);
  const GemmSplit grid = split_gemm(g.M, g.N, g.K, alone ? 1 : g.threads, kMaxRows, units);
  auto piece = [](int64_t n, int64_t unit, int64_t i, int64_t parts) {
    const Range blocks = split((n + unit - 1) / unit, int(i), int(parts));
    return Range{blocks.from * unit, blocks.to * unit < n ? blocks.to * unit : n};
  };
  const int64_t pieces = grid.down * grid.across;
  if (!g.accumulate) advise_hugepages(g.c, size_t(g.M * g.c_row) * sizeof(R));
  parallel_for(pieces, pieces, [&](int64_t i) {
    GemmBlock<R>::run(g, piece(g.M, kMaxRows, i / grid.across, grid.down),
                      piece(g.N, units, i % grid.across, grid.across));
  });
}

}  // namespace FASTLSTM_ISA
