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
 public:
  ChunkProducts(const Shape& shape, const Steps& steps, const Products<R>& products, int64_t most_rows)
      : s(shape),
        steps_(steps),
        p(products),
        W(4 * shape.H),
        w_(p.dx ? GemmBlock<R>::packed_size(p.I, W) : 0),
        x_(p.dw_x && p.V == 0 ? GemmBlock<R>::packed_size(p.I, most_rows) : 0),
        h_(p.dw_hh ? GemmBlock<R>::packed_size(s.P, most_rows) : 0) {}

  // Before the first chunk
  void pack(int i, int threads) {
    if (p.dx)
      GemmBlock<R>::pack(input_gradient({0, 0}, nullptr), share(GemmBlock<R>::panels(p.I), i, threads), w_.get());
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
      const Gemm<R> g = weight_gradient(chunk, dxg, p.dw_x, p.x + rows.from * p.I, p.I);
      GemmBlock<R>::pack(g, share(GemmBlock<R>::panels(p.I), i, threads), x_.get());
    }
    if (h_.get()) pack_previous(rows, times, share(GemmBlock<R>::panels(s.P), i, threads));
    barrier.wait();
    const Range mine = share_rows(W, i, threads, kMaxRows);
    if (x_.get()) GemmBlock<R>::run_packed(weight_gradient(chunk, dxg, p.dw_x, nullptr, p.I), mine, x_.get());
    if (h_.get()) GemmBlock<R>::run_packed(weight_gradient(chunk, dxg, p.dw_hh, nullptr, s.P), mine, h_.get());
    if (p.dx) {
      const Range own = share_rows(rows.to - rows.from, i, threads, kMaxRows);
      GemmBlock<R>::run_packed(input_gradient(rows, dxg), own, w_.get());
    }
    sums(rows, dxg, share_rows(W, i, threads, Vec<R>::width));
  }

 private:
  static void clear(R* to, Range range) { std::memset(to + range.from, 0, size_t(range.to - range.from) * sizeof(R)); }

  // dw (4H, width) += dxg^T @ b (rows, width)
  Gemm<R> weight_gradient(const Chunk& chunk, const R* dxg, R* dw, const R* b, int64_t width) const {
    return {dw, dxg, b, W, width, chunk.rows.to - chunk.rows.from, width, 1, W, width, 1, chunk.from > 0, 1};
  }
  // dx (rows, I) = dxg @ w_x (4H, I)
  Gemm<R> input_gradient(Range rows, const R* dxg) const {
    return {
        p.dx ? p.dx + rows.from * p.I : nullptr, dxg, p.w_x, rows.to - rows.from, p.I, W, p.I, W, 1, p.I, 1, false, 1};
  }

  // The h that each row read, packed as the right side of dw_hh: of the step before, h0, or zero after a reset
  void pack_previous(Range rows, Range times, Range which) {
    constexpr int units = Panel<R>::units;
    const int64_t N = rows.to - rows.from, all = GemmBlock<R>::panels(s.P) * units;
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

  // Sums over rows: of all (the bias), and by id (the table). Each thread owns columns.
  void sums(Range rows, const R* dxg, Range columns) {
    const int64_t N = rows.to - rows.from;
    if (p.dbias)
      for (int64_t k = columns.from; k < columns.to; k += Vec<R>::width) add_bias(N, dxg + k, k, columns.to - k);
    if (p.dw_x && p.V > 0)
      for (int64_t n = 0; n < N; ++n) add(p.dw_x + p.ids[rows.from + n] * W, dxg + n * W, columns);
  }
  // One register of columns: rows in groups, groups in a chunk, chunks. A plain sum of thousands of rows rounds too
  // much.
  void add_bias(int64_t N, const R* from, int64_t k, int64_t count) {
    Vec<R> chunk(R(0));
    for (int64_t n = 0; n < N; n += 32) {
      Vec<R> group(R(0));
      for (int64_t m = n; m < n + 32 && m < N; ++m) group += Vec<R>::load(from + m * W, count);
      chunk += group;
    }
    (Vec<R>::load(p.dbias + k, count) + chunk).store(p.dbias + k, count);
  }
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
