// Forward recurrence of one layer in one direction, the whole sequence in one call.
//
// Per step: z = h_prev @ W_hh^T panel by panel into a small buffer, and as soon as the four gates of a block of units
// are there, the cell runs on them. h is carried in two padded buffers (row stride off the powers of two, where rows
// would fight for the same cache sets: H = 1024 gains 15 %); c is carried in c_n. The input side is a product over a
// chunk of steps before they run (chunks.h).
#pragma once
#include "../cell.h"
#include "chunks.h"
#include "math.h"
#include "product.h"
#include "team.h"

namespace FASTLSTM_ISA {

using fastlstm::LstmCell;

// Gates of more bytes than this go past the caches; fewer are still there when backward reads them.
constexpr int64_t kManyGates = int64_t(4) << 20;

template <class R>
class ForwardPass {
 public:
  using Args = fastlstm::cpu::Forward<R>;
  static constexpr int units = Panel<R>::units, width = Vec<R>::width;

  ForwardPass(const Shape& shape, const Args& args)
      : s(shape),
        a(args),
        steps(shape),
        w{nullptr, s.P, s.H},
        proj{nullptr, s.H, args.w_hr ? s.P : 0},
        stride(s.P + 16 + width),
        raw_stride(s.H + 16 + width),
        w_data(4 * w.matrix_size()),
        proj_data(args.w_hr ? proj.matrix_size() : 0),
        carry_data(2 * s.B * stride),
        raw_data(args.w_hr ? s.B * raw_stride : 0),
        input(a.x, a.w_x, a.I, s.H),
        gates_past_caches(a.gates && a.gates != a.xg && reinterpret_cast<uintptr_t>(a.gates) % 64 == 0 &&
                          s.H % units == 0 && steps.offset.back() * 4 * s.H * int64_t(sizeof(R)) > kManyGates),
        in_place(a.gates && !gates_past_caches),
        writes_elsewhere(a.gates && !a.x && !gates_past_caches && a.gates != a.xg),
        plan(make_plan(s, kMaxRows, 4 * s.H * s.P * int64_t(sizeof(R)), w.blocks())),
        barrier(plan.threads),
        chunk_rows(plan.split_rows ? own_rows<R>(s.H) : shared_rows<R>(s.H)),
        most_rows(std::min(steps.offset.back(), chunk_rows + s.B)),
        shared_xg(a.x && !in_place && !plan.split_rows ? most_rows * 4 * s.H : 0),
        far(4 * w.matrix_size() * int64_t(sizeof(R)) / (plan.split_rows ? 1 : plan.threads) > kFarWeights) {
    w.data = w_data.get();
    proj.data = proj_data.get();
    const size_t rows = size_t(steps.offset.back()) * sizeof(R);
    want_large_pages(a.h, rows * size_t(s.P));
    want_large_pages(a.c, rows * size_t(s.H));
    if (a.gates != a.xg) want_large_pages(a.gates, rows * size_t(4 * s.H));
  }

  void run() {
    run_team(plan, barrier, [this](int i) { thread(i); });
  }

 private:
  void thread(int i) {
    pack(i);
    barrier.wait();
    const Range rows = plan.split_rows ? steps.rows_of(i, plan.threads) : Range{0, s.B};
    const Range blocks = plan.split_rows ? Range{0, w.blocks()} : share(w.blocks(), i, plan.threads);
    const Range proj_blocks = plan.split_rows ? Range{0, proj.blocks()} : share(proj.blocks(), i, plan.threads);
    const Range own = plan.split_rows ? rows : share(s.B, i, plan.threads);
    for (int64_t b = own.from; b < own.to; ++b) start_row(b);
    meet();
    Buffer<R> own_xg(a.x && !in_place && plan.split_rows ? most_rows * 4 * s.H : 0);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk =
          a.x ? Chunk(steps, rows, k, chunk_rows, [this](int64_t n) { return steps.time(n); }) : Chunk(s.T);
      R* xg = input_of(chunk, own_xg.get() ? own_xg.get() : shared_xg.get(), i);
      for (; k < chunk.to; ++k) {
        const int64_t t = steps.time(k), alive = steps.alive(t);
        if (s.reset) {
          for (int64_t b = own.from; b < own.to && b < alive; ++b)
            if (steps.resets(t, b)) clear_row(b, k);
          meet();
        }
        const Input in{a.x ? xg : a.xg, a.x && !in_place ? chunk.first(t) : 0};
        step(t, k, {rows.from, rows.to < alive ? rows.to : alive}, blocks, proj_blocks, in);
        meet();  // also before the next chunk takes this one's place
      }
    }
    finish_rows(own);
    if (gates_past_caches) stream_fence();
  }

  // The input side of the pre-activations: `first` is the row that data begins with.
  struct Input {
    const R* data;
    int64_t first;
  };
  // Computes it for a chunk, where the gates will be or in `scratch`.
  R* input_of(const Chunk& chunk, R* scratch, int i) {
    if (!a.x) return nullptr;
    R* to = in_place ? a.gates : scratch;
    input.run(chunk, to, in_place, plan.split_rows ? Part{0, 1} : Part{i, plan.threads});
    meet();
    return to;
  }

  void meet() {
    if (!plan.split_rows) barrier.wait();
  }

  // Gate g of unit block j is panel g of block j: the four lie side by side in memory.
  void pack(int i) {
    input.pack({i, plan.threads});
    const Range mine = share(w.blocks(), i, plan.threads);
    for (int64_t j = mine.from; j < mine.to; ++j)
      for (int g = 0; g < 4; ++g) {
        Packed<R> gate{w.data + (3 * j + g) * w.panel_size(), w.K, w.columns};
        gate.pack_panel(j, a.w_hh + g * s.H * s.P, s.P, 1);
      }
    if (!a.w_hr) return;
    const Range own = share(proj.blocks(), i, plan.threads);
    for (int64_t j = own.from; j < own.to; ++j) proj.pack_panel(j, a.w_hr, s.H, 1);
  }

  // h of row b as the k-th step reads it. A row that joins late waits with its h0 in both buffers.
  R* carried(int64_t k, int64_t b) { return carry_data.get() + ((k & 1) * s.B + b) * stride; }

  void start_row(int64_t b) {
    for (int side = 0; side < 2; ++side) std::memcpy(carried(side, b), a.h0 + b * s.P, size_t(s.P) * sizeof(R));
    std::memcpy(a.c_n + b * s.H, a.c0 + b * s.H, size_t(s.H) * sizeof(R));
  }
  void clear_row(int64_t b, int64_t k) {
    std::memset(carried(k, b), 0, size_t(s.P) * sizeof(R));
    std::memset(a.c_n + b * s.H, 0, size_t(s.H) * sizeof(R));
  }
  // The row was last written by the step after which it ended.
  void finish_rows(Range rows) {
    for (int64_t b = rows.from; b < rows.to; ++b) {
      const int64_t last_k = s.reverse ? s.T : steps.length[size_t(b)];
      std::memcpy(a.h_n + b * s.P, carried(last_k, b), size_t(s.P) * sizeof(R));
    }
  }

  void step(int64_t t, int64_t k, Range rows, Range blocks, Range proj_blocks, Input in) {
    alignas(64) R z[4 * kTileRows * units];
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        const auto before = [&](int m, int count) FASTLSTM_INLINE_LAMBDA {
          for (int e = m; e < m + count; ++e) soon(t, b + e, j * units, in);
        };
        tile_product4<R>(n, carried(k, b), stride, w.data + 4 * j * w.panel_size(), w.panel_size(), s.P, z, n * units,
                         far, before);
        cells(t, k, b, n, j * units, z, n * units, in);
      });
    if (a.w_hr) project(t, k, rows, proj_blocks);
  }

  // Fetches what `cells` will touch while the product runs.
  FASTLSTM_INLINE void soon(int64_t t, int64_t b, int64_t u0, Input in) const {
    const int64_t row = steps.row(t, b), H = s.H;
    const R* x = input_row(in, row) + u0;
    for (int g = 0; g < 4; ++g) fetch_units(x + g * H);
    if (writes_elsewhere)
      for (int g = 0; g < 4; ++g) fetch_units_to_write(a.gates + (row * 4 + g) * H + u0);
    if (a.c) fetch_units_to_write(a.c + row * H + u0);
    if (!a.w_hr) fetch_units_to_write(a.h + row * H + u0);
  }

  const R* input_row(Input in, int64_t row) const { return in.data + 4 * s.H * (a.ids ? a.ids[row] : row - in.first); }

  // `count` rows from b on, one block of units from u0 on; z[g * gate_stride + m * units + u] is the recurrent side.
  FASTLSTM_INLINE void cells(int64_t t, int64_t k, int64_t b, int count, int64_t u0, const R* z, int64_t gate_stride,
                             Input in) {
    int m = 0;
    if (u0 + units <= s.H) {
      for (; m + 1 < count; m += 2) whole_cells<2>(t, k, b + m, u0, z + m * units, gate_stride, in);
      if (m < count) whole_cells<1>(t, k, b + m, u0, z + m * units, gate_stride, in);
      return;
    }
    for (; m < count; ++m)
      for (int u = 0; u < units && u0 + u < s.H; u += width)
        edge_cell(t, k, b + m, u0 + u, z + m * units + u, gate_stride, in);
  }

  // Where the cell of row b reads and writes, from unit u0 on; null: not at all.
  struct Places {
    const R *x, *bias;
    R *c_state, *h_out, *h_next, *c_out, *gates_out;
  };
  FASTLSTM_INLINE Places places(int64_t t, int64_t k, int64_t b, int64_t u0, Input in) {
    const int64_t row = steps.row(t, b), H = s.H;
    return {input_row(in, row) + u0,
            a.bias ? a.bias + u0 : nullptr,
            a.c_n + b * H + u0,
            a.w_hr ? nullptr : a.h + row * s.P + u0,
            a.w_hr ? raw_data.get() + b * raw_stride + u0 : carried(k + 1, b) + u0,
            a.c ? a.c + row * H + u0 : nullptr,
            a.gates ? a.gates + row * 4 * H + u0 : nullptr};
  }

  // M rows, a block whose units all exist: their registers go through the cell side by side.
  template <int M>
  FASTLSTM_INLINE void whole_cells(int64_t t, int64_t k, int64_t b, int64_t u0, const R* z, int64_t gate_stride,
                                   Input in) {
    constexpr int V = Panel<R>::vectors, N = M * V;
    Places at[M];
    for (int m = 0; m < M; ++m) at[m] = places(t, k, b + m, u0, in);
    const int64_t H = s.H;
    const Rounding rounding = s.rounding;
    const bool past = gates_past_caches;
    Lot<R, N> gate[4], c_prev, c, h;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % V * width;
      c_prev.part[i] = Vec<R>::load(at[i / V].c_state + u);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g)
        gate[g].part[i] = Vec<R>::load(z + g * gate_stride + i * width) + Vec<R>::load(at[i / V].x + g * H + u);
    }
    if (at[0].bias) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) gate[g].part[i] += Vec<R>::load(at[0].bias + g * H + i % V * width);
    }
    LstmCell::forward<Math>(gate, c_prev, c, h);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % V * width;
      const Places& to = at[i / V];
      c.part[i].store(to.c_state + u);
      if (to.h_out) {
        h.part[i] = round_stored(h.part[i], rounding);
        h.part[i].store(to.h_out + u);
      }
      h.part[i].store(to.h_next + u);
      if (to.c_out) c.part[i].store(to.c_out + u);
      if (to.gates_out) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
          R* at_gate = to.gates_out + g * H + u;
          past ? gate[g].part[i].stream(at_gate) : gate[g].part[i].store(at_gate);
        }
      }
    }
  }

  // One row, one register of units from u on, of which the last may not exist.
  void edge_cell(int64_t t, int64_t k, int64_t b, int64_t u, const R* z, int64_t gate_stride, Input in) {
    const int64_t H = s.H, n = H - u;
    const Places at = places(t, k, b, u, in);
    Vec<R> gate[4], c, h;
    for (int g = 0; g < 4; ++g) {
      gate[g] = Vec<R>::load(z + g * gate_stride) + Vec<R>::load(at.x + g * H, n);
      if (at.bias) gate[g] += Vec<R>::load(at.bias + g * H, n);
    }
    LstmCell::forward<Math>(gate, Vec<R>::load(at.c_state, n), c, h);
    c.store(at.c_state, n);
    if (at.h_out) {
      h = round_stored(h, s.rounding);
      h.store(at.h_out, n);
    }
    h.store(at.h_next, n);
    if (at.c_out) c.store(at.c_out, n);
    if (at.gates_out)
      for (int g = 0; g < 4; ++g) gate[g].store(at.gates_out + g * H, n);
  }

  // h = (o tanh c) @ W_hr^T
  void project(int64_t t, int64_t k, Range rows, Range blocks) {
    alignas(64) R z[4 * kTileRows * units];
    meet();
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        tile_product_deep<R>(n, raw_data.get() + b * raw_stride, raw_stride, proj.data + j * proj.panel_size(), s.H, z,
                             false, kNothing);
        for (int m = 0; m < n; ++m)
          for (int u = 0; u < units && j * units + u < s.P; u += width) {
            const int64_t column = j * units + u;
            const Vec<R> h = round_stored(Vec<R>::load(z + m * units + u), s.rounding);
            h.store(a.h + steps.row(t, b + m) * s.P + column, s.P - column);
            h.store(carried(k + 1, b + m) + column, s.P - column);
          }
      });
  }

  const Shape& s;
  const Args& a;
  Steps steps;
  Packed<R> w, proj;
  int64_t stride, raw_stride;
  Buffer<R> w_data, proj_data, carry_data, raw_data;
  InputSide<R> input;
  // in_place: a computed input side lies where the gates will be. writes_elsewhere: gates go where nobody has read.
  bool gates_past_caches, in_place, writes_elsewhere;
  Plan plan;
  Barrier barrier;
  int64_t chunk_rows, most_rows;
  Buffer<R> shared_xg;
  bool far;
};

}  // namespace FASTLSTM_ISA
