// The large products of a recurrence, chunk by chunk of its steps, by the team of threads that runs it: what one chunk
// writes is still in the caches when it is read, and neither the pre-activations nor their gradients are written down
// for the whole sequence where nobody keeps them. Every thread calls every function here, with its number.
#pragma once
#include "gemm.h"
#include "team.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Products;

// Rows of a chunk. Smaller ones stay closer, but their products read and write the weights and their gradients more
// often: 256 rows take 4 to 10 % longer, at every H from 64 to 1024; more than these gain nothing.
template <class R>
int64_t chunk_rows(int64_t H) {
  const int64_t fitting = (int64_t(4) << 20) / (4 * H * int64_t(sizeof(R)) + 1);
  return fitting < 1024 ? 1024 : fitting;
}

// Steps in the order of processing, [from, to), and their rows.
struct Chunk {
  int64_t from, to;
  Range rows;
};

// The chunk that begins with step number `from`; time(k): the time of the k-th step processed.
template <class Time>
Chunk chunk_from(const Steps& steps, int64_t from, int64_t rows, Time time) {
  int64_t to = from + 1;
  Range span = steps.span(time(from), time(from));
  while (to < steps.s.T && span.to - span.from < rows) {
    span = steps.span(time(from), time(to));
    ++to;
  }
  return {from, to, span};
}

inline Range share_rows(int64_t n, int i, int parts, int64_t unit) {
  const Range blocks = share((n + unit - 1) / unit, i, parts);
  return {blocks.from * unit, blocks.to * unit < n ? blocks.to * unit : n};
}

// xg = x @ w_x^T for the rows of a chunk.
template <class R>
class InputSide {
 public:
  InputSide(const R* x, const R* w_x, int64_t I, int64_t H)
      : x_(x), w_x_(w_x), I_(I), W_(4 * H), packed_(x ? GemmBlock<R>::packed_size(W_, I) : 0) {}
  void pack(int i, int threads) {
    if (x_) GemmBlock<R>::pack(product({0, 0}, nullptr), share(GemmBlock<R>::panels(W_), i, threads), packed_.get());
  }
  void run(Range rows, R* xg, int i, int threads) {
    GemmBlock<R>::run_packed(product(rows, xg), share_rows(rows.to - rows.from, i, threads, kMaxRows), packed_.get());
  }

 private:
  Gemm<R> product(Range rows, R* xg) const {
    return {xg, x_ + rows.from * I_, w_x_, rows.to - rows.from, W_, I_, W_, I_, 1, 1, I_, false, 1};
  }
  const R *x_, *w_x_;
  int64_t I_, W_;
  Buffer<R> packed_;
};

// dx, dw_x, dbias and dw_hh of the rows of a chunk, from dxg.
template <class R>
class ChunkProducts {
  using Block = GemmBlock<R>;

 public:
  ChunkProducts(const Shape& shape, const Steps& steps, const Products<R>& products, int64_t most_rows)
      : s(shape),
        steps_(steps),
        p(products),
        W(4 * shape.H),
        w_(p.dx ? Block::packed_size(p.I, W) : 0),
        x_(p.dw_x && p.V == 0 ? Block::packed_size(p.I, most_rows) : 0),
        h_(p.dw_hh ? Block::packed_size(s.P, most_rows) : 0) {}

  // Before the first chunk
  void pack(int i, int threads) {
    if (p.dx) Block::pack(input_gradient({0, 0}, nullptr), share(Block::panels(p.I), i, threads), w_.get());
    const Range columns = share(W, i, threads);
    if (p.dbias) clear(p.dbias, columns);
    if (p.dw_x && p.V > 0)
      for (int64_t v = 0; v < p.V; ++v) clear(p.dw_x + v * W, columns);
    if (steps_.offset.back() > 0) return;  // else no chunk has rows, and nothing else writes these
    if (p.dw_x && p.V == 0) clear(p.dw_x, share(W * p.I, i, threads));
    if (p.dw_hh) clear(p.dw_hh, share(W * s.P, i, threads));
  }

  // dxg: of the chunk's first row on. The threads meet before, after, and in between.
  void run(const Chunk& chunk, Range times, const R* dxg, int i, int threads, Barrier& barrier) {
    const Range rows = chunk.rows;
    if (x_.get()) {
      const Gemm<R> g{nullptr, nullptr, p.x + rows.from * p.I, 0, p.I, rows.to - rows.from, 0, 0, 0, p.I, 1, false, 1};
      Block::pack(g, share(Block::panels(p.I), i, threads), x_.get());
    }
    if (h_.get()) pack_previous(rows, times, share(Block::panels(s.P), i, threads));
    barrier.wait();
    weights(chunk, dxg, share_rows(W, i, threads, kMaxRows));
    if (p.dx) {
      const Range own = share_rows(rows.to - rows.from, i, threads, kMaxRows);
      Block::run_packed(input_gradient(rows, dxg), own, w_.get());
    }
    if (p.dw_x && p.V > 0) add_by_id(rows, dxg, share(W, i, threads));
  }

 private:
  static void clear(R* to, Range range) { std::memset(to + range.from, 0, size_t(range.to - range.from) * sizeof(R)); }

  // dx (rows, I) = dxg @ w_x (4H, I)
  Gemm<R> input_gradient(Range rows, const R* dxg) const {
    return {
        p.dx ? p.dx + rows.from * p.I : nullptr, dxg, p.w_x, rows.to - rows.from, p.I, W, p.I, W, 1, p.I, 1, false, 1};
  }

  // The h that each row read, packed as the right side of dw_hh: of the step before, h0, or zero after a reset
  void pack_previous(Range rows, Range times, Range which) {
    constexpr int units = Panel<R>::units;
    const int64_t N = rows.to - rows.from, all = Block::panels(s.P) * units;
    std::vector<const R*> from(size_t(N), nullptr);
    for (int64_t t = times.from; t < times.to; ++t)
      for (int64_t b = 0; b < steps_.alive(t); ++b) {
        const int64_t n = steps_.row(t, b) - rows.from;
        if (steps_.resets(t, b)) continue;
        from[size_t(n)] = steps_.is_first(t, b) ? p.h0 + b * s.P : p.h + steps_.row(t + (s.reverse ? 1 : -1), b) * s.P;
      }
    for_pieces(0, N, kDepth<R>, [&](int64_t k, int depth) {
      for (int64_t j = which.from; j < which.to; ++j) {
        const int64_t u = j * units, count = s.P - u < units ? s.P - u : units;
        R* to = h_.get() + k * all + u * depth;
        for (int64_t n = 0; n < depth; ++n, to += units) {
          const R* h = from[size_t(k + n)];
          if (h && count == units)
            std::memcpy(to, h + u, units * sizeof(R));
          else
            for (int64_t e = 0; e < units; ++e) to[e] = h && e < count ? h[u + e] : R(0);
        }
      }
    });
  }

  // Of the columns of dxg that are `mine`: dw_x and dw_hh, by products with what `run` packed, and their sum, the bias.
  // One pass over dxg does both where the packed sides of both fit into the second-level cache.
  void weights(const Chunk& chunk, const R* dxg, Range mine) {
    const int64_t bytes = (p.I + s.P) * kDepth<R> * int64_t(sizeof(R));
    if (x_.get() && h_.get() && bytes > kBothSides) {
      pass(chunk, dxg, mine, x_.get(), nullptr, p.dbias);
      pass(chunk, dxg, mine, nullptr, h_.get(), nullptr);
    } else {
      pass(chunk, dxg, mine, x_.get(), h_.get(), p.dbias);
    }
  }
  void pass(const Chunk& chunk, const R* dxg, Range mine, const R* x, const R* h, R* dbias) {
    constexpr int64_t most = Block::kBlockRows;
    const int64_t N = chunk.rows.to - chunk.rows.from, x_columns = Block::panels(p.I) * Panel<R>::units,
                  h_columns = Block::panels(s.P) * Panel<R>::units;
    Buffer<R> a(x || h ? kDepth<R> * most : 0);
    for_pieces(0, N, kDepth<R>, [&](int64_t k, int depth) {
      const bool add = chunk.from > 0 || k > 0;
      for (int64_t m = mine.from; m < mine.to; m += most) {
        const int64_t n = m + most < mine.to ? most : mine.to - m;
        const R* from = dxg + k * W + m;
        if (x || h) Block::pack_columns(from, W, n, depth, a.get());
        if (x) Block::block(a.get(), n, depth, x + k * x_columns, p.I, p.dw_x + m * p.I, p.I, add);
        if (h) Block::block(a.get(), n, depth, h + k * h_columns, s.P, p.dw_hh + m * s.P, s.P, add);
        if (dbias) add_bias(from, depth, n, dbias + m);
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
  void add_by_id(Range rows, const R* dxg, Range columns) {
    for (int64_t n = 0; n < rows.to - rows.from; ++n) add(p.dw_x + p.ids[rows.from + n] * W, dxg + n * W, columns);
  }
  static constexpr int64_t kBothSides = 640 << 10;
  static void add(R* to, const R* from, Range columns) {
    for (int64_t k = columns.from; k < columns.to; ++k) to[k] += from[k];
  }

  const Shape& s;
  const Steps& steps_;
  const Products<R>& p;
  int64_t W;
  Buffer<R> w_, x_, h_;
};

}  // namespace FASTLSTM_ISA
