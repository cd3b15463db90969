// The matrix products of a pass in float or double, as the passes of a layer ask for them (lstm_forward.h,
// lstm_backward.h). bfloat16_products.h has those of bfloat16.
#pragma once
#include "lstm_weight_grads.h"
#include "math.h"
#include "panel.h"

namespace FASTLSTM_ISA {

template <class R>
struct RealProducts {
  using Real = R;    // of the cell
  using Stored = R;  // of rows in memory
  using Forward = fastlstm::cpu::Forward<R>;
  using Backward = fastlstm::cpu::Backward<R>;
  using InputSide = FASTLSTM_ISA::InputSide<R>;
  using InputGradient = FASTLSTM_ISA::InputGradient<R>;
  using WeightGradients = FASTLSTM_ISA::WeightGradients<R>;
  using ChunkMemory = FASTLSTM_ISA::ChunkMemory<R>;
  static constexpr int units = Panel<R>::units, rows_per_block = kMaxRows;
  static constexpr int64_t tile_rows = kTileRows;
  static constexpr bool real = true;
  // Blocks that so many rows are multiplied with side by side
  static constexpr int blocks_at_once(int64_t rows) { return rows > kPieceRows ? kTilePanels : 1; }

  // A thread holds one while it multiplies.
  struct Scope {};

  // Numbers from one row of `width` to the next in a buffer whose rows are left sides of products. Not a power of two:
  // that avoids conflicts in the cache sets.
  static int64_t row_stride(int64_t width) { return width + 16 + Vec<R>::width; }
  static void clear_row(R* row, int64_t width) { std::memset(row, 0, size_t(width) * sizeof(R)); }

  template <bool whole>
  static FASTLSTM_INLINE Vec<R> load_some(const R* p, int64_t n) {
    return Vec<R>::template load_some<whole>(p, n);
  }
  template <bool whole>
  static FASTLSTM_INLINE void store_some(Vec<R> v, R* p, int64_t n) {
    v.template store_some<whole>(p, n);
  }
  static FASTLSTM_INLINE void store(Vec<R> v, R* p) { v.store(p); }
  static FASTLSTM_INLINE void store_gate(Vec<R> v, R* p, bool nontemporal) {
    nontemporal ? v.store_nontemporal(p) : v.store(p);
  }
  static FASTLSTM_INLINE Vec<R> stored(Vec<R> h, Rounding rounding) { return round_stored(h, rounding); }

  // `matrices` weight matrices of K x columns as right sides of products with a few rows, in panels of `units` columns.
  // Those of one block of columns are adjacent.
  class Panels {
   public:
    Panels(int64_t K, int64_t columns, int matrices)
        : panels_{nullptr, K, columns}, matrices_(matrices), data_(matrices * panels_.matrix_size()) {}
    int64_t blocks() const { return panels_.blocks(); }
    int64_t bytes() const { return matrices_ * panels_.matrix_size() * int64_t(sizeof(R)); }

    // Block `block` of matrix number `matrix`, whose columns are the rows of w (columns, K)
    void pack_rows(int64_t block, int matrix, const R* w) { at(block, matrix).pack_panel(block, w, panels_.K, 1); }
    // The same of w (K, columns)
    void pack_columns(int64_t block, const R* w) { at(block, 0).pack_panel(block, w, 1, panels_.columns); }

    // z[i * rows * units + m * units + :] = a[m] @ panel of block + i for the rows of a tile and `blocks` blocks of one
    // matrix, 1 or kTilePanels; rows of a are `stride` apart.
    template <class Before>
    FASTLSTM_INLINE void product(int rows, const R* a, int64_t stride, int64_t block, int blocks, R* z,
                                 bool prefetch_weights, Before before) const {
      if (blocks == 1)
        tile_product_deep<R>(rows, a, stride, panel(block), panels_.K, z, prefetch_weights, before);
      else
        tile_product<R, kTilePanels>(rows, a, stride, panel(block), panels_.panel_size(), panels_.K, z, rows * units,
                                     prefetch_weights, before);
    }
    // The same of one block of four matrices: z[matrix * rows * units + m * units + :]
    template <class Before>
    FASTLSTM_INLINE void product4(int rows, const R* a, int64_t stride, int64_t block, R* z, bool prefetch_weights,
                                  Before before) const {
      tile_product4<R>(rows, a, stride, panel(block), panels_.panel_size(), panels_.K, z, rows * units,
                       prefetch_weights, before);
    }

   private:
    const R* panel(int64_t block) const { return data_.get() + block * matrices_ * panels_.panel_size(); }
    // With `block` counted from 0, panel number `block` of the result is that of the matrix.
    Packed<R> at(int64_t block, int matrix) const {
      return {data_.get() + (block * (matrices_ - 1) + matrix) * panels_.panel_size(), panels_.K, panels_.columns};
    }

    Packed<R> panels_;
    int64_t matrices_;
    Buffer<R> data_;
  };
};

// Rows of `a`, `stride` apart, times the blocks of columns of one matrix. use(j, b, n, z): gets z[m][:], row b + m
// times block j, for m < n. before(j, b, n): called while the product runs; prefetches what `use` needs.
template <class M, class Before, class Use>
FASTLSTM_INLINE void for_products(const typename M::Panels& w, Range blocks, Range rows, const typename M::Stored* a,
                                  int64_t stride, bool prefetch_weights, Before before, Use use) {
  alignas(64) typename M::Real z[4 * M::tile_rows * M::units];  // the blocks at once; few rows: quarters of sums
  const int at_once = M::blocks_at_once(rows.to - rows.from);
  for_pieces(blocks.from, blocks.to, at_once, [&](int64_t j, int count) {
    for_pieces(rows.from, rows.to, M::tile_rows, [&](int64_t b, int n) {
      const auto before_rows = [&](int m, int more) FASTLSTM_INLINE_LAMBDA {
        for (int i = 0; i < count; ++i) before(j + i, b + m, more);
      };
      w.product(n, a + b * stride, stride, j, count, z, prefetch_weights, before_rows);
      for (int i = 0; i < count; ++i) use(j + i, b, n, z + i * n * M::units);
    });
  });
}

constexpr auto kNoPrefetchOfBlocks = [](int64_t, int64_t, int) {};

}  // namespace FASTLSTM_ISA
