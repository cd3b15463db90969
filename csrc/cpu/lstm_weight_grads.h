// Gradients of the weights and the bias, summed over chunks of steps (chunks.h) while d_gates is in the caches.
#pragma once
#include "chunks.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Products;

// Limit in bytes of the threads' private sums.
constexpr int64_t kMaxSumBytes = int64_t(64) << 20;

// What the backward recurrence writes for the rows of a chunk: row n of the sequence is row n - first of each array.
template <class S>
struct ChunkRows {
  S* d_gates;        // (rows, 4H) gradients at the pre-activations
  S* dh_proj;        // (rows, P) gradients at the projected h, or null
  S* h_unprojected;  // (rows, H) o tanh(c), which is projected to h, or null
  int64_t stride;    // of d_gates
  int64_t first;
};

// Memory for them; dh_proj and h_unprojected only if dw_hr is wanted.
template <class R>
class ChunkMemory {
 public:
  ChunkMemory(int64_t rows, int64_t H, int64_t P, const Products<R>& p)
      : stride_(4 * H),
        d_gates_(rows * 4 * H),
        dh_proj_(p.dw_hr ? rows * P : 0),
        h_unprojected_(p.dw_hr ? rows * H : 0) {}
  ChunkRows<R> rows() const { return {d_gates_.get(), dh_proj_.get(), h_unprojected_.get(), stride_, 0}; }

 private:
  int64_t stride_;
  Buffer<R> d_gates_, dh_proj_, h_unprojected_;
};

// Where h_prev of each row of a chunk lies, in h (N, P) or h0 (B, P): h of the step before; null: zero, after a reset.
template <class S>
std::vector<const S*> previous_rows(const Shape& s, const Schedule& schedule, const Chunk& chunk, const S* h,
                                    const S* h0) {
  std::vector<const S*> from;
  from.reserve(size_t(chunk.size()));
  for (int64_t t = chunk.times.from; t < chunk.times.to; ++t) {
    const int64_t base = schedule.row(t, 0);
    for (size_t n = from.size(); n < chunk.row.size() && chunk.row[n] < base + schedule.active(t); ++n) {
      const int64_t b = chunk.row[n] - base;
      const S* before = schedule.is_first(t, b) ? h0 + b * s.P : h + schedule.previous_row(t, b) * s.P;
      from.push_back(schedule.resets(t, b) ? nullptr : before);
    }
  }
  return from;
}

// dw_x, d_table, dbias, dw_hh and dw_hr, summed over the chunks that `add` is called with. Threads that share an object
// all call every function, each with its rank.
template <class R>
class WeightGradients {
  using Block = GemmBlock<R>;

 public:
  // The object with index 0 sums into the outputs, others into memory of their own (`combine`).
  WeightGradients(const Shape& shape, const Schedule& schedule, const Products<R>& products, int64_t max_rows,
                  int index)
      : s(shape),
        schedule_(schedule),
        sums_(index > 0 ? count(products, shape.H, shape.P) : 0),
        p(index > 0 ? redirect(products, sums_.get(), shape.H, shape.P) : products),
        W(4 * shape.H),
        x_(p.dw_x ? Block::packed_size(p.I, max_rows) : 0),
        h_(p.dw_hh ? Block::packed_size(s.P, max_rows) : 0),
        h_unprojected_(p.dw_hr ? Block::packed_size(s.H, max_rows) : 0) {}

  // True if threads that partition the rows may keep private sums, which are added at the end. These take memory, and
  // the gradient of a large token table would be larger than the rows that are added to it.
  static bool private_sums(const Shape& s, const Schedule& schedule, const Products<R>& p, int64_t threads) {
    const int64_t N = schedule.rows(), bytes = (threads - 1) * count(p, s.H, s.P) * int64_t(sizeof(R));
    return threads == 1 || (N >= 256 * threads && N >= 4 * p.V && bytes <= kMaxSumBytes);
  }

  // Before the first chunk. none: no chunk will have rows.
  void clear(ThreadRank thread, bool none) {
    zero(p.dbias, thread.split(W));
    zero(p.d_table, thread.split(count_table(p, s.H)));
    if (none) zero(p.dw_x, thread.split(count_x(p, s.H)));
    if (none) zero(p.dw_hh, thread.split(W * s.P));
    if (none) zero(p.dw_hr, thread.split(s.P * s.H));
  }

  // first: no chunk was added before. sync(): the barrier of the threads that share this object.
  template <class Sync>
  void add(const Chunk& chunk, const ChunkRows<R>& rows, bool first, ThreadRank thread, Sync sync) {
    if (x_.get())
      pack_rows(thread.split(Block::panels(p.I)), p.I, x_.get(), chunk.size(),
                [&](int64_t n) { return p.x + chunk.row[size_t(n)] * p.I; });
    if (h_.get()) pack_previous(chunk, thread.split(Block::panels(s.P)));
    if (h_unprojected_.get())
      pack_rows(thread.split(Block::panels(s.H)), s.H, h_unprojected_.get(), chunk.size(),
                [&](int64_t n) { return rows.h_unprojected + n * s.H; });
    sync();
    products(chunk.size(), rows, thread, first);
    if (p.d_table) {
      const Range columns = thread.split(W);
      for (int64_t n = 0; n < chunk.size(); ++n)
        sum(p.d_table + p.ids[chunk.row[size_t(n)]] * W, rows.d_gates + n * W, columns);
    }
  }

  // After the last chunk, where all threads shared one object.
  void finish(ThreadRank) {}
  // The same where each had its own: adds the sums of the others to those of the first.
  static void combine(const std::vector<WeightGradients*>& all, ThreadRank thread) {
    for (int other = 1; other < thread.count; ++other) all[0]->add(all[size_t(other)]->p, thread);
  }

 private:
  static constexpr int64_t kOnePassBytes = 640 << 10;  // of packed right sides that one pass over d_gates may read

  void add(const Products<R>& other, ThreadRank thread) {
    if (p.dbias) sum(p.dbias, other.dbias, thread.split(W));
    if (p.d_table) sum(p.d_table, other.d_table, thread.split(count_table(p, s.H)));
    if (p.dw_x) sum(p.dw_x, other.dw_x, thread.split(count_x(p, s.H)));
    if (p.dw_hh) sum(p.dw_hh, other.dw_hh, thread.split(W * s.P));
    if (p.dw_hr) sum(p.dw_hr, other.dw_hr, thread.split(s.P * s.H));
  }

  // Numbers in the wanted gradients
  static int64_t count(const Products<R>& p, int64_t H, int64_t P) {
    return count_table(p, H) + count_x(p, H) + count_h(p, H, P) + count_h_unprojected(p, H, P) + 4 * H;
  }
  // `p` with its weight gradients in `sums`
  static Products<R> redirect(Products<R> p, R* sums, int64_t H, int64_t P) {
    const auto take = [&](R*& to, int64_t n) {
      if (to) to = sums;
      sums += n;
    };
    take(p.d_table, count_table(p, H));
    take(p.dw_x, count_x(p, H));
    take(p.dw_hh, count_h(p, H, P));
    take(p.dw_hr, count_h_unprojected(p, H, P));
    take(p.dbias, 4 * H);
    return p;
  }
  static int64_t count_table(const Products<R>& p, int64_t H) { return p.d_table ? 4 * H * p.V : 0; }
  static int64_t count_x(const Products<R>& p, int64_t H) { return p.dw_x ? 4 * H * p.I : 0; }
  static int64_t count_h(const Products<R>& p, int64_t H, int64_t P) { return p.dw_hh ? 4 * H * P : 0; }
  static int64_t count_h_unprojected(const Products<R>& p, int64_t H, int64_t P) { return p.dw_hr ? P * H : 0; }

  static void zero(R* to, Range range) {
    if (to) std::memset(to + range.from, 0, size_t(range.to - range.from) * sizeof(R));
  }
  static void sum(R* to, const R* from, Range columns) {
    for (int64_t k = columns.from; k < columns.to; ++k) to[k] += from[k];
  }

  // The panels `which` of a right side whose row n begins at row(n); null: a row of zeros.
  template <class Row>
  static void pack_rows(Range which, int64_t width, R* packed, int64_t N, Row row) {
    constexpr int units = Panel<R>::units;
    const int64_t all = Block::panels(width) * units;
    for_pieces(0, N, kDepth<R>, [&](int64_t k, int depth) {
      for (int64_t j = which.from; j < which.to; ++j) {
        const int64_t u = j * units, count = width - u < units ? width - u : units;
        R* to = packed + k * all + u * depth;
        for (int64_t n = 0; n < depth; ++n, to += units) {
          const R* from = row(k + n);
          if (from && count == units)
            std::memcpy(to, from + u, units * sizeof(R));
          else
            for (int64_t e = 0; e < units; ++e) to[e] = from && e < count ? from[u + e] : R(0);
        }
      }
    });
  }

  void pack_previous(const Chunk& chunk, Range which) {
    const std::vector<const R*> from = previous_rows(s, schedule_, chunk, p.h, p.h0);
    pack_rows(which, s.P, h_.get(), chunk.size(), [&](int64_t n) { return from[size_t(n)]; });
  }

  // out = left^T @ right, with the right side packed
  struct Right {
    const R* packed;
    int64_t columns;
    R* out;
  };

  // The thread's rows of dw_x = d_gates^T x, dw_hh = d_gates^T h_prev, dbias = sum of d_gates and
  // dw_hr = dh_proj^T h_unprojected. One pass over d_gates computes the first two if both packed right sides fit into
  // the second-level cache.
  void products(int64_t N, const ChunkRows<R>& rows, ThreadRank thread, bool first) {
    const Range columns = thread.split(W, kMaxRows);
    const Right x{x_.get(), p.I, p.dw_x}, h{h_.get(), s.P, p.dw_hh}, h_unprojected{h_unprojected_.get(), s.H, p.dw_hr},
        none{};
    const int64_t bytes = (p.I + s.P) * kDepth<R> * int64_t(sizeof(R));
    const bool two_passes = x.packed && h.packed && bytes > kOnePassBytes;
    pass(N, rows.d_gates, W, columns, first, x, two_passes ? none : h, p.dbias);
    if (two_passes) pass(N, rows.d_gates, W, columns, first, h, none, nullptr);
    if (h_unprojected.packed)
      pass(N, rows.dh_proj, s.P, thread.split(s.P, kMaxRows), first, h_unprojected, none, nullptr);
  }
  // The `columns` of left (N, width), transposed, times the right sides; and the sum of each column
  void pass(int64_t N, const R* left, int64_t width, Range columns, bool first, Right x, Right h, R* sum_of_left) {
    constexpr int64_t max_rows = Block::kBlockRows;
    Buffer<R> a(x.packed || h.packed ? kDepth<R> * max_rows : 0);
    const auto multiply = [&](const Right& right, int64_t k, int depth, int64_t m, int64_t n) {
      const int64_t packed_columns = Block::panels(right.columns) * Panel<R>::units;
      Block::block(a.get(), n, depth, right.packed + k * packed_columns, right.columns, right.out + m * right.columns,
                   right.columns, !first || k > 0);
    };
    for_pieces(0, N, kDepth<R>, [&](int64_t k, int depth) {
      for (int64_t m = columns.from; m < columns.to; m += max_rows) {
        const int64_t n = m + max_rows < columns.to ? max_rows : columns.to - m;
        const R* from = left + k * width + m;
        if (a.get()) Block::pack_columns(from, width, n, depth, a.get());
        if (x.packed) multiply(x, k, depth, m, n);
        if (h.packed) multiply(h, k, depth, m, n);
        if (sum_of_left) add_bias(from, depth, n, sum_of_left + m);
      }
    });
  }
  // to[u] += sum over n of from[n * W + u], in groups of 32 rows: a plain sum of thousands of rows rounds too much.
  void add_bias(const R* from, int64_t N, int64_t count, R* to) {
    constexpr int width = Vec<R>::width;
    for (int64_t u = 0; u < count; u += width) {
      Vec<R> all(R(0));
      for (int64_t n = 0; n < N; n += 32) {
        Vec<R> group(R(0));
        for (int64_t m = n; m < n + 32 && m < N; ++m) group += Vec<R>::load(from + m * W + u, count - u);
        all += group;
      }
      (Vec<R>::load(to + u, count - u) + all).store(to + u, count - u);
    }
  }

  const Shape& s;
  const Schedule& schedule_;
  Buffer<R> sums_;
  const Products<R> p;
  int64_t W;
  Buffer<R> x_, h_, h_unprojected_;
};

}  // namespace FASTLSTM_ISA
