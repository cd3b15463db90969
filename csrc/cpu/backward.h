// Backward recurrence of one layer in one direction: from the gradients at h, c, h_n, c_n to those at the
// pre-activations (dxg) and the initial state. What follows from dxg by large products (gradients of weights and input)
// comes chunk by chunk of steps while dxg is in the caches (chunks.h); dxg itself is kept only where it is asked for.
//
// Per step, from the last processed to the first: dh = dh_out[t] + dz_next @ W_hh, then the cell's backward. dz is
// carried in two padded buffers (a row is zero where no gradient passes: ended sequences, resets), dc in dc0.
#pragma once
#include "../cell.h"
#include "math.h"
#include "product.h"
#include "team.h"
#include "weight_gradients.h"

namespace FASTLSTM_ISA {

using fastlstm::LstmCell;

template <class R>
class BackwardPass {
 public:
  using Args = fastlstm::cpu::Backward<R>;
  static constexpr int units = Panel<R>::units, width = Vec<R>::width;

  BackwardPass(const Shape& shape, const Args& args)
      : s(shape),
        a(args),
        steps(shape),
        w{nullptr, 4 * s.H, s.P},
        proj{nullptr, s.P, args.w_hr ? s.H : 0},
        stride(4 * s.H + 16 + width),
        dh_stride(s.P + 16 + width),
        w_data(w.matrix_size()),
        proj_data(args.w_hr ? proj.matrix_size() : 0),
        carry_data(2 * s.B * stride),
        dh_data(args.w_hr ? s.B * dh_stride : 0),
        plan(make_plan(s, kMaxRows, 4 * s.H * s.P * int64_t(sizeof(R)), w.blocks())),
        barrier(plan.threads),
        own_chunks(plan.split_rows && WeightGradients<R>::splits(s, steps, args.products, plan.threads)),
        chunk_rows(own_chunks ? own_rows<R>(s.H) : shared_rows<R>(s.H)),
        most_rows(std::min(steps.offset.back(), chunk_rows + s.B)),
        input(args.products.dx, args.products.w_x, args.products.I, s.H),
        weights(s, steps, args.products, own_chunks ? 0 : most_rows),
        shared(args.dxg || own_chunks ? 0 : most_rows, s.H, s.P, args.products),
        partial(size_t(plan.threads)),
        far(w.matrix_size() * int64_t(sizeof(R)) / (plan.split_rows ? 1 : plan.threads) > kFarWeights) {
    w.data = w_data.get();
    proj.data = proj_data.get();
    const size_t rows = size_t(steps.offset.back()) * sizeof(R);
    want_large_pages(a.dxg, rows * size_t(4 * s.H));
    want_large_pages(a.d_hr, rows * size_t(s.P));
  }

  void run() {
    run_team(plan, barrier, [this](int i) { thread(i); });
  }

 private:
  void thread(int i) {
    const bool split = plan.split_rows;
    const Range rows = split ? steps.rows_of(i, plan.threads) : Range{0, s.B};
    const Range own = split ? rows : share(s.B, i, plan.threads);
    const Blocks blocks = split ? Blocks{{0, w.blocks()}, {0, proj.blocks()}}
                                : Blocks{share(w.blocks(), i, plan.threads), share(proj.blocks(), i, plan.threads)};
    pack(i);
    for (int64_t b = own.from; b < own.to; ++b) start_row(b);
    barrier.wait();
    const Team team{rows, blocks, {i, plan.threads}};
    if (a.dxg)
      steps_of(Chunk(s.T), team, {a.dxg, a.d_hr, nullptr, 0});
    else if (own_chunks)
      run_own(team);
    else
      run_shared(team);
  }

  struct Blocks {
    Range hidden, state;  // panels over P (the product with W_hh) and, with projection, over H (with W_hr)
  };
  // A thread's share of every step, and its number.
  struct Team {
    Range rows;
    Blocks blocks;
    Part part;
  };

  void run_shared(const Team& team) {
    weights.clear(team.part, steps.offset.back() == 0);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk(steps, {0, s.B}, k, chunk_rows, [this](int64_t n) { return time(n); });
      steps_of(chunk, team, shared.rows());
      barrier.wait();
      weights.add(chunk, shared.rows(), k == 0, team.part, [this] { barrier.wait(); });
      input.run(chunk, shared.rows().dxg, team.part);
      barrier.wait();
      k = chunk.to;
    }
  }

  // The first thread's sums go where the gradients are wanted, the others' are added to them in the end.
  void run_own(const Team& team) {
    const int i = team.part.i;
    const ChunkMemory<R> memory(most_rows, s.H, s.P, a.products);  // as large for all batches: it is used again
    Buffer<R> sums(i > 0 ? WeightGradients<R>::count(a.products, s.H, s.P) : 0);
    const Products<R> to = i > 0 ? WeightGradients<R>::to(a.products, sums.get(), s.H, s.P) : a.products;
    WeightGradients<R> mine(s, steps, to, most_rows);
    bool first = true;
    mine.clear({0, 1}, false);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk(steps, team.rows, k, chunk_rows, [this](int64_t n) { return time(n); });
      steps_of(chunk, team, memory.rows());
      k = chunk.to;
      if (chunk.size() == 0) continue;
      mine.add(chunk, memory.rows(), first, {0, 1}, [] {});
      input.run(chunk, memory.rows().dxg, {0, 1});
      first = false;
    }
    if (first) mine.clear({0, 1}, true);
    partial[size_t(i)] = to;
    barrier.wait();
    for (size_t other = 1; other < size_t(plan.threads); ++other) weights.add(partial[other], team.part);
    barrier.wait();  // the sums go
  }

  void steps_of(const Chunk& chunk, const Team& team, ChunkRows<R> out) {
    for (int64_t k = chunk.from; k < chunk.to; ++k) {
      const int64_t t = time(k);
      const Range rows{team.rows.from, std::min(team.rows.to, steps.alive(t))};
      if (!a.dxg) out.first = chunk.first(t);
      step(t, k, rows, team.blocks, out);
      meet();
      finish_rows(t, k, rows, team.blocks.hidden);
    }
  }

  int64_t time(int64_t k) const { return steps.time(s.T - 1 - k); }  // of the k-th step, counted from the end

  void meet() {
    if (!plan.split_rows) barrier.wait();
  }

  void pack(int i) {
    input.pack({i, plan.threads});
    const Range mine = share(w.blocks(), i, plan.threads);
    for (int64_t j = mine.from; j < mine.to; ++j) w.pack_panel(j, a.w_hh, 1, s.P);
    const Range own = share(proj.blocks(), i, plan.threads);
    for (int64_t j = own.from; j < own.to; ++j) proj.pack_panel(j, a.w_hr, 1, s.H);
  }

  // dz of row b as the k-th step (counted from the end) reads it
  R* carried(int64_t k, int64_t b) { return carry_data.get() + ((k & 1) * s.B + b) * stride; }

  void start_row(int64_t b) {
    for (int side = 0; side < 2; ++side) std::memset(carried(side, b), 0, size_t(4 * s.H) * sizeof(R));
    const size_t c_bytes = size_t(s.H) * sizeof(R), h_bytes = size_t(s.P) * sizeof(R);
    if (a.dc_n)
      std::memcpy(a.dc0 + b * s.H, a.dc_n + b * s.H, c_bytes);
    else
      std::memset(a.dc0 + b * s.H, 0, c_bytes);
    if (a.dh_n && steps.length[size_t(b)] == 0)
      std::memcpy(a.dh0 + b * s.P, a.dh_n + b * s.P, h_bytes);
    else
      std::memset(a.dh0 + b * s.P, 0, h_bytes);
  }

  void step(int64_t t, int64_t k, Range rows, Blocks blocks, ChunkRows<R> out) {
    alignas(64) R z[4 * kTileRows * units];
    for (int64_t j = blocks.hidden.from; j < blocks.hidden.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        const auto before = [&](int m, int count) FASTLSTM_INLINE_LAMBDA {
          for (int e = m; e < m + count; ++e) soon(t, b + e, j * units, out);
        };
        tile_product_deep<R>(n, carried(k, b), stride, w.data + j * w.panel_size(), 4 * s.H, z, far, before);
        if ((j + 1) * units <= s.P)
          for (int m = 0; m < n; ++m) arrive<true>(t, k, b + m, j * units, z + m * units, out);
        else
          for (int m = 0; m < n; ++m) arrive<false>(t, k, b + m, j * units, z + m * units, out);
      });
    if (!a.w_hr) return;
    meet();
    for (int64_t j = blocks.state.from; j < blocks.state.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        const auto before = [&](int m, int count) FASTLSTM_INLINE_LAMBDA {
          for (int e = m; e < m + count; ++e) soon_in_cell(t, b + e, j * units, out);
        };
        tile_product_deep<R>(n, dh_data.get() + b * dh_stride, dh_stride, proj.data + j * proj.panel_size(), s.P, z,
                             false, before);
        const bool whole = (j + 1) * units <= s.H;
        for (int m = 0; m < n; ++m)
          for (int u = 0; u < units && j * units + u < s.H; u += width) {
            const Vec<R> dh = Vec<R>::load(z + m * units + u);
            whole ? cell<true>(t, k, b + m, j * units + u, dh, out) : cell<false>(t, k, b + m, j * units + u, dh, out);
          }
      });
  }

  // Fetches what `arrive` will touch while the product runs: without, a core waits a third of its time.
  FASTLSTM_INLINE void soon(int64_t t, int64_t b, int64_t u0, ChunkRows<R> out) const {
    if (a.dh) fetch_units(a.dh + steps.row(t, b) * s.P + u0);
    if (out.d_hr) fetch_units_to_write(out.d_hr + (steps.row(t, b) - out.first) * s.P + u0);
    if (!a.w_hr) soon_in_cell(t, b, u0, out);
  }
  FASTLSTM_INLINE void soon_in_cell(int64_t t, int64_t b, int64_t u0, ChunkRows<R> out) const {
    const int64_t row = steps.row(t, b), H = s.H;
    if (a.dc) fetch_units(a.dc + row * H + u0);
    fetch_units(a.c + row * H + u0);
    if (!steps.is_first(t, b)) fetch_units(a.c + steps.row(t + (s.reverse ? 1 : -1), b) * H + u0);
    for (int g = 0; g < 4; ++g) {
      fetch_units(a.gates + row * 4 * H + g * H + u0);
      fetch_units_to_write(out.dxg + (row - out.first) * 4 * H + g * H + u0);
    }
  }

  // The total gradient at h of one row, one block of columns; without projection the cell runs on it at once.
  template <bool whole>
  FASTLSTM_INLINE void arrive(int64_t t, int64_t k, int64_t b, int64_t u0, const R* z, ChunkRows<R> out) {
    const int64_t row = steps.row(t, b);
    const bool last = a.dh_n && steps.is_last(t, b);
#pragma GCC unroll 2
    for (int v = 0; v < Panel<R>::vectors; ++v) {
      const int64_t u = u0 + v * width, n = s.P - u;
      if (!whole && n <= 0) return;
      Vec<R> dh = Vec<R>::load(z + v * width);
      if (a.dh) dh += Vec<R>::template load_some<whole>(a.dh + row * s.P + u, n);
      if (last) dh += Vec<R>::template load_some<whole>(a.dh_n + b * s.P + u, n);
      if (a.w_hr) {
        if (out.d_hr) dh.template store_some<whole>(out.d_hr + (row - out.first) * s.P + u, n);
        dh.template store_some<whole>(dh_data.get() + b * dh_stride + u, n);
      } else {
        cell<whole>(t, k, b, u, dh, out);
      }
    }
  }

  // One row, one register of units from u on.
  template <bool whole>
  FASTLSTM_INLINE void cell(int64_t t, int64_t k, int64_t b, int64_t u, Vec<R> dh, ChunkRows<R> out) {
    const int64_t row = steps.row(t, b), H = s.H, n = H - u;
    const bool reset = steps.resets(t, b);
    Vec<R> gate[4], dz[4], dc_prev;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) gate[g] = Vec<R>::template load_some<whole>(a.gates + row * 4 * H + g * H + u, n);
    R* dc_state = a.dc0 + b * H + u;
    Vec<R> dc = Vec<R>::template load_some<whole>(dc_state, n);
    if (a.dc) dc += Vec<R>::template load_some<whole>(a.dc + row * H + u, n);
    Vec<R> c_prev(R(0));
    if (!reset) {
      const R* from = steps.is_first(t, b) ? a.c0 + b * H : a.c + steps.row(t + (s.reverse ? 1 : -1), b) * H;
      c_prev = Vec<R>::template load_some<whole>(from + u, n);
    }
    const Vec<R> c = Vec<R>::template load_some<whole>(a.c + row * H + u, n);
    LstmCell::backward<Math>(gate, c_prev, c, dh, dc, dz, dc_prev);
    if (out.y) (gate[3] * Math::tanh(c)).template store_some<whole>(out.y + (row - out.first) * H + u, n);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) dz[g].template store_some<whole>(out.dxg + (row - out.first) * 4 * H + g * H + u, n);
    R* carry = carried(k + 1, b) + u;
    if (reset) {
      const Vec<R> zero(R(0));
      for (int g = 0; g < 4; ++g) zero.template store_some<whole>(carry + g * H, n);
      return zero.template store_some<whole>(dc_state, n);
    }
    dc_prev.template store_some<whole>(dc_state, n);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) dz[g].template store_some<whole>(carry + g * H, n);
  }

  // Rows whose first step this was: dh0 = dz @ W_hh.
  void finish_rows(int64_t t, int64_t k, Range rows, Range blocks) {
    const int64_t next_alive = s.reverse && t + 1 < s.T ? steps.alive(t + 1) : 0;
    if (s.reverse ? rows.to <= next_alive : t != 0) return;
    if (s.reverse && rows.from < next_alive) rows.from = next_alive;
    alignas(64) R z[4 * kTileRows * units];
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        tile_product_deep<R>(n, carried(k + 1, b), stride, w.data + j * w.panel_size(), 4 * s.H, z, far, kNothing);
        for (int m = 0; m < n; ++m)
          for (int u = 0; u < units && j * units + u < s.P; u += width)
            Vec<R>::load(z + m * units + u).store(a.dh0 + (b + m) * s.P + j * units + u, s.P - j * units - u);
      });
  }

  const Shape& s;
  const Args& a;
  Steps steps;
  Packed<R> w, proj;
  int64_t stride, dh_stride;
  Buffer<R> w_data, proj_data, carry_data, dh_data;
  Plan plan;
  Barrier barrier;
  bool own_chunks;
  int64_t chunk_rows, most_rows;
  InputGradient<R> input;
  WeightGradients<R> weights;
  ChunkMemory<R> shared;
  std::vector<Products<R>> partial;  // of each thread
  bool far;
};

}  // namespace FASTLSTM_ISA
