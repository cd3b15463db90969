// Forward recurrence of one layer in one direction, the whole sequence in one call.
//
//   z = x_gates[t] + h[t-1] @ W_hh^T;  (h, c)[t] = cell(z, c[t-1]);  with projection h[t] = (o tanh c) @ W_hr^T
// Per step and block of units, z is computed into a small buffer and the cell runs on it at once. h alternates between
// two padded buffers: a row stride that is not a power of two avoids conflicts in the cache sets (H = 1024 gains 15 %).
// c is updated in c_n. The input side x @ w_x^T is computed per chunk of steps (chunks.h). M: the matrix products
// (products.h).
#pragma once
#include "../cell.h"
#include "math.h"
#include "products.h"

namespace FASTLSTM_ISA {

// Gates of more bytes than this are stored non-temporally; fewer are still in a cache when backward reads them.
constexpr int64_t kNontemporalGates = int64_t(4) << 20;

template <class M>
class ForwardPass {
 public:
  using R = typename M::Real;
  using S = typename M::Stored;
  using Args = typename M::Forward;
  static constexpr int units = M::units, width = Vec<R>::width;

  ForwardPass(const Shape& shape, const Args& args)
      : s(shape),
        a(args),
        schedule(shape),
        w(s.P, s.H, 4),
        proj(s.H, args.w_hr ? s.P : 0, 1),
        stride(M::row_stride(s.P)),
        unprojected_stride(M::row_stride(s.H)),
        carry_data(2 * s.B * stride),
        unprojected_data(args.w_hr ? s.B * unprojected_stride : 0),
        input(a.x, a.w_x, a.I, s.H),
        nontemporal_gates(M::real && a.gates && !gates_are_input() && reinterpret_cast<uintptr_t>(a.gates) % 64 == 0 &&
                          s.H % units == 0 && schedule.rows() * 4 * s.H * int64_t(sizeof(S)) > kNontemporalGates),
        x_gates_in_gates(M::real && a.gates && !nontemporal_gates),
        separate_gates(a.gates && !nontemporal_gates && !(a.x && x_gates_in_gates) && !gates_are_input()),
        partition(make_partition(s, M::rows_per_block, 4 * s.H * s.P * int64_t(sizeof(S)), w.blocks())),
        barrier(partition.threads),
        chunk_rows(partition.by_rows ? private_chunk_rows<R>(s.H) : shared_chunk_rows<R>(s.H)),
        max_rows(std::min(schedule.rows(), chunk_rows + s.B)),
        shared_x_gates(a.x && !x_gates_in_gates && !partition.by_rows ? input.output_size(max_rows) : 0),
        prefetch_weights(gains_by_prefetch(w.bytes() / partition.unit_threads())) {
    const size_t rows = size_t(schedule.rows());
    advise_hugepages(a.h, rows * size_t(s.P) * sizeof(S));
    advise_hugepages(a.c, rows * size_t(s.H) * sizeof(R));
    if (!gates_are_input()) advise_hugepages(a.gates, rows * size_t(4 * s.H) * sizeof(S));
  }

  void run() {
    parallel_region(partition, barrier, [this](int i) { run_thread(i); });
  }

 private:
  void run_thread(int i) {
    [[maybe_unused]] const typename M::Scope scope{};
    pack(partition.rank(i));
    barrier.wait();
    const ThreadRank unit_rank = partition.unit_rank(i);
    const Range rows = partition.by_rows ? schedule.rows_of(partition.rank(i)) : Range{0, s.B};
    const Range blocks = unit_rank.split(w.blocks()), proj_blocks = unit_rank.split(proj.blocks());
    const Range own = partition.by_rows ? rows : unit_rank.split(s.B);
    for (int64_t b = own.from; b < own.to; ++b) load_state(b);
    sync();
    Buffer<R> private_x_gates(a.x && !x_gates_in_gates && partition.by_rows ? input.output_size(max_rows) : 0);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk =
          a.x ? Chunk(schedule, rows, k, chunk_rows, [this](int64_t n) { return schedule.time(n); }) : Chunk(s.T);
      const Input whole =
          input_of(chunk, private_x_gates.get() ? private_x_gates.get() : shared_x_gates.get(), unit_rank);
      for (; k < chunk.to; ++k) {
        const int64_t t = schedule.time(k), active = schedule.active(t);
        if (s.reset) {
          for (int64_t b = own.from; b < own.to && b < active; ++b)
            if (schedule.resets(t, b)) zero_state(b, k);
          sync();
        }
        const Input in{whole.data, whole.stride, a.x && !x_gates_in_gates ? chunk.first(t) : 0};
        step(t, k, {rows.from, rows.to < active ? rows.to : active}, blocks, proj_blocks, in);
        sync();  // also before the next chunk overwrites x_gates
      }
    }
    store_final_h(own);
    if (nontemporal_gates) nontemporal_fence();
  }

  // The input side of the pre-activations: row n of the sequence is row n - first of data.
  struct Input {
    const R* data;
    int64_t stride;
    int64_t first;
  };
  // Computes it for a chunk, into the gates (all rows of the sequence) or into `scratch` (the chunk's rows).
  Input input_of(const Chunk& chunk, R* scratch, ThreadRank unit_rank) {
    if (!a.x) return {a.x_gates, 4 * s.H, 0};
    R* to = scratch;
    if constexpr (M::real)
      if (x_gates_in_gates) to = a.gates;
    input.run(chunk, to, x_gates_in_gates, unit_rank);
    sync();
    return {to, input.output_stride(), 0};
  }

  void sync() {
    if (!partition.by_rows) barrier.wait();
  }

  // Whether the caller gave the input side of the gates in their own memory
  bool gates_are_input() const { return static_cast<const void*>(a.gates) == static_cast<const void*>(a.x_gates); }

  void pack(ThreadRank thread) {
    input.pack(thread);
    const Range blocks = thread.split(w.blocks()), proj_blocks = thread.split(proj.blocks());
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for (int g = 0; g < 4; ++g) w.pack_rows(j, g, a.w_hh + g * s.H * s.P);
    for (int64_t j = proj_blocks.from; j < proj_blocks.to; ++j) proj.pack_rows(j, 0, a.w_hr);
  }

  // h of row b as the k-th step reads it. Both buffers begin with h0, for rows that become active late (reverse).
  S* carried(int64_t k, int64_t b) { return carry_data.get() + ((k & 1) * s.B + b) * stride; }

  void load_state(int64_t b) {
    for (int side = 0; side < 2; ++side) {
      M::clear_row(carried(side, b), s.P);
      std::memcpy(carried(side, b), a.h0 + b * s.P, size_t(s.P) * sizeof(S));
    }
    if (a.w_hr) M::clear_row(unprojected_data.get() + b * unprojected_stride, s.H);
    std::memcpy(a.c_n + b * s.H, a.c0 + b * s.H, size_t(s.H) * sizeof(R));
  }
  void zero_state(int64_t b, int64_t k) {
    std::memset(carried(k, b), 0, size_t(s.P) * sizeof(S));
    std::memset(a.c_n + b * s.H, 0, size_t(s.H) * sizeof(R));
  }
  // h of a row was last written by the row's last step.
  void store_final_h(Range rows) {
    for (int64_t b = rows.from; b < rows.to; ++b) {
      const int64_t last_k = s.reverse ? s.T : schedule.length[size_t(b)];
      std::memcpy(a.h_n + b * s.P, carried(last_k, b), size_t(s.P) * sizeof(S));
    }
  }

  void step(int64_t t, int64_t k, Range rows, Range blocks, Range proj_blocks, Input in) {
    alignas(64) R z[4 * M::tile_rows * units];
    for (int64_t j = blocks.from; j < blocks.to; ++j)
      for_pieces(rows.from, rows.to, M::tile_rows, [&](int64_t b, int n) {
        const auto before = [&](int m, int count) FASTLSTM_INLINE_LAMBDA {
          for (int e = m; e < m + count; ++e) prefetch_cell(t, b + e, j * units, in);
        };
        w.product4(n, carried(k, b), stride, j, z, prefetch_weights, before);
        cells(t, k, b, n, j * units, z, n * units, in);
      });
    if (a.w_hr) project(t, k, rows, proj_blocks);
  }

  // Prefetches what `cells` reads and writes, while the product runs.
  FASTLSTM_INLINE void prefetch_cell(int64_t t, int64_t b, int64_t u0, Input in) const {
    const int64_t row = schedule.row(t, b), H = s.H;
    const R* x = input_row(in, row) + u0;
    for (int g = 0; g < 4; ++g) prefetch_units<units>(x + g * H);
    if (separate_gates)
      for (int g = 0; g < 4; ++g) prefetch_units_for_write<units>(a.gates + (row * 4 + g) * H + u0);
    if (a.c) prefetch_units_for_write<units>(a.c + row * H + u0);
    if (!a.w_hr) prefetch_units_for_write<units>(a.h + row * H + u0);
  }

  const R* input_row(Input in, int64_t row) const {
    return in.data + in.stride * (a.ids ? a.ids[row] : row - in.first);
  }

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

  // What the cell of row b reads and writes, from unit u0 on; null: not there.
  struct CellPointers {
    const R *x, *bias;
    R *c_state, *c_out;
    S *h_out, *h_next, *gates_out;
  };
  FASTLSTM_INLINE CellPointers cell_pointers(int64_t t, int64_t k, int64_t b, int64_t u0, Input in) {
    const int64_t row = schedule.row(t, b), H = s.H;
    return {input_row(in, row) + u0,
            a.bias ? a.bias + u0 : nullptr,
            a.c_n + b * H + u0,
            a.c ? a.c + row * H + u0 : nullptr,
            a.w_hr ? nullptr : a.h + row * s.P + u0,
            a.w_hr ? unprojected_data.get() + b * unprojected_stride + u0 : carried(k + 1, b) + u0,
            a.gates ? a.gates + row * 4 * H + u0 : nullptr};
  }

  // `rows` rows of a block without a tail: the cell runs on all their registers side by side (VecArray).
  template <int rows>
  FASTLSTM_INLINE void whole_cells(int64_t t, int64_t k, int64_t b, int64_t u0, const R* z, int64_t gate_stride,
                                   Input in) {
    constexpr int V = units / width, N = rows * V;
    CellPointers at[rows];
    for (int m = 0; m < rows; ++m) at[m] = cell_pointers(t, k, b + m, u0, in);
    const int64_t H = s.H;
    const Rounding rounding = s.rounding;
    const bool nontemporal = nontemporal_gates;
    VecArray<R, N> gate[4], c_prev, c, h;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % V * width;
      c_prev.vec[i] = Vec<R>::load(at[i / V].c_state + u);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g)
        gate[g].vec[i] = Vec<R>::load(z + g * gate_stride + i * width) + Vec<R>::load(at[i / V].x + g * H + u);
    }
    if (at[0].bias) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) gate[g].vec[i] += Vec<R>::load(at[0].bias + g * H + i % V * width);
    }
    fastlstm::LstmCell::forward<Math>(gate, c_prev, c, h);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const int u = i % V * width;
      const CellPointers& to = at[i / V];
      c.vec[i].store(to.c_state + u);
      if (to.h_out) {
        h.vec[i] = M::stored(h.vec[i], rounding);
        M::store(h.vec[i], to.h_out + u);
      }
      M::store(h.vec[i], to.h_next + u);
      if (to.c_out) c.vec[i].store(to.c_out + u);
      if (to.gates_out) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) M::store_gate(gate[g].vec[i], to.gates_out + g * H + u, nontemporal);
      }
    }
  }

  // One row, one register of units from u on; units past H are not stored.
  void edge_cell(int64_t t, int64_t k, int64_t b, int64_t u, const R* z, int64_t gate_stride, Input in) {
    const int64_t H = s.H, n = H - u;
    const CellPointers at = cell_pointers(t, k, b, u, in);
    Vec<R> gate[4], c, h;
    for (int g = 0; g < 4; ++g) {
      gate[g] = Vec<R>::load(z + g * gate_stride) + Vec<R>::load(at.x + g * H, n);
      if (at.bias) gate[g] += Vec<R>::load(at.bias + g * H, n);
    }
    fastlstm::LstmCell::forward<Math>(gate, Vec<R>::load(at.c_state, n), c, h);
    c.store(at.c_state, n);
    if (at.h_out) {
      h = M::stored(h, s.rounding);
      M::template store_some<false>(h, at.h_out, n);
    }
    M::template store_some<false>(h, at.h_next, n);
    if (at.c_out) c.store(at.c_out, n);
    if (at.gates_out)
      for (int g = 0; g < 4; ++g) M::template store_some<false>(gate[g], at.gates_out + g * H, n);
  }

  // h = (o tanh c) @ W_hr^T
  void project(int64_t t, int64_t k, Range rows, Range blocks) {
    sync();
    const auto store = [&](int64_t j, int64_t b, int n, const R* z) {
      for (int m = 0; m < n; ++m)
        for (int u = 0; u < units && j * units + u < s.P; u += width) {
          const int64_t column = j * units + u;
          const Vec<R> h = M::stored(Vec<R>::load(z + m * units + u), s.rounding);
          M::template store_some<false>(h, a.h + schedule.row(t, b + m) * s.P + column, s.P - column);
          M::template store_some<false>(h, carried(k + 1, b + m) + column, s.P - column);
        }
    };
    for_products<M>(proj, blocks, rows, unprojected_data.get(), unprojected_stride, false, kNoPrefetchOfBlocks, store);
  }

  const Shape& s;
  const Args& a;
  Schedule schedule;
  typename M::Panels w, proj;
  int64_t stride, unprojected_stride;
  Buffer<S> carry_data, unprojected_data;
  typename M::InputSide input;
  // x_gates_in_gates: x @ w_x^T is written to `gates` and replaced by the gates. separate_gates: no input is read from
  // there.
  bool nontemporal_gates, x_gates_in_gates, separate_gates;
  Partition partition;
  Barrier barrier;
  int64_t chunk_rows, max_rows;
  Buffer<R> shared_x_gates;
  bool prefetch_weights;
};

}  // namespace FASTLSTM_ISA
