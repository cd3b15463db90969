// LSTM inference with int8 weights: one layer in one direction over a sequence.
//
//   z = (s_x * (q_x . w_ih)) * scale_ih + bias + (s_h * (q_h . w_hh)) * scale_hh,  then the cell in float
//
// The input side is computed in chunks of steps. Threads own rows, or own blocks of units and synchronise twice a step:
// after h is written, and after its rows are quantised, for the scale of a row depends on all units. Sums are exact and
// the rest has one order, so that neither threads nor the instruction set change a bit of the results.
#pragma once
#include "../cell.h"
#include "chunks.h"
#include "int8_product.h"
#include "math.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Int8Forward;
using fastlstm::cpu::Int8Layer;
using fastlstm::cpu::Int8Matrix;
using fastlstm::cpu::kUnitBlock;

// Rows of int8, `depth` apart, with their scales
struct Int8RowsView {
  int8_t* q;
  float* scale;
  int64_t depth;
  void set(int64_t row, const float* x, int64_t n) const { scale[row] = quantise_row(x, n, q + row * depth); }
};

// The part of `rows` that a thread works on alone
inline Range part_of(Range rows, ThreadRank thread) {
  const Range part = thread.split(rows.to - rows.from);
  return {rows.from + part.from, rows.from + part.to};
}

class Int8RowsBuffer {
 public:
  Int8RowsBuffer(int64_t rows, int64_t n) : depth_(int8_depth(n)), q_(rows * depth_), scale_(rows) {}
  Int8RowsView view() const { return {q_.get(), scale_.get(), depth_}; }

 private:
  int64_t depth_;
  Buffer<int8_t> q_;
  Buffer<float> scale_;
};

// One layer's weights and the work on a range of its blocks
class Int8LayerWork {
  using V = Vec<float>;

 public:
  Int8LayerWork(const Int8Layer& weights, int64_t units, int64_t width) : w(weights), H(units), P(width) {}

  int64_t blocks() const { return (H + kUnitBlock - 1) / kUnitBlock; }
  int64_t projection_blocks() const { return w.hr.w ? (P + kInt8Columns - 1) / kInt8Columns : 0; }
  int64_t gates_row() const { return blocks() * kInt8Columns; }
  int64_t bytes() const { return 4 * H * ((w.ih.w ? w.I : 0) + P) + (w.hr.w ? H * P : 0); }

  // gates[row][block][64] = (s_x * (q_x . w_ih)) * scale + bias
  void input(const Int8RowsView& x, Range rows, Range own, float* gates) const {
    for (int64_t block = own.from; block < own.to; ++block)
      products(w.ih, x, rows, block, [&](int64_t row, int64_t n, const int32_t* z) {
        for (int64_t m = 0; m < n; ++m)
          for (int64_t u = 0; u < kInt8Columns; u += V::width)
            (scaled(z + m * kInt8Columns + u, x.scale[row + m], w.ih.scale + block * kInt8Columns + u) +
             V::load(w.start + block * kInt8Columns + u))
                .store(gates + (row + m) * gates_row() + block * kInt8Columns + u);
      });
  }

  // The cell of `rows`: gates(row) → (blocks, 64) input side; c(row) is updated and h(row) written, H numbers each.
  template <class Gates, class Cell, class Out>
  void cells(const Int8RowsView& h_read, Range rows, Range own, Gates gates, Cell c, Out h) const {
    for (int64_t block = own.from; block < own.to; ++block) {
      const int64_t u0 = block * kUnitBlock;
      const bool whole = u0 + kUnitBlock <= H;
      products(w.hh, h_read, rows, block, [&](int64_t row, int64_t n, const int32_t* z) {
        for (int64_t m = 0; m < n;) {
          const int pair = m + 1 < n ? 2 : 1;
          CellPointers at[2];
          for (int i = 0; i < pair; ++i)
            at[i] = {z + (m + i) * kInt8Columns, h_read.scale[row + m + i], gates(row + m + i) + block * kInt8Columns,
                     c(row + m + i) + u0, h(row + m + i) + u0};
          const float* scale = w.hh.scale + block * kInt8Columns;
          if (whole)
            pair == 2 ? cell<2, true>(at, scale, 16) : cell<1, true>(at, scale, 16);
          else
            pair == 2 ? cell<2, false>(at, scale, H - u0) : cell<1, false>(at, scale, H - u0);
          m += pair;
        }
      });
    }
  }

  // h(row) = s_m * (q_m . w_hr) * scale for a range of the projection's blocks
  template <class Out>
  void project(const Int8RowsView& unprojected, Range rows, Range own, Out h) const {
    for (int64_t block = own.from; block < own.to; ++block)
      products(w.hr, unprojected, rows, block, [&](int64_t row, int64_t n, const int32_t* z) {
        for (int64_t m = 0; m < n; ++m)
          for (int64_t u = 0; u < kInt8Columns && block * kInt8Columns + u < P; u += V::width) {
            const int64_t column = block * kInt8Columns + u;
            scaled(z + m * kInt8Columns + u, unprojected.scale[row + m], w.hr.scale + column)
                .store(h(row + m) + column, P - column);
          }
      });
  }

  const Int8Layer& w;
  const int64_t H, P;

 private:
  struct CellPointers {
    const int32_t* z;
    float row_scale;
    const float* x;
    float *c, *h;
  };

  static FASTLSTM_INLINE V scaled(const int32_t* z, float row_scale, const float* scale) {
    V::Int sums;
    std::memcpy(&sums, z, sizeof(sums));
    return V(__builtin_convertvector(sums, V::Raw)) * V(row_scale) * V::load(scale);
  }

  // then(row, n, z) with z[n][64] for pieces of the rows
  template <class Then>
  static FASTLSTM_INLINE void products(const Int8Matrix& matrix, const Int8RowsView& x, Range rows, int64_t block,
                                       Then then) {
    alignas(64) int32_t z[kInt8Rows * kInt8Columns];
    for (int64_t row = rows.from; row < rows.to; row += kInt8Rows) {
      const int64_t n = std::min(kInt8Rows, rows.to - row);
      Int8Product::block(n, x.q + row * x.depth, x.depth, matrix.w + block * kInt8Columns * x.depth, x.depth,
                         matrix.subtracted + block * kInt8Columns, z);
      then(row, n, z);
    }
  }

  static FASTLSTM_INLINE int64_t left(int64_t units, int64_t u) { return units > u ? units - u : 0; }

  // `rows` rows, 16 units, of which `units` exist: all their registers side by side (VecArray)
  template <int rows, bool whole>
  static FASTLSTM_INLINE void cell(const CellPointers* at, const float* scale, int64_t units) {
    constexpr int per_row = int(kUnitBlock) / V::width, N = rows * per_row;
    VecArray<float, N> gate[4], c_prev, c, h;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % per_row * V::width;
      const CellPointers& from = at[i / per_row];
      c_prev.vec[i] = V::load_some<whole>(from.c + u, left(units, u));
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g)
        gate[g].vec[i] = scaled(from.z + 16 * g + u, from.row_scale, scale + 16 * g + u) + V::load(from.x + 16 * g + u);
    }
    fastlstm::LstmCell::forward<Math>(gate, c_prev, c, h);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % per_row * V::width;
      c.vec[i].template store_some<whole>(at[i / per_row].c + u, left(units, u));
      h.vec[i].template store_some<whole>(at[i / per_row].h + u, left(units, u));
    }
  }
};

class Int8ForwardPass {
 public:
  Int8ForwardPass(const Shape& shape, const Int8Forward& args)
      : s(shape),
        a(args),
        schedule(shape),
        work(*args.layer, shape.H, shape.P),
        partition(make_partition()),
        barrier(partition.threads),
        chunk_rows(std::max<int64_t>(64, kChunkBytes * partition.unit_threads() / (16 * s.H))),
        max_rows(std::min(schedule.rows(), chunk_rows + s.B)),
        shared_rows(each_quantises() ? 0 : s.B, s.P),
        shared_unprojected(projected() && !each_quantises() ? s.B : 0, s.H),
        unprojected_data(projected() ? s.B * s.H : 0),
        shared_x(a.x && !partition.by_rows ? max_rows : 0, a.layer->I),
        shared_gates(a.x && !partition.by_rows ? max_rows * work.gates_row() : 0) {
    advise_hugepages(a.h, size_t(schedule.rows() * s.P) * sizeof(float));
  }

  void run() {
    parallel_region(partition, barrier, [this](int i) { run_thread(i); });
  }

 private:
  // Of the input side of a chunk, which is written and read again: half of a second-level cache
  static constexpr int64_t kChunkBytes = int64_t(1) << 20;

  // Threads are worth their barriers from some 260,000 products a step on.
  Partition make_partition() const {
    if (4 * s.H * s.P * s.B >= kProductsOfTwo)
      return FASTLSTM_ISA::make_partition(s, kInt8Rows, 4 * s.H * s.P, work.blocks());
    return {1, true};
  }
  static constexpr int64_t kProductsOfTwo = int64_t(1) << 18;

  bool projected() const { return a.layer->hr.w != nullptr; }
  // Whether each thread quantises all rows for itself, which takes less time than a second barrier where they are few.
  bool each_quantises() const { return s.B <= 2; }
  void sync() {
    if (!partition.by_rows) barrier.wait();
  }

  void run_thread(int i) {
    [[maybe_unused]] const Int8Product::Scope scope{};
    const ThreadRank rank = partition.unit_rank(i);
    const Range rows = partition.by_rows ? schedule.rows_of(partition.rank(i)) : Range{0, s.B};
    const Range blocks = rank.split(work.blocks()), projection = rank.split(work.projection_blocks());
    const Int8RowsBuffer own_rows(each_quantises() ? s.B : 0, s.P);
    const Int8RowsBuffer own_unprojected(projected() && each_quantises() ? s.B : 0, s.H);
    const Carried carried = each_quantises() ? Carried{own_rows.view(), own_unprojected.view()}
                                             : Carried{shared_rows.view(), shared_unprojected.view()};
    quantise(rank, rows, carried.h, [&](int64_t b) { return a.h0 + b * s.P; }, s.P);
    const Range own = part_of(rows, rank);
    for (int64_t b = own.from; b < own.to; ++b)
      std::memcpy(a.c_n + b * s.H, a.c0 + b * s.H, size_t(s.H) * sizeof(float));
    sync();
    const bool own_chunks = a.x && partition.by_rows;
    const Int8RowsBuffer own_x(own_chunks ? max_rows : 0, a.layer->I);
    const Buffer<float> own_gates(own_chunks ? max_rows * work.gates_row() : 0);
    const Int8RowsView x = own_chunks ? own_x.view() : shared_x.view();
    float* gates = own_chunks ? own_gates.get() : shared_gates.get();
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk =
          a.x ? Chunk(schedule, rows, k, chunk_rows, [this](int64_t n) { return schedule.time(n); }) : Chunk(s.T);
      if (a.x) {
        const Range part = rank.split(chunk.size());
        for (int64_t n = part.from; n < part.to; ++n) x.set(n, a.x + chunk.row[size_t(n)] * a.layer->I, a.layer->I);
        sync();
        work.input(x, {0, chunk.size()}, blocks, gates);
      }
      for (; k < chunk.to; ++k) {
        const int64_t t = schedule.time(k), active = schedule.active(t), first = a.x ? chunk.first(t) : 0;
        const auto input = [&](int64_t b) {
          const int64_t row = schedule.row(t, b);
          return a.x ? gates + (row - first) * work.gates_row() : a.table + a.ids[row] * work.gates_row();
        };
        step(t, rank, {rows.from, std::max(rows.from, std::min(rows.to, active))}, blocks, projection, carried, input);
      }
    }
    for (int64_t b = own.from; b < own.to; ++b) store_final_h(b);
  }

  // Rows as the next product reads them: h, and with projection o tanh(c)
  struct Carried {
    Int8RowsView h, unprojected;
  };

  // `from(row)` of n numbers for this thread's part of the rows; all are there afterwards.
  template <class From>
  void quantise(ThreadRank rank, Range rows, const Int8RowsView& to, From from, int64_t n) {
    const Range part = each_quantises() ? rows : part_of(rows, rank);
    for (int64_t b = part.from; b < part.to; ++b) to.set(b, from(b), n);
    if (!each_quantises()) sync();
  }

  template <class Input>
  void step(int64_t t, ThreadRank rank, Range rows, Range blocks, Range projection, const Carried& carried,
            Input input) {
    const auto h = [&](int64_t b) { return a.h + schedule.row(t, b) * s.P; };
    const auto c = [&](int64_t b) { return a.c_n + b * s.H; };
    if (projected()) {
      const auto m = [&](int64_t b) { return unprojected_data.get() + b * s.H; };
      work.cells(carried.h, rows, blocks, input, c, m);
      sync();
      quantise(rank, rows, carried.unprojected, m, s.H);
      work.project(carried.unprojected, rows, projection, h);
    } else {
      work.cells(carried.h, rows, blocks, input, c, h);
    }
    sync();
    quantise(rank, rows, carried.h, h, s.P);
  }

  void store_final_h(int64_t b) {
    const int64_t steps = schedule.length[size_t(b)];
    const float* from = steps ? a.h + schedule.row(s.reverse ? 0 : steps - 1, b) * s.P : a.h0 + b * s.P;
    std::memcpy(a.h_n + b * s.P, from, size_t(s.P) * sizeof(float));
  }

  const Shape& s;
  const Int8Forward& a;
  Schedule schedule;
  Int8LayerWork work;
  Partition partition;
  Barrier barrier;
  int64_t chunk_rows, max_rows;
  Int8RowsBuffer shared_rows, shared_unprojected;
  Buffer<float> unprojected_data;
  Int8RowsBuffer shared_x;
  Buffer<float> shared_gates;
};

inline void int8_forward(const Shape& shape, const Int8Forward& args) { Int8ForwardPass(shape, args).run(); }

}  // namespace FASTLSTM_ISA
