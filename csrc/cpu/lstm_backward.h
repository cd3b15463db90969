// Backward recurrence of one layer in one direction: from the gradients at h, c, h_n, c_n to those at the
// pre-activations (d_gates) and the initial state, and from d_gates to the gradients of the weights and the input.
//
// Per step, from the last processed to the first:
//   dh = dh_out[t] + d_gates[t+1] @ W_hh;  (d_gates, dc)[t] = the cell's backward (cell.h) of dh and dc[t+1]
// With projection, dh passes through W_hr before the cell. The recurrence reads d_gates[t+1] from one of two padded
// buffers, which take turns; a row is zero where no gradient passes (ended sequences, resets). dc is updated in dc0.
// The products that follow from d_gates are computed per chunk of steps (chunks.h), and d_gates is saved only if the
// caller asks for it. M: the matrix products (products.h).
#pragma once
#include "../cell.h"
#include "math.h"
#include "products.h"

namespace FASTLSTM_ISA {

template <class M>
class BackwardPass {
 public:
  using R = typename M::Real;
  using S = typename M::Stored;
  using Args = typename M::Backward;
  using WeightGradients = typename M::WeightGradients;
  using ChunkMemory = typename M::ChunkMemory;
  static constexpr int units = M::units, width = Vec<R>::width;

  BackwardPass(const Shape& shape, const Args& args)
      : s(shape),
        a(args),
        schedule(shape),
        w(4 * s.H, s.P, 1),
        proj(s.P, args.w_hr ? s.H : 0, 1),
        stride(M::row_stride(4 * s.H)),
        dh_stride(M::row_stride(s.P)),
        carry_data(2 * s.B * stride),
        dh_data(args.w_hr ? s.B * dh_stride : 0),
        partition(make_partition(s, M::rows_per_block, 4 * s.H * s.P * int64_t(sizeof(S)), w.blocks())),
        barrier(partition.threads),
        private_chunks(partition.by_rows &&
                       WeightGradients::private_sums(s, schedule, args.products, partition.threads)),
        chunk_rows(private_chunks ? private_chunk_rows<R>(s.H) : shared_chunk_rows<R>(s.H)),
        max_rows(std::min(schedule.rows(), chunk_rows + s.B)),
        input(args.products.dx, args.products.w_x, args.products.I, s.H),
        weights(s, schedule, args.products, private_chunks ? 0 : max_rows, 0),
        shared(args.d_gates || private_chunks ? 0 : max_rows, s.H, s.P, args.products),
        partial(size_t(partition.threads)),
        prefetch_weights(gains_by_prefetch(w.bytes() / partition.unit_threads())) {
    const size_t rows = size_t(schedule.rows()) * sizeof(S);
    advise_hugepages(a.d_gates, rows * size_t(4 * s.H));
    advise_hugepages(a.dh_proj, rows * size_t(s.P));
  }

  void run() {
    parallel_region(partition, barrier, [this](int i) { run_thread(i); });
  }

 private:
  void run_thread(int i) {
    [[maybe_unused]] const typename M::Scope scope{};
    const ThreadRank rank = partition.rank(i), unit_rank = partition.unit_rank(i);
    const Range rows = partition.by_rows ? schedule.rows_of(rank) : Range{0, s.B};
    const Range own = partition.by_rows ? rows : unit_rank.split(s.B);
    pack(rank);
    for (int64_t b = own.from; b < own.to; ++b) load_state(b);
    barrier.wait();
    const ThreadSlice slice{rows, unit_rank.split(w.blocks()), unit_rank.split(proj.blocks()), rank};
    if (a.d_gates)
      run_steps(Chunk(s.T), slice, {a.d_gates, a.dh_proj, nullptr, 4 * s.H, 0});
    else if (private_chunks)
      run_private_chunks(slice);
    else
      run_shared_chunks(slice);
  }

  // A thread's part of every step: rows, panels of W_hh (over P) and, with projection, panels of W_hr (over H).
  struct ThreadSlice {
    Range rows, blocks, proj_blocks;
    ThreadRank rank;
  };

  void run_shared_chunks(const ThreadSlice& slice) {
    weights.clear(slice.rank, schedule.rows() == 0);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk(schedule, {0, s.B}, k, chunk_rows, [this](int64_t n) { return time(n); });
      run_steps(chunk, slice, shared.rows());
      barrier.wait();
      weights.add(chunk, shared.rows(), k == 0, slice.rank, [this] { barrier.wait(); });
      input.run(chunk, shared.rows().d_gates, shared.rows().stride, slice.rank);
      barrier.wait();
      k = chunk.to;
    }
    weights.finish(slice.rank);
  }

  // Every thread sums its own rows; the sums of all are added at the end.
  void run_private_chunks(const ThreadSlice& slice) {
    const int i = slice.rank.index;
    const ChunkMemory memory(max_rows, s.H, s.P, a.products);  // of one size for all batches: the cache has it
    WeightGradients mine(s, schedule, a.products, max_rows, i);
    bool first = true;
    mine.clear(kOnlyThread, false);
    for (int64_t k = 0; k < s.T;) {
      const Chunk chunk(schedule, slice.rows, k, chunk_rows, [this](int64_t n) { return time(n); });
      run_steps(chunk, slice, memory.rows());
      k = chunk.to;
      if (chunk.size() == 0) continue;
      mine.add(chunk, memory.rows(), first, kOnlyThread, [] {});
      input.run(chunk, memory.rows().d_gates, memory.rows().stride, kOnlyThread);
      first = false;
    }
    if (first) mine.clear(kOnlyThread, true);
    partial[size_t(i)] = &mine;
    barrier.wait();
    WeightGradients::combine(partial, slice.rank);
    barrier.wait();  // before the sums of each thread are released
  }

  void run_steps(const Chunk& chunk, const ThreadSlice& slice, ChunkRows<S> out) {
    for (int64_t k = chunk.from; k < chunk.to; ++k) {
      const int64_t t = time(k);
      const Range rows{slice.rows.from, std::min(slice.rows.to, schedule.active(t))};
      if (!a.d_gates) out.first = chunk.first(t);
      step(t, k, rows, slice, out);
      sync();
      store_dh0(t, k, rows, slice.blocks);
    }
  }

  int64_t time(int64_t k) const { return schedule.time(s.T - 1 - k); }  // of the k-th step processed here

  void sync() {
    if (!partition.by_rows) barrier.wait();
  }

  void pack(ThreadRank thread) {
    input.pack(thread);
    const Range blocks = thread.split(w.blocks()), proj_blocks = thread.split(proj.blocks());
    for (int64_t j = blocks.from; j < blocks.to; ++j) w.pack_columns(j, a.w_hh);
    for (int64_t j = proj_blocks.from; j < proj_blocks.to; ++j) proj.pack_columns(j, a.w_hr);
  }

  // d_gates of row b as the k-th step processed here reads it
  S* carried(int64_t k, int64_t b) { return carry_data.get() + ((k & 1) * s.B + b) * stride; }

  void load_state(int64_t b) {
    for (int side = 0; side < 2; ++side) M::clear_row(carried(side, b), 4 * s.H);
    if (a.w_hr) M::clear_row(dh_data.get() + b * dh_stride, s.P);
    const size_t c_bytes = size_t(s.H) * sizeof(R), h_bytes = size_t(s.P) * sizeof(S);
    if (a.dc_n)
      std::memcpy(a.dc0 + b * s.H, a.dc_n + b * s.H, c_bytes);
    else
      std::memset(a.dc0 + b * s.H, 0, c_bytes);
    if (a.dh_n && schedule.length[size_t(b)] == 0)
      std::memcpy(a.dh0 + b * s.P, a.dh_n + b * s.P, h_bytes);
    else
      std::memset(a.dh0 + b * s.P, 0, h_bytes);
  }

  void step(int64_t t, int64_t k, Range rows, const ThreadSlice& slice, ChunkRows<S> out) {
    const auto prefetch_dh = [&](int64_t j, int64_t b, int n) FASTLSTM_INLINE_LAMBDA {
      for (int e = 0; e < n; ++e) prefetch_cell(t, b + e, j * units, out);
    };
    const auto dh_of = [&](int64_t j, int64_t b, int n, const R* z) FASTLSTM_INLINE_LAMBDA {
      if ((j + 1) * units <= s.P)
        for (int m = 0; m < n; ++m) add_dh<true>(t, k, b + m, j * units, z + m * units, out);
      else
        for (int m = 0; m < n; ++m) add_dh<false>(t, k, b + m, j * units, z + m * units, out);
    };
    for_products<M>(w, slice.blocks, rows, carried(k, 0), stride, prefetch_weights, prefetch_dh, dh_of);
    if (!a.w_hr) return;
    sync();
    const auto prefetch = [&](int64_t j, int64_t b, int n) FASTLSTM_INLINE_LAMBDA {
      for (int e = 0; e < n; ++e) prefetch_cell_backward(t, b + e, j * units, out);
    };
    const auto cells = [&](int64_t j, int64_t b, int n, const R* z) FASTLSTM_INLINE_LAMBDA {
      const bool whole = (j + 1) * units <= s.H;
      for (int m = 0; m < n; ++m)
        for (int u = 0; u < units && j * units + u < s.H; u += width) {
          const Vec<R> dh = Vec<R>::load(z + m * units + u);
          whole ? cell<true>(t, k, b + m, j * units + u, dh, out) : cell<false>(t, k, b + m, j * units + u, dh, out);
        }
    };
    for_products<M>(proj, slice.proj_blocks, rows, dh_data.get(), dh_stride, false, prefetch, cells);
  }

  // Prefetches what `add_dh` reads and writes, while the product runs: otherwise a core stalls a third of the time.
  FASTLSTM_INLINE void prefetch_cell(int64_t t, int64_t b, int64_t u0, ChunkRows<S> out) const {
    if (a.dh) prefetch_units<units>(a.dh + schedule.row(t, b) * s.P + u0);
    if (out.dh_proj) prefetch_units_for_write<units>(out.dh_proj + (schedule.row(t, b) - out.first) * s.P + u0);
    if (!a.w_hr) prefetch_cell_backward(t, b, u0, out);
  }
  FASTLSTM_INLINE void prefetch_cell_backward(int64_t t, int64_t b, int64_t u0, ChunkRows<S> out) const {
    const int64_t row = schedule.row(t, b), H = s.H;
    if (a.dc) prefetch_units<units>(a.dc + row * H + u0);
    prefetch_units<units>(a.c + row * H + u0);
    if (!schedule.is_first(t, b)) prefetch_units<units>(a.c + schedule.previous_row(t, b) * H + u0);
    for (int g = 0; g < 4; ++g) {
      prefetch_units<units>(a.gates + row * 4 * H + g * H + u0);
      prefetch_units_for_write<units>(out.d_gates + (row - out.first) * out.stride + g * H + u0);
    }
  }

  // z + the gradients that arrive at h from outside: one row, one block of columns. Without projection the cell
  // follows.
  template <bool whole>
  FASTLSTM_INLINE void add_dh(int64_t t, int64_t k, int64_t b, int64_t u0, const R* z, ChunkRows<S> out) {
    const int64_t row = schedule.row(t, b);
    const bool last = a.dh_n && schedule.is_last(t, b);
#pragma GCC unroll 2
    for (int v = 0; v < units / width; ++v) {
      const int64_t u = u0 + v * width, n = s.P - u;
      if (!whole && n <= 0) return;
      Vec<R> dh = Vec<R>::load(z + v * width);
      if (a.dh) dh += M::template load_some<whole>(a.dh + row * s.P + u, n);
      if (last) dh += M::template load_some<whole>(a.dh_n + b * s.P + u, n);
      if (a.w_hr) {
        if (out.dh_proj) M::template store_some<whole>(dh, out.dh_proj + (row - out.first) * s.P + u, n);
        M::template store_some<whole>(dh, dh_data.get() + b * dh_stride + u, n);
      } else {
        cell<whole>(t, k, b, u, dh, out);
      }
    }
  }

  // One row, one register of units from u on.
  template <bool whole>
  FASTLSTM_INLINE void cell(int64_t t, int64_t k, int64_t b, int64_t u, Vec<R> dh, ChunkRows<S> out) {
    const int64_t row = schedule.row(t, b), H = s.H, n = H - u;
    const bool reset = schedule.resets(t, b);
    Vec<R> gate[4], d_gates[4], dc_prev;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) gate[g] = M::template load_some<whole>(a.gates + row * 4 * H + g * H + u, n);
    R* dc_state = a.dc0 + b * H + u;
    Vec<R> dc = Vec<R>::template load_some<whole>(dc_state, n);
    if (a.dc) dc += Vec<R>::template load_some<whole>(a.dc + row * H + u, n);
    Vec<R> c_prev(R(0));
    if (!reset) {
      const R* from = schedule.is_first(t, b) ? a.c0 + b * H : a.c + schedule.previous_row(t, b) * H;
      c_prev = Vec<R>::template load_some<whole>(from + u, n);
    }
    const Vec<R> c = Vec<R>::template load_some<whole>(a.c + row * H + u, n);
    fastlstm::LstmCell::backward<Math>(gate, c_prev, c, dh, dc, d_gates, dc_prev);
    if (out.h_unprojected)
      M::template store_some<whole>(gate[3] * Math::tanh(c), out.h_unprojected + (row - out.first) * H + u, n);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
      M::template store_some<whole>(d_gates[g], out.d_gates + (row - out.first) * out.stride + g * H + u, n);
    S* carry = carried(k + 1, b) + u;
    if (reset) {
      const Vec<R> zero(R(0));
      for (int g = 0; g < 4; ++g) M::template store_some<whole>(zero, carry + g * H, n);
      return zero.template store_some<whole>(dc_state, n);
    }
    dc_prev.template store_some<whole>(dc_state, n);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) M::template store_some<whole>(d_gates[g], carry + g * H, n);
  }

  // dh0 = d_gates @ W_hh for the rows whose first step this was.
  void store_dh0(int64_t t, int64_t k, Range rows, Range blocks) {
    const int64_t next_active = s.reverse && t + 1 < s.T ? schedule.active(t + 1) : 0;
    if (s.reverse ? rows.to <= next_active : t != 0) return;
    if (s.reverse && rows.from < next_active) rows.from = next_active;
    const auto store = [&](int64_t j, int64_t b, int n, const R* z) {
      for (int m = 0; m < n; ++m)
        for (int u = 0; u < units && j * units + u < s.P; u += width)
          M::template store_some<false>(Vec<R>::load(z + m * units + u), a.dh0 + (b + m) * s.P + j * units + u,
                                        s.P - j * units - u);
    };
    for_products<M>(w, blocks, rows, carried(k + 1, 0), stride, prefetch_weights, kNoPrefetchOfBlocks, store);
  }

  const Shape& s;
  const Args& a;
  Schedule schedule;
  typename M::Panels w, proj;
  int64_t stride, dh_stride;
  Buffer<S> carry_data, dh_data;
  Partition partition;
  Barrier barrier;
  bool private_chunks;
  int64_t chunk_rows, max_rows;
  typename M::InputGradient input;
  WeightGradients weights;
  ChunkMemory shared;
  std::vector<WeightGradients*> partial;  // of each thread
  bool prefetch_weights;
};

}  // namespace FASTLSTM_ISA
