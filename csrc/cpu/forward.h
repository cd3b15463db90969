// Forward recurrence of one layer in one direction, the whole sequence in one call.
//
// Per step: z = h_prev @ W_hh^T panel by panel into a small buffer, and as soon as the four gates of a block of units
// are there, the cell runs on them. h is carried in two padded buffers (row stride off the powers of two, where rows
// would fight for the same cache sets: H = 1024 gains 15 %); c is carried in c_n.
#pragma once
#include "../cell.h"
#include "math.h"
#include "product.h"
#include "team.h"

namespace FASTLSTM_ISA {

using fastlstm::LstmCell;
using fastlstm::cpu::Rounding;

template <class R>
FASTLSTM_INLINE Vec<R> round_stored(Vec<R> h, Rounding rounding) {
  if constexpr (sizeof(R) == 4) {
    if (rounding == Rounding::bfloat16) return round_bfloat16(h);
    if (rounding == Rounding::float16) return round_float16(h);
  }
  return h;
}

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
        plan(make_plan(s, kMaxRows, 4 * s.H * s.P * int64_t(sizeof(R)), w.blocks())),
        barrier(plan.threads),
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
    const Range all{0, s.B};
    const Range rows = plan.split_rows ? steps.rows_of(i, plan.threads) : all;
    const Range blocks = plan.split_rows ? Range{0, w.blocks()} : share(w.blocks(), i, plan.threads);
    const Range proj_blocks = plan.split_rows ? Range{0, proj.blocks()} : share(proj.blocks(), i, plan.threads);
    const Range own = plan.split_rows ? rows : share(s.B, i, plan.threads);
    for (int64_t b = own.from; b < own.to; ++b) start_row(b);
    meet();
    for (int64_t k = 0; k < s.T; ++k) {
      const int64_t t = steps.time(k), alive = steps.alive(t);
      if (s.reset) {
        for (int64_t b = own.from; b < own.to && b < alive; ++b)
          if (steps.resets(t, b)) clear_row(b, k);
        meet();
      }
      step(t, k, {rows.from, rows.to < alive ? rows.to : alive}, blocks, proj_blocks);
      meet();
    }
    finish_rows(own);
  }

  void meet() {
    if (!plan.split_rows) barrier.wait();
  }

  // Gate g of unit block j is panel g of block j: the four lie side by side in memory.
  void pack(int i) {
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

  void step(int64_t t, int64_t k, Range rows, Range blocks, Range proj_blocks) {
    alignas(64) R z[4 * kTileRows * units];
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        for (int m = 0; m < n; ++m) soon(t, b + m, j * units);
        tile_product4<R>(n, carried(k, b), stride, w.data + 4 * j * w.panel_size(), w.panel_size(), s.P, z, n * units,
                         far);
        if ((j + 1) * units <= s.H)
          for (int m = 0; m < n; ++m) cell<true>(t, k, b + m, j * units, z + m * units, n * units);
        else
          for (int m = 0; m < n; ++m) cell<false>(t, k, b + m, j * units, z + m * units, n * units);
      });
    if (a.w_hr) project(t, k, rows, proj_blocks);
  }

  // Fetches what `cell` will touch while the product runs.
  FASTLSTM_INLINE void soon(int64_t t, int64_t b, int64_t u0) const {
    const int64_t row = steps.row(t, b), H = s.H;
    const R* x = input_row(row) + u0;
    for (int g = 0; g < 4; ++g) fetch_units(x + g * H);
    if (a.gates && a.gates != a.xg)
      for (int g = 0; g < 4; ++g) fetch_units_to_write(a.gates + row * 4 * H + g * H + u0);
    if (a.c) fetch_units_to_write(a.c + row * H + u0);
    if (!a.w_hr) fetch_units_to_write(a.h + row * H + u0);
  }

  const R* input_row(int64_t row) const { return a.xg + 4 * s.H * (a.ids ? a.ids[row] : row); }

  // One row, one block of units from u0 on; z[g * gate_stride + u] is the recurrent side. whole: all units exist.
  template <bool whole>
  FASTLSTM_INLINE void cell(int64_t t, int64_t k, int64_t b, int64_t u0, const R* z, int64_t gate_stride) {
    // Addresses first: after a store the compiler reads members again
    const int64_t row = steps.row(t, b), H = s.H;
    const R *x = input_row(row) + u0, *bias = a.bias ? a.bias + u0 : nullptr;
    R* c_state = a.c_n + b * H + u0;
    R* h_out = a.w_hr ? nullptr : a.h + row * s.P + u0;
    R* h_next = a.w_hr ? raw_data.get() + b * raw_stride + u0 : carried(k + 1, b) + u0;
    R* c_out = a.c ? a.c + row * H + u0 : nullptr;
    R* gates_out = a.gates ? a.gates + row * 4 * H + u0 : nullptr;
    const Rounding rounding = s.rounding;
#pragma GCC unroll 2
    for (int v = 0; v < Panel<R>::vectors; ++v) {
      const int64_t u = v * width, n = H - u0 - u;
      if (!whole && n <= 0) return;
      Vec<R> gate[4], c, h;
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g)
        gate[g] = Vec<R>::load(z + g * gate_stride + u) + Vec<R>::template load_some<whole>(x + g * H + u, n);
      if (bias) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) gate[g] += Vec<R>::template load_some<whole>(bias + g * H + u, n);
      }
      LstmCell::forward<Math>(gate, Vec<R>::template load_some<whole>(c_state + u, n), c, h);
      c.template store_some<whole>(c_state + u, n);
      if (h_out) {
        h = round_stored(h, rounding);
        h.template store_some<whole>(h_out + u, n);
      }
      h.template store_some<whole>(h_next + u, n);
      if (c_out) c.template store_some<whole>(c_out + u, n);
      if (gates_out) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) gate[g].template store_some<whole>(gates_out + g * H + u, n);
      }
    }
  }

  // h = (o tanh c) @ W_hr^T
  void project(int64_t t, int64_t k, Range rows, Range blocks) {
    alignas(64) R z[4 * kTileRows * units];
    meet();
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, kTileRows, [&](int64_t b, int n) {
        tile_product_deep<R>(n, raw_data.get() + b * raw_stride, raw_stride, proj.data + j * proj.panel_size(), s.H, z,
                             false);
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
  Plan plan;
  Barrier barrier;
  bool far;
};

}  // namespace FASTLSTM_ISA
