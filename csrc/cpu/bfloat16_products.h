// The matrix products of a pass in bfloat16 with float sums: see RealProducts (products.h). W: the type of weights and
// their gradients, bfloat16 or float, which is rounded to bfloat16 as it is packed.
#pragma once
#include "bfloat16_multiply.h"
#include "bfloat16_weight_grads.h"
#include "chunks.h"
#include "math.h"

namespace FASTLSTM_ISA {

// x_gates = x @ w_x^T for the rows of a chunk.
template <class W>
class BfloatInputSide {
 public:
  BfloatInputSide(const bfloat16* x, const W* w_x, int64_t I, int64_t H)
      : x_(x),
        w_x_(w_x),
        I_(I),
        G_(4 * H),
        panel_size_(blocks_of(I) * kPanelBlock),
        packed_(x ? panels_of(G_) * panel_size_ : 0) {}
  void pack(ThreadRank thread) {
    if (!x_) return;
    const Range panels = thread.split(panels_of(G_));
    for (int64_t j = panels.from; j < panels.to; ++j) {
      const int64_t u = j * kPanelColumns;
      pack_panel_of_rows(w_x_ + u * I_, I_, G_ - u, I_, packed_.get() + j * panel_size_);
    }
  }
  int64_t output_stride() const { return panels_of(G_) * kPanelColumns; }
  int64_t output_size(int64_t rows) const { return rows * output_stride(); }
  // x_gates holds the rows of the chunk.
  void run(const Chunk& chunk, float* x_gates, bool, ThreadRank thread) {
    const Range rows = thread.split(chunk.size(), 32);
    const int64_t n = rows.to - rows.from, stride = padded_depth(I_) + 32;
    if (n <= 0) return;
    Buffer<bfloat16> left(n * stride);
    for (int64_t m = 0; m < n; ++m) {
      bfloat16* to = left.get() + m * stride;
      std::memcpy(to, x_ + chunk.row[size_t(rows.from + m)] * I_, size_t(I_) * sizeof(bfloat16));
      std::memset(to + I_, 0, size_t(padded_depth(I_) - I_) * sizeof(bfloat16));
    }
    for (int64_t j = 0; j < panels_of(G_); ++j)
      Multiply::panel<false>(n, left.get(), stride, packed_.get() + j * panel_size_, blocks_of(I_),
                             x_gates + rows.from * output_stride() + j * kPanelColumns, output_stride());
  }

 private:
  const bfloat16* x_;
  const W* w_x_;
  int64_t I_, G_, panel_size_;
  Buffer<bfloat16> packed_;
};

// dx = d_gates @ w_x for the rows of a chunk.
template <class W>
class BfloatInputGradient {
 public:
  BfloatInputGradient(bfloat16* dx, const W* w_x, int64_t I, int64_t H)
      : dx_(dx),
        w_x_(w_x),
        I_(I),
        G_(4 * H),
        panel_size_(blocks_of(G_) * kPanelBlock),
        packed_(dx ? panels_of(I) * panel_size_ : 0) {}
  void pack(ThreadRank thread) {
    if (!dx_) return;
    const Range panels = thread.split(panels_of(I_));
    for (int64_t j = panels.from; j < panels.to; ++j)
      pack_panel_of_columns([this](int64_t k) { return w_x_ + k * I_; }, j * kPanelColumns, I_, G_,
                            packed_.get() + j * panel_size_);
  }
  void run(const Chunk& chunk, const bfloat16* d_gates, int64_t stride, ThreadRank thread) {
    if (!dx_) return;
    constexpr int64_t together = 64;
    alignas(64) float z[together * kPanelColumns];
    const Range rows = thread.split(chunk.size(), 32);
    for_pieces(rows.from, rows.to, together, [&](int64_t from, int n) {
      for (int64_t j = 0; j < panels_of(I_); ++j) {
        Multiply::panel<false>(n, d_gates + from * stride, stride, packed_.get() + j * panel_size_, blocks_of(G_), z,
                               kPanelColumns);
        const int64_t u = j * kPanelColumns;
        for (int m = 0; m < n; ++m) {
          bfloat16* to = dx_ + chunk.row[size_t(from + m)] * I_ + u;
          for (int64_t e = 0; e < kPanelColumns && u + e < I_; e += 16)
            store_bfloat16(Vec<float>::load(z + m * kPanelColumns + e), to + e, I_ - u - e);
        }
      }
    });
  }

 private:
  bfloat16* dx_;
  const W* w_x_;
  int64_t I_, G_, panel_size_;
  Buffer<bfloat16> packed_;
};

template <class W>
struct BfloatProducts {
  using Real = float;
  using Stored = bfloat16;
  using Forward = fastlstm::cpu::Forward<float, bfloat16, W>;
  using Backward = fastlstm::cpu::Backward<float, bfloat16, W>;
  using InputSide = BfloatInputSide<W>;
  using InputGradient = BfloatInputGradient<W>;
  using WeightGradients = BfloatWeightGradients<W>;
  using ChunkMemory = BfloatChunkMemory;
  using Scope = Multiply;
  static constexpr int units = kPanelColumns, rows_per_block = Multiply::most_rows;
  static constexpr int64_t tile_rows = 64;
  static constexpr bool real = false;
  static constexpr int blocks_at_once(int64_t) { return 1; }

  static int64_t row_stride(int64_t width) { return padded_depth(width) + 32; }
  static void clear_row(bfloat16* row, int64_t width) {
    std::memset(row, 0, size_t(padded_depth(width)) * sizeof(bfloat16));
  }

  template <bool whole>
  static FASTLSTM_INLINE Vec<float> load_some(const bfloat16* p, int64_t n) {
    return whole ? load_bfloat16(p) : load_bfloat16(p, n);
  }
  template <bool whole>
  static FASTLSTM_INLINE void store_some(Vec<float> v, bfloat16* p, int64_t n) {
    whole ? store_bfloat16(v, p) : store_bfloat16(v, p, n);
  }
  static FASTLSTM_INLINE void store(Vec<float> v, bfloat16* p) { store_bfloat16(v, p); }
  static FASTLSTM_INLINE void store_gate(Vec<float> v, bfloat16* p, bool) { store_bfloat16(v, p); }
  static FASTLSTM_INLINE Vec<float> stored(Vec<float> h, Rounding) { return h; }  // rounded as it is stored

  class Panels {
   public:
    Panels(int64_t K, int64_t columns, int matrices)
        : K_(K),
          columns_(columns),
          matrices_(matrices),
          size_(blocks_of(K) * kPanelBlock),
          data_(blocks() * matrices * size_) {}
    int64_t blocks() const { return panels_of(columns_); }
    int64_t bytes() const { return blocks() * matrices_ * size_ * int64_t(sizeof(bfloat16)); }

    void pack_rows(int64_t block, int matrix, const W* w) {
      const int64_t u = block * kPanelColumns;
      pack_panel_of_rows(w + u * K_, K_, columns_ - u, K_, panel(block) + matrix * size_);
    }
    void pack_columns(int64_t block, const W* w) {
      pack_panel_of_columns([&](int64_t k) { return w + k * columns_; }, block * kPanelColumns, columns_, K_,
                            panel(block));
    }

    template <class Before>
    FASTLSTM_INLINE void product(int rows, const bfloat16* a, int64_t stride, int64_t block, int, float* z, bool,
                                 Before before) const {
      before(0, rows);
      Multiply::panel<false>(rows, a, stride, panel(block), blocks_of(K_), z, kPanelColumns);
    }
    template <class Before>
    FASTLSTM_INLINE void product4(int rows, const bfloat16* a, int64_t stride, int64_t block, float* z, bool,
                                  Before before) const {
      before(0, rows);
      Multiply::panels4(rows, a, stride, panel(block), size_, blocks_of(K_), z, rows * kPanelColumns);
    }

   private:
    bfloat16* panel(int64_t block) const { return data_.get() + block * matrices_ * size_; }
    int64_t K_, columns_, matrices_, size_;
    Buffer<bfloat16> data_;
  };
};

}  // namespace FASTLSTM_ISA
