// The large products of a recurrence, chunk by chunk of its steps: what one chunk writes is still in the caches when it
// is read, and neither the pre-activations nor their gradients are written down for the whole sequence where nobody
// keeps them.
//
// Where every thread has rows of its own in the recurrence, it has chunks of its own too, of a size that stays in its
// second-level cache, and never waits for the others (the backward pass gains 3 to 8 %, more on a busy machine). Where
// threads share the rows, they share chunks.
#pragma once
#include "gemm.h"
#include "team.h"

namespace FASTLSTM_ISA {

// Rows of a shared chunk: its products read and write the weights and their gradients, and threads meet. More than
// these gain nothing.
template <class R>
int64_t shared_rows(int64_t H) {
  const int64_t fitting = (int64_t(4) << 20) / (4 * H * int64_t(sizeof(R)) + 1);
  return fitting < 1024 ? 1024 : fitting;
}

// Rows of a thread's own chunk: few, which stay in its second-level cache, unless gradients of weights that do not
// would then be read and written too often.
template <class R>
int64_t own_rows(int64_t H) {
  const int64_t bytes = 4 * H * H * int64_t(sizeof(R));
  return bytes <= (1 << 20) ? 128 : 512;
}

// The steps of a chunk, [from, to) in the order of processing, and what they have of the rows `which`, numbered from 0
// in the order of time.
class Chunk {
 public:
  // As many steps as make `most` rows, at least one; time(k): the time of step number k.
  template <class Time>
  Chunk(const Steps& steps, Range which, int64_t k, int64_t most, Time time) : from(k), to(k) {
    for (int64_t n = 0; to < steps.s.T && (to == from || n < most); ++to) n += steps.living(time(to), which);
    times =
        from == to ? Range{0, 0} : Range{std::min(time(from), time(to - 1)), std::max(time(from), time(to - 1)) + 1};
    for (int64_t t = times.from; t < times.to; ++t) {
      first_.push_back(steps.row(t, which.from) - int64_t(row.size()));
      const int64_t n = steps.living(t, which);
      for (int64_t b = which.from; b < which.from + n; ++b) row.push_back(steps.row(t, b));
    }
  }
  // All steps, where rows are not asked for.
  explicit Chunk(int64_t T) : from(0), to(T), times{0, T} {}

  int64_t size() const { return int64_t(row.size()); }
  // steps.row(t, b) less this is the number of a row
  int64_t first(int64_t t) const { return first_[size_t(t - times.from)]; }

  int64_t from, to;
  Range times;
  std::vector<int64_t> row;  // where each lies in the sequence

 private:
  std::vector<int64_t> first_;
};

// Who takes part in a product: thread `i` of `threads`.
struct Part {
  int i, threads;
  Range of(int64_t n, int64_t unit = 1) const {
    const Range blocks = share((n + unit - 1) / unit, i, threads);
    return {blocks.from * unit, blocks.to * unit < n ? blocks.to * unit : n};
  }
};

// xg = x @ w_x^T for the rows of a chunk.
template <class R>
class InputSide {
 public:
  InputSide(const R* x, const R* w_x, int64_t I, int64_t H)
      : x_(x), w_x_(w_x), I_(I), W_(4 * H), packed_(x ? GemmBlock<R>::packed_size(W_, I) : 0) {}
  void pack(Part part) {
    if (x_)
      GemmBlock<R>::pack({nullptr, x_, w_x_, 0, W_, I_, W_, I_, 1, 1, I_, false, 1}, part.of(panels()), packed_.get());
  }
  // Row number n of the chunk becomes row n of xg or, `in_place`, the row of the sequence that it is.
  void run(const Chunk& chunk, R* xg, bool in_place, Part part) {
    const int64_t* at = chunk.row.data();
    const Gemm<R> g{xg, x_, w_x_, chunk.size(), W_, I_, W_, I_, 1, 1, I_, false, 1, in_place ? at : nullptr, at};
    GemmBlock<R>::run_packed(g, part.of(chunk.size(), kMaxRows), packed_.get());
  }

 private:
  int64_t panels() const { return GemmBlock<R>::panels(W_); }
  const R *x_, *w_x_;
  int64_t I_, W_;
  Buffer<R> packed_;
};

// dx = dxg @ w_x for the rows of a chunk.
template <class R>
class InputGradient {
 public:
  InputGradient(R* dx, const R* w_x, int64_t I, int64_t H)
      : dx_(dx), w_x_(w_x), I_(I), W_(4 * H), packed_(dx ? GemmBlock<R>::packed_size(I, W_) : 0) {}
  void pack(Part part) {
    if (dx_)
      GemmBlock<R>::pack({nullptr, nullptr, w_x_, 0, I_, W_, I_, W_, 1, I_, 1, false, 1}, part.of(panels()),
                         packed_.get());
  }
  void run(const Chunk& chunk, const R* dxg, Part part) {
    if (!dx_) return;
    const Gemm<R> g{dx_, dxg, w_x_, chunk.size(), I_, W_, I_, W_, 1, I_, 1, false, 1, chunk.row.data(), nullptr};
    GemmBlock<R>::run_packed(g, part.of(chunk.size(), kMaxRows), packed_.get());
  }

 private:
  int64_t panels() const { return GemmBlock<R>::panels(I_); }
  R* dx_;
  const R* w_x_;
  int64_t I_, W_;
  Buffer<R> packed_;
};

}  // namespace FASTLSTM_ISA
