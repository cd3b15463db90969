// Gradients of the weights and the bias, summed over chunks of steps (chunks.h) while dxg is in the caches.
#pragma once
#include "chunks.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Products;

// Bytes that sums of threads may take beside the gradients themselves.
constexpr int64_t kMostSums = int64_t(64) << 20;

// What the backward recurrence writes for the rows of a chunk: row n of each array is that of number `first` + n.
template <class R>
struct ChunkRows {
  R* dxg;   // (rows, 4H) gradients at the pre-activations
  R* d_hr;  // (rows, P) gradients at the projected h, or null
  R* y;     // (rows, H) what is projected to h, or null
  int64_t first;
};

// Memory for them: d_hr and y where dw_hr follows from them.
template <class R>
class ChunkMemory {
 public:
  ChunkMemory(int64_t rows, int64_t H, int64_t P, const Products<R>& p)
      : dxg_(rows * 4 * H), d_hr_(p.dw_hr ? rows * P : 0), y_(p.dw_hr ? rows * H : 0) {}
  ChunkRows<R> rows() const { return {dxg_.get(), d_hr_.get(), y_.get(), 0}; }

 private:
  Buffer<R> dxg_, d_hr_, y_;
};

// dw_x, dbias, dw_hh and dw_hr of the rows of all chunks that `add` was called with. Several threads may work on one
// object: each calls every function.
template <class R>
class WeightGradients {
  using Block = GemmBlock<R>;

 public:
  WeightGradients(const Shape& shape, const Steps& steps, const Products<R>& products, int64_t most_rows)
      : s(shape),
        steps_(steps),
        p(products),
        W(4 * shape.H),
        x_(p.dw_x && p.V == 0 ? Block::packed_size(p.I, most_rows) : 0),
        h_(p.dw_hh ? Block::packed_size(s.P, most_rows) : 0),
        y_(p.dw_hr ? Block::packed_size(s.H, most_rows) : 0) {}

  // Whether threads with rows of their own may have sums of their own, to be added in the end: they take memory, and a
  // table of many ids would take more than the rows that are added to it.
  static bool splits(const Shape& s, const Steps& steps, const Products<R>& p, int64_t threads) {
    const int64_t N = steps.offset.back(), bytes = (threads - 1) * count(p, s.H, s.P) * int64_t(sizeof(R));
    return threads == 1 || (N >= 256 * threads && N >= 4 * p.V && bytes <= kMostSums);
  }

  // Numbers in dw_x, dw_hh, dw_hr and dbias, where they are wanted
  static int64_t count(const Products<R>& p, int64_t H, int64_t P) {
    return count_x(p, H) + count_h(p, H, P) + count_y(p, H, P) + 4 * H;
  }
  // Products that go to `sums` instead
  static Products<R> to(Products<R> p, R* sums, int64_t H, int64_t P) {
    const int64_t x = count_x(p, H), h = count_h(p, H, P), y = count_y(p, H, P);
    if (p.dw_x) p.dw_x = sums;
    if (p.dw_hh) p.dw_hh = sums + x;
    if (p.dw_hr) p.dw_hr = sums + x + h;
    if (p.dbias) p.dbias = sums + x + h + y;
    return p;
  }

  // Before the first chunk. none: no chunk will have rows.
  void clear(Part part, bool none) {
    zero(p.dbias, part.of(W));
    if (none || p.V > 0) zero(p.dw_x, part.of(count_x(p, s.H)));
    if (none) zero(p.dw_hh, part.of(W * s.P));
    if (none) zero(p.dw_hr, part.of(s.P * s.H));
  }

  // first: no chunk was added before. meet(): between packing by all and its use by all.
  template <class Meet>
  void add(const Chunk& chunk, const ChunkRows<R>& rows, bool first, Part part, Meet meet) {
    if (x_.get())
      pack_rows(part.of(Block::panels(p.I)), p.I, x_.get(), chunk.size(),
                [&](int64_t n) { return p.x + chunk.row[size_t(n)] * p.I; });
    if (h_.get()) pack_previous(chunk, part.of(Block::panels(s.P)));
    if (y_.get())
      pack_rows(part.of(Block::panels(s.H)), s.H, y_.get(), chunk.size(), [&](int64_t n) { return rows.y + n * s.H; });
    meet();
    products(chunk.size(), rows, part, first);
    if (p.dw_x && p.V > 0) {
      const Range columns = part.of(W);
      for (int64_t n = 0; n < chunk.size(); ++n)
        sum(p.dw_x + p.ids[chunk.row[size_t(n)]] * W, rows.dxg + n * W, columns);
    }
  }

  // Adds what another object has found.
  void add(const Products<R>& other, Part part) {
    if (p.dbias) sum(p.dbias, other.dbias, part.of(W));
    if (p.dw_x) sum(p.dw_x, other.dw_x, part.of(count_x(p, s.H)));
    if (p.dw_hh) sum(p.dw_hh, other.dw_hh, part.of(W * s.P));
    if (p.dw_hr) sum(p.dw_hr, other.dw_hr, part.of(s.P * s.H));
  }

 private:
  static constexpr int64_t kBothSides = 640 << 10;

  static int64_t count_x(const Products<R>& p, int64_t H) { return p.dw_x ? 4 * H * (p.V > 0 ? p.V : p.I) : 0; }
  static int64_t count_h(const Products<R>& p, int64_t H, int64_t P) { return p.dw_hh ? 4 * H * P : 0; }
  static int64_t count_y(const Products<R>& p, int64_t H, int64_t P) { return p.dw_hr ? P * H : 0; }

  static void zero(R* to, Range range) {
    if (to) std::memset(to + range.from, 0, size_t(range.to - range.from) * sizeof(R));
  }
  static void sum(R* to, const R* from, Range columns) {
    for (int64_t k = columns.from; k < columns.to; ++k) to[k] += from[k];
  }

  // The panels `which` of a right side whose row n begins at row(n), or is zero where that is null.
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

  // The h that each row read: of the step before, h0, or zero after a reset
  void pack_previous(const Chunk& chunk, Range which) {
    std::vector<const R*> from;
    from.reserve(size_t(chunk.size()));
    for (int64_t t = chunk.times.from; t < chunk.times.to; ++t) {
      const int64_t base = steps_.row(t, 0);
      for (size_t n = from.size(); n < chunk.row.size() && chunk.row[n] < base + steps_.alive(t); ++n) {
        const int64_t b = chunk.row[n] - base;
        const R* h = steps_.is_first(t, b) ? p.h0 + b * s.P : p.h + steps_.row(t + (s.reverse ? 1 : -1), b) * s.P;
        from.push_back(steps_.resets(t, b) ? nullptr : h);
      }
    }
    pack_rows(which, s.P, h_.get(), chunk.size(), [&](int64_t n) { return from[size_t(n)]; });
  }

  // One product with the transposed left side: a right side as it was packed, and where its product goes.
  struct Right {
    const R* packed;
    int64_t columns;
    R* to;
  };

  // This part's rows of dw_x and dw_hh, of dw_hr, and of the sum of dxg, the bias. One pass over dxg does the first two
  // where the packed sides of both fit into the second-level cache.
  void products(int64_t N, const ChunkRows<R>& rows, Part part, bool first) {
    const Range mine = part.of(W, kMaxRows);
    const Right x{x_.get(), p.I, p.dw_x}, h{h_.get(), s.P, p.dw_hh}, y{y_.get(), s.H, p.dw_hr}, none{};
    const int64_t bytes = (p.I + s.P) * kDepth<R> * int64_t(sizeof(R));
    const bool apart = x.packed && h.packed && bytes > kBothSides;
    pass(N, rows.dxg, W, mine, first, x, apart ? none : h, p.dbias);
    if (apart) pass(N, rows.dxg, W, mine, first, h, none, nullptr);
    if (y.packed) pass(N, rows.d_hr, s.P, part.of(s.P, kMaxRows), first, y, none, nullptr);
  }
  // Of the columns `mine` of left (N, width): their products with the right sides, and their sum
  void pass(int64_t N, const R* left, int64_t width, Range mine, bool first, Right x, Right h, R* sum_of_left) {
    constexpr int64_t most = Block::kBlockRows;
    Buffer<R> a(x.packed || h.packed ? kDepth<R> * most : 0);
    const auto times = [&](const Right& right, int64_t k, int depth, int64_t m, int64_t n) {
      const int64_t packed_columns = Block::panels(right.columns) * Panel<R>::units;
      Block::block(a.get(), n, depth, right.packed + k * packed_columns, right.columns, right.to + m * right.columns,
                   right.columns, !first || k > 0);
    };
    for_pieces(0, N, kDepth<R>, [&](int64_t k, int depth) {
      for (int64_t m = mine.from; m < mine.to; m += most) {
        const int64_t n = m + most < mine.to ? most : mine.to - m;
        const R* from = left + k * width + m;
        if (a.get()) Block::pack_columns(from, width, n, depth, a.get());
        if (x.packed) times(x, k, depth, m, n);
        if (h.packed) times(h, k, depth, m, n);
        if (sum_of_left) add_bias(from, depth, n, sum_of_left + m);
      }
    });
  }
  // to[u] += from[n * W + u] over all n: rows in groups, then groups. A plain sum of thousands of rows rounds too much.
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
  const Steps& steps_;
  const Products<R> p;
  int64_t W;
  Buffer<R> x_, h_, y_;
};

}  // namespace FASTLSTM_ISA
