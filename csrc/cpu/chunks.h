// The large products of a layer, computed per chunk of time steps: a chunk's output is read from the second-level
// cache, and no (N, 4H) buffer is needed unless the caller saves gates or their gradients.
//
// A partition by rows gives every thread chunks of its own, of a size that stays in its second-level cache, without
// barriers (the backward pass gains 3 to 8 %, more on a busy machine). A partition by units shares chunks.
#pragma once
#include "gemm.h"
#include "schedule.h"

namespace FASTLSTM_ISA {

// Rows of a shared chunk. Each chunk costs barriers and one pass over the weights and their gradients; more rows than
// these gain nothing.
template <class R>
int64_t shared_chunk_rows(int64_t H) {
  const int64_t fitting = (int64_t(4) << 20) / (4 * H * int64_t(sizeof(R)) + 1);
  return fitting < 1024 ? 1024 : fitting;
}

// Rows of a private chunk: few, which stay in the thread's second-level cache, unless the gradients of the weights are
// too large for it and would be read and written too often.
template <class R>
int64_t private_chunk_rows(int64_t H) {
  const int64_t bytes = 4 * H * H * int64_t(sizeof(R));
  return bytes <= (1 << 20) ? 128 : 512;
}

// The steps of a chunk, [from, to) in the order of processing, and those of their rows that a thread owns, numbered
// from 0 in the order of time.
class Chunk {
 public:
  // As many steps from k on as make `max_rows` rows of `owned`, at least one; time(k): the time of step number k.
  template <class Time>
  Chunk(const Schedule& schedule, Range owned, int64_t k, int64_t max_rows, Time time) : from(k), to(k) {
    for (int64_t n = 0; to < schedule.s.T && (to == from || n < max_rows); ++to)
      n += schedule.active_in(time(to), owned);
    times =
        from == to ? Range{0, 0} : Range{std::min(time(from), time(to - 1)), std::max(time(from), time(to - 1)) + 1};
    for (int64_t t = times.from; t < times.to; ++t) {
      first_.push_back(schedule.row(t, owned.from) - int64_t(row.size()));
      const int64_t n = schedule.active_in(t, owned);
      for (int64_t b = owned.from; b < owned.from + n; ++b) row.push_back(schedule.row(t, b));
    }
  }
  // All steps; without row numbers.
  explicit Chunk(int64_t T) : from(0), to(T), times{0, T} {}

  int64_t size() const { return int64_t(row.size()); }
  // Row (t, b) of the sequence has number steps.row(t, b) - first(t) in the chunk
  int64_t first(int64_t t) const { return first_[size_t(t - times.from)]; }

  int64_t from, to;
  Range times;
  std::vector<int64_t> row;  // (size(),) row of the sequence

 private:
  std::vector<int64_t> first_;
};

// x_gates = x @ w_x^T for the rows of a chunk.
template <class R>
class InputSide {
 public:
  InputSide(const R* x, const R* w_x, int64_t I, int64_t H)
      : x_(x), w_x_(w_x), I_(I), W_(4 * H), packed_(x ? GemmBlock<R>::packed_size(W_, I) : 0) {}
  void pack(ThreadRank thread) {
    if (x_)
      GemmBlock<R>::pack({nullptr, x_, w_x_, 0, W_, I_, W_, I_, 1, 1, I_, false, 1}, thread.split(panels()),
                         packed_.get());
  }
  // Numbers from one row of x_gates to the next, and those of a chunk of so many rows
  int64_t output_stride() const { return W_; }
  int64_t output_size(int64_t rows) const { return rows * W_; }
  // Row n of the chunk goes to row n of x_gates, or to its row of the sequence if x_gates holds the `whole_sequence`.
  void run(const Chunk& chunk, R* x_gates, bool whole_sequence, ThreadRank thread) {
    const int64_t* at = chunk.row.data();
    const Gemm<R> g{x_gates, x_, w_x_, chunk.size(), W_, I_, W_, I_, 1, 1, I_, false, 1, whole_sequence ? at : nullptr,
                    at};
    GemmBlock<R>::run_packed(g, thread.split(chunk.size(), kMaxRows), packed_.get());
  }

 private:
  int64_t panels() const { return GemmBlock<R>::panels(W_); }
  const R *x_, *w_x_;
  int64_t I_, W_;
  Buffer<R> packed_;
};

// dx = d_gates @ w_x for the rows of a chunk.
template <class R>
class InputGradient {
 public:
  InputGradient(R* dx, const R* w_x, int64_t I, int64_t H)
      : dx_(dx), w_x_(w_x), I_(I), W_(4 * H), packed_(dx ? GemmBlock<R>::packed_size(I, W_) : 0) {}
  void pack(ThreadRank thread) {
    if (dx_)
      GemmBlock<R>::pack({nullptr, nullptr, w_x_, 0, I_, W_, I_, W_, 1, I_, 1, false, 1}, thread.split(panels()),
                         packed_.get());
  }
  // Rows of d_gates are `stride` apart.
  void run(const Chunk& chunk, const R* d_gates, int64_t stride, ThreadRank thread) {
    if (!dx_) return;
    const Gemm<R> g{dx_, d_gates, w_x_, chunk.size(),     I_,     W_, I_, stride, 1, I_,
                    1,   false,   1,    chunk.row.data(), nullptr};
    GemmBlock<R>::run_packed(g, thread.split(chunk.size(), kMaxRows), packed_.get());
  }

 private:
  int64_t panels() const { return GemmBlock<R>::panels(I_); }
  R* dx_;
  const R* w_x_;
  int64_t I_, W_;
  Buffer<R> packed_;
};

}  // namespace FASTLSTM_ISA
