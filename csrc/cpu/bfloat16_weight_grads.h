// Gradients of the weights and the bias in bfloat16, summed in float over chunks of steps (chunks.h).
//
// For the rows of a chunk, with d_gates as the right side (its rows lie as a panel needs them, but for the pairs):
//   (x, h_prev, 1)^T @ d_gates = (dw_x, dw_hh, dbias)^T
// The sums are therefore transposed; they are turned when they are written. With projection, dh_proj^T @ h_unprojected
// is dw_hr as it stands.
#pragma once
#include "bfloat16_multiply.h"
#include "lstm_weight_grads.h"

namespace FASTLSTM_ISA {

// What the backward recurrence writes for the rows of a chunk. Rows of d_gates are left sides of the product for dx, so
// they end with zeros.
class BfloatChunkMemory {
 public:
  template <class P>
  BfloatChunkMemory(int64_t rows, int64_t H, int64_t width_of_h, const P& p)
      : stride_(padded_depth(4 * H) + 32),
        d_gates_(rows * stride_),
        dh_proj_(p.dw_hr ? rows * width_of_h : 0),
        h_unprojected_(p.dw_hr ? rows * H : 0) {
    const size_t end = size_t(padded_depth(4 * H) - 4 * H);
    for (int64_t n = 0; end && n < rows; ++n)
      std::memset(d_gates_.get() + n * stride_ + 4 * H, 0, end * sizeof(bfloat16));
  }
  ChunkRows<bfloat16> rows() const { return {d_gates_.get(), dh_proj_.get(), h_unprojected_.get(), stride_, 0}; }

 private:
  int64_t stride_;
  Buffer<bfloat16> d_gates_, dh_proj_, h_unprojected_;
};

// Sums of left^T @ right over chunks, by panels of the right side: sums[panel][row][32].
class TransposedProduct {
 public:
  TransposedProduct(int64_t rows, int64_t columns, int64_t max_depth)
      : rows_((rows + 15) / 16 * 16),
        columns_(columns),
        stride_(padded_depth(max_depth) + 32),
        left_(max_depth ? rows_ * stride_ : 0),
        right_(max_depth ? panels() * panel_size(max_depth) : 0),
        sums_(max_depth ? panels() * rows_ * kPanelColumns : 0) {}

  bool empty() const { return sums_.get() == nullptr; }
  int64_t panels() const { return rows_ ? panels_of(columns_) : 0; }
  // Rows of the left side, transposed: 16 columns of `from` from u0 on become rows m ... m + 16.
  template <class Row>
  void pack_left(int64_t m, Row from, int64_t u0, int64_t columns, int64_t depth) {
    pack_transposed(from, u0, columns, depth, left_.get() + m * stride_, stride_);
  }
  // A row of ones; where it begins a block of 16 rows, the others are zero.
  void pack_ones(int64_t m, int64_t depth) {
    bfloat16* to = left_.get() + m * stride_;
    if (m % 16 == 0) std::memset(to, 0, size_t(16 * stride_) * sizeof(bfloat16));
    for (int64_t k = 0; k < padded_depth(depth); ++k) to[k] = k < depth ? 0x3f80 : 0;
  }
  template <class Row>
  void add(Range which, Row from, int64_t depth, bool first) {
    for (int64_t j = which.from; j < which.to; ++j) {
      bfloat16* panel = right_.get() + j * panel_size(depth);
      pack_panel_of_columns(from, j * kPanelColumns, columns_, depth, panel);
      float* z = sums(j);
      first ? Multiply::panel<false>(rows_, left_.get(), stride_, panel, blocks_of(depth), z, kPanelColumns)
            : Multiply::panel<true>(rows_, left_.get(), stride_, panel, blocks_of(depth), z, kPanelColumns);
    }
  }
  void clear(Range which) {
    if (!empty())
      std::memset(sums(which.from), 0, size_t((which.to - which.from) * rows_ * kPanelColumns) * sizeof(float));
  }
  float* sums(int64_t panel) const { return sums_.get() + panel * rows_ * kPanelColumns; }

 private:
  static int64_t panel_size(int64_t depth) { return blocks_of(depth) * kPanelBlock; }
  int64_t rows_, columns_, stride_;
  Buffer<bfloat16> left_, right_;
  Buffer<float> sums_;
};

// See WeightGradients. Every object has sums of its own; `finish` and `combine` write them to the outputs as type W.
template <class W>
class BfloatWeightGradients {
  using Outputs = fastlstm::cpu::Products<float, bfloat16, W>;

 public:
  BfloatWeightGradients(const Shape& shape, const Schedule& schedule, const Outputs& products, int64_t max_rows,
                        int index)
      : s(shape),
        schedule_(schedule),
        p(products),
        G(4 * shape.H),
        at_(p, shape.P),
        gates_(at_.rows, G, max_rows),
        hr_(p.dw_hr ? s.P : 0, s.H, max_rows),
        own_table_(p.d_table && index > 0 ? p.V * G : 0),
        table_(own_table_.get() ? own_table_.get() : p.d_table) {}

  static bool private_sums(const Shape& s, const Schedule& schedule, const Outputs& p, int64_t threads) {
    const int64_t N = schedule.rows(), H = s.H;
    const int64_t numbers = 4 * H * (Rows(p, s.P).rows + (p.d_table ? p.V : 0)) + (p.dw_hr ? s.P * H : 0);
    return threads == 1 ||
           (N >= 256 * threads && N >= 4 * p.V && threads * numbers * int64_t(sizeof(float)) <= kMaxSumBytes);
  }

  void clear(ThreadRank thread, bool none) {
    if (table_) {
      const Range columns = thread.split(p.V * G);
      std::memset(table_ + columns.from, 0, size_t(columns.to - columns.from) * sizeof(float));
    }
    if (!none) return;
    gates_.clear(thread.split(gates_.panels()));
    hr_.clear(thread.split(hr_.panels()));
  }

  template <class Sync>
  void add(const Chunk& chunk, const ChunkRows<bfloat16>& rows, bool first, ThreadRank thread, Sync sync) {
    const int64_t N = chunk.size();
    const auto row_of = [](const bfloat16* data, int64_t stride) {
      return [=](int64_t n) { return data + n * stride; };
    };
    if (p.dw_x)
      each_16(thread, p.I, [&](int64_t u) {
        gates_.pack_left(at_.x + u, [&](int64_t n) { return p.x + chunk.row[size_t(n)] * p.I; }, u, p.I, N);
      });
    if (p.dw_hh) {
      const std::vector<const bfloat16*> from = previous_rows(s, schedule_, chunk, p.h, p.h0);
      each_16(thread, s.P,
              [&](int64_t u) { gates_.pack_left(at_.h + u, [&](int64_t n) { return from[size_t(n)]; }, u, s.P, N); });
    }
    if (p.dw_hr) each_16(thread, s.P, [&](int64_t u) { hr_.pack_left(u, row_of(rows.dh_proj, s.P), u, s.P, N); });
    sync();
    if (p.dbias && thread.index == 0) gates_.pack_ones(at_.ones, N);  // in a row that others may have filled with zeros
    sync();
    gates_.add(thread.split(gates_.panels()), row_of(rows.d_gates, rows.stride), N, first);
    hr_.add(thread.split(hr_.panels()), row_of(rows.h_unprojected, s.H), N, first);
    if (table_) {
      const Range columns = thread.split(G, 16);
      for (int64_t n = 0; n < N; ++n) {
        float* to = table_ + p.ids[chunk.row[size_t(n)]] * G;
        const bfloat16* from = rows.d_gates + n * rows.stride;
        for (int64_t u = columns.from; u < columns.to; u += 16)
          store_16(Vec<float>(_mm512_maskz_loadu_ps(first_16(columns.to - u), to + u)) +
                       load_bfloat16(from + u, columns.to - u),
                   to + u, columns.to - u);
      }
    }
  }

  void finish(ThreadRank thread) { write({this}, 1, thread); }
  static void combine(const std::vector<BfloatWeightGradients*>& all, ThreadRank thread) {
    all[0]->write(all, thread.count, thread);
  }

 private:
  // Rows of (x, h_prev, 1)^T: where each part begins. The ones lie in the padding of another part where there is some.
  struct Rows {
    int64_t x = 0, h, ones, rows;
    Rows(const Outputs& p, int64_t P) {
      const auto whole = [](int64_t n) { return (n + 15) / 16 * 16; };
      const int64_t I = p.dw_x ? p.I : 0;
      P = p.dw_hh ? P : 0;
      h = whole(I);
      rows = h + whole(P);
      ones = I % 16 ? I : P % 16 ? h + P : rows;
      if (p.dbias && ones == rows) rows += 16;
    }
  };

  template <class Body>
  static void each_16(ThreadRank thread, int64_t n, Body body) {
    const Range range = thread.split(n, 16);
    for (int64_t u = range.from; u < range.to; u += 16) body(u);
  }

  // The sums of the first `count` of `all` to the outputs: this thread's part.
  void write(const std::vector<BfloatWeightGradients*>& all, int count, ThreadRank thread) {
    const auto turned = [&](W* to, int64_t first_row, int64_t width) {
      if (!to) return;
      const Range panels = thread.split(panels_of(G));
      for (int64_t j = panels.from; j < panels.to; ++j)
        for (int64_t u = 0; u < kPanelColumns && j * kPanelColumns + u < G; u += 16)
          for (int64_t m = 0; m < width; m += 16) {
            __m512i r[16];
#pragma GCC unroll 16
            for (int e = 0; e < 16; ++e) r[e] = (__m512i)sum_at(all, count, j, first_row + m + e, u).v;
            transpose_words(r);
            for (int64_t e = 0, row = j * kPanelColumns + u; e < 16 && row < G; ++e, ++row)
              store_16(Vec<float>((Vec<float>::Raw)r[e]), to + row * width + m, width - m);
          }
    };
    turned(p.dw_x, at_.x, p.I);
    turned(p.dw_hh, at_.h, s.P);
    if (p.dbias) {
      const Range columns = thread.split(G, 16);
      for (int64_t u = columns.from; u < columns.to; u += 16)
        store_16(sum_at(all, count, u / kPanelColumns, at_.ones, u % kPanelColumns), p.dbias + u, columns.to - u);
    }
    if (p.dw_hr) {
      const Range rows = thread.split(s.P);
      for (int64_t m = rows.from; m < rows.to; ++m)
        for (int64_t u = 0; u < s.H; u += 16) {
          Vec<float> sum(0.0f);
          for (int i = 0; i < count; ++i) sum += part_of(all[size_t(i)]->hr_, u / kPanelColumns, m, u % kPanelColumns);
          store_16(sum, p.dw_hr + m * s.H + u, s.H - u);
        }
    }
    if (p.d_table && count > 1) {
      const Range part = thread.split(p.V * G);
      for (int i = 1; i < count; ++i)
        for (int64_t k = part.from; k < part.to; ++k) p.d_table[k] += all[size_t(i)]->table_[k];
    }
  }
  static FASTLSTM_INLINE Vec<float> sum_at(const std::vector<BfloatWeightGradients*>& all, int count, int64_t panel,
                                           int64_t row, int64_t u) {
    Vec<float> sum = part_of(all[0]->gates_, panel, row, u);
    for (int i = 1; i < count; ++i) sum += part_of(all[size_t(i)]->gates_, panel, row, u);
    return sum;
  }
  static FASTLSTM_INLINE Vec<float> part_of(const TransposedProduct& product, int64_t panel, int64_t row, int64_t u) {
    if (product.empty()) return Vec<float>(0.0f);
    return Vec<float>::load(product.sums(panel) + row * kPanelColumns + u);
  }

  const Shape& s;
  const Schedule& schedule_;
  const Outputs& p;
  int64_t G;
  Rows at_;
  TransposedProduct gates_, hr_;
  Buffer<float> own_table_;
  float* table_;
};

}  // namespace FASTLSTM_ISA
