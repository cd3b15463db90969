// The forward recurrence with W_hh on the chip for the whole sequence: one launch runs all steps. `single_block` (one
// block has all units of its sequences) and `cooperative` (units are spread over blocks) are this code with the two
// exchanges of exchange.cuh.
//
//   z = x W_xᵀ + b + h' W_hhᵀ                    h', c': h and c of the step before, zero at a reset
//   i, f, o = σ(z_i), σ(z_f), σ(z_o);  g = tanh(z_g)
//   c = f c' + i g;  h = o tanh(c)               (Hochreiter and Schmidhuber 1997; Gers et al. 2000)
//
// A step: every warp multiplies its part of W_hh with h'; the warps of a group add their partial sums (k_splits > 1)
// and run the cells, in turns over tiles of 8 sequences and the two sequences of a lane. A lane has one unit of two
// sequences: all four gates in registers, c in shared memory. The input side of step k + 2 is prefetched while step k
// runs. Bound: with few sequences in a block the latency of product, sum, cell and exchange, one after the other.
#pragma once
#include "dispatch.h"
#include "exchange.cuh"
#include "input.cuh"

namespace fastlstm::cuda {

template <class T, class Exchange>
struct ForwardRun {
  const ForwardArgs& p;
  const Tiling& t;
  const Layout& l;
  ThreadCoords thread;
  const int H;
  Exchange exchange;
  Weights<T, ForwardProduct<T>, kForwardPieces, kRegisterSpans<T, kForwardPieces, Exchange::kWhole>> weights;
  Partials<8> partials;
  Rows before, now, next;
  const bool& wide;  // rows of all arrays are 16-byte aligned

  __device__ __forceinline__ ForwardRun(const KernelParams<ForwardArgs>& params, const ThreadCoords& coords,
                                        const Exchange& ex)
      : p(params.args),
        t(params.args.t),
        l(params.layout),
        thread(coords),
        H(params.args.s.H),
        exchange(ex),
        partials{params.layout, params.args.t},
        wide(params.wide) {}

  __device__ __forceinline__ int first_unit() const {
    return 8 * (thread.units_at * t.groups + thread.group);
  }  // of the group
  __device__ __forceinline__ int unit() const { return first_unit() + thread.lane / 4; }  // of the lane
  __device__ __forceinline__ T* slot(int k, int tile) const {
    const int index = (((k - p.s.begin) & 1) * t.groups + thread.group) * t.row_tiles + tile;
    return reinterpret_cast<T*>(shared_memory() + l.stage + index * l.stage_bytes);
  }
  __device__ __forceinline__ float* carried_c(int tile) const {
    return reinterpret_cast<float*>(shared_memory() + l.carry) + (thread.group * t.row_tiles + tile) * 64 + thread.lane;
  }

  // Offset in a row of h of the lane's piece of the warp's i-th span.
  __device__ __forceinline__ int place(int i) const {
    return (thread.split + i * t.k_splits) * kSpan<T> + 4 * kPerWord<T> * thread.q();
  }

  struct SpanCursor {  // a piece is one gate's row of the lane's unit
    const T* at;
    int64_t gate;
    int left, step;  // numbers to the end of the row, and between two spans

    __device__ __forceinline__ Piece<T> piece(int g) const { return {at + g * gate, left}; }
    // MUTATE: weights-span-tail
    __device__ __forceinline__ void next() { at += step, left -= step; }
  };

  __device__ __forceinline__ void load_weights() {
    const T* row = static_cast<const T*>(p.w_hh) + int64_t(unit()) * H;
    weights.load(l, t, thread, wide, [&](int i) {
      // MUTATE: weights-unit-tail
      return SpanCursor{row + place(i), int64_t(H) * H, unit() < H ? H - place(i) : 0, t.k_splits * kSpan<T>};
    });
  }

  // Calls f(tile, which) for the cells that this warp runs, of the tiles of a phase from `first` on. A lane has one
  // unit and the sequences 2q and 2q + 1 of a tile; bit j of `which` selects sequence 2q + j. The cells are distributed
  // round-robin over the warps of a group.
  template <class F>
  __device__ __forceinline__ void for_own_cells(int first, F f) {
    if constexpr (!Exchange::kWhole)
      if (t.k_splits == 1) return f(first, 3);  // and a phase is one tile
    if constexpr (Exchange::kWhole) recompute(thread.split);
    const int shares = t.k_splits == 1 ? 1 : 2, count = shares * min_of(t.phase, t.row_tiles - first);
#pragma unroll 1
    for (int i = thread.split; i < count; i += t.k_splits)
      // MUTATE: own-cells-row
      f(first + (shares == 1 ? i : i / 2), shares == 1 ? 3 : 1 + i % 2);
  }
  template <class F>
  __device__ __forceinline__ void for_all_own_cells(F f) {
#pragma unroll 1
    for (int first = 0; first < t.row_tiles; first += t.phase) for_own_cells(first, f);
  }

  // Calls f(shared, global) for c of the warp's cells: carried_c and c_n.
  template <class F>
  __device__ __forceinline__ void for_own_states(F f) {
    for_all_own_cells([&](int tile, int which) {
#pragma unroll 1
      for (int j = 0; j < 2; ++j) {
        const int b = thread.sequence(tile, 2 * thread.q() + j);
        if (has(which, j) && b < p.s.B && unit() < H) f(carried_c(tile) + 32 * j, p.c_n + int64_t(b) * H + unit());
      }
    });
  }

  // The input side of step k for the warp's cells: the lane fetches 8 units of gate lane % 4 of sequence lane / 4.
  __device__ __forceinline__ void prefetch(int k, const Rows& rows) {
    recompute(thread.lane), recompute(thread.group), recompute(thread.units_at), recompute(thread.rows_at);
    if (k < p.s.end && first_unit() < H) {
      for_all_own_cells([&](int tile, int which) {
        const int b = thread.sequence(tile, thread.lane / 4);
        if (has(which, thread.lane / 4) && b < rows.count)
          fetch_units(slot(k, tile) + (thread.q() * 8 + thread.lane / 4) * 8,
                      input_row<T>(p, rows.first + b) + thread.q() * H + first_unit(), H - first_unit(), wide);
      });
    }
    commit_copies();
  }

  __device__ __forceinline__ const T* state_before(int b) const {  // complete before the launch
    if (b < before.count) return static_cast<const T*>(p.h) + (before.first + b) * H;
    return static_cast<const T*>(p.h0) + int64_t(b) * H;
  }

  // BlockExchange: both buffers of h, zero beyond H and at resets. GridExchange copies h when it multiplies.
  __device__ __forceinline__ void start() {
    if constexpr (Exchange::kWhole) {
      const int pieces = l.stride / 4;
#pragma unroll 1
      // MUTATE: first-h-buffers
      for (int i = int(threadIdx.x); i < 16 * t.row_tiles * pieces; i += int(blockDim.x)) {
        const int row = i / pieces % (8 * t.row_tiles), piece = i % pieces, b = thread.rows_at + row;
        const int k = piece * 4 * kPerWord<T>;
        const bool live = b < p.s.B && !is_reset(p.s, now, b);
        uint4 words{0, 0, 0, 0};
        if (live && k < H) words = gather_words(state_before(b) + k, H - k, wide);
        store_vector(exchange.words() + i * 4, operand<T>(words));
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ const uint32_t* operands(int k, int tile) {
    if constexpr (Exchange::kWhole) {
      return exchange.tile(thread, tile);
    } else {
      recompute(thread.lane), recompute(thread.split), recompute(thread.rows_at);
      const int b = thread.sequence(tile, thread.lane / 4);
      const bool zero = b >= now.count || is_reset(p.s, now, b), given = k == p.s.begin || b >= before.count;
      const T* from = static_cast<const T*>(p.exchange) + (before.first + b) * p.exchange_width;
      const EvenCursor first{place(0), t.k_splits * kSpan<T>};
      return exchange.template fetch<T>(thread, weights.count, !(zero || given), from, p.exchange_width, first,
                                        [&](int i) {
                                          if (zero || place(i) >= H) return uint4{0, 0, 0, 0};
                                          return gather_words(state_before(b) + place(i), H - place(i), wide);
                                        });
    }
  }

  // One step of the cells of a tile. sums: h' W_hhᵀ, [gate][j]. h is published first: it is all that the next step
  // waits for.
  __device__ __forceinline__ void cell(int k, int tile, int which, const float (&sums)[8]) {
    recompute(thread.lane), recompute(thread.group), recompute(thread.units_at), recompute(thread.rows_at);
    // MUTATE: staged-wait
    wait_copies<1>();
    __syncwarp();
    T* staged = slot(k, tile);
    T h[2] = {};
    float c[2] = {}, gate[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 2 * thread.q() + j, b = thread.sequence(tile, row);
      if (has(which, j) && b < now.count && unit() < H) {
        float value;
        const float c_prev = is_reset(p.s, now, b) ? 0.0f : carried_c(tile)[32 * j];
#pragma unroll
        for (int g = 0; g < 4; ++g)
          gate[j][g] = sums[2 * g + j] + to_float(staged[(g * 8 + row) * 8 + thread.lane / 4]);
        LstmCell::forward<typename MathOf<T>::type>(gate[j], c_prev, c[j], value);
        h[j] = from_float<T>(value);
      }
      if constexpr (Exchange::kWhole)
        if (has(which, j)) keep(tile, staged, row, b, h[j], c[j], gate[j]);
    }
    if constexpr (!Exchange::kWhole) {
      publish_h(tile, which, h);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = 2 * thread.q() + j;
        if (has(which, j)) keep(tile, staged, row, thread.sequence(tile, row), h[j], c[j], gate[j]);
      }
    }
    __syncwarp();
    const int b = thread.sequence(tile, thread.lane / 4);
    if (p.gates && has(which, thread.lane / 4) && b < now.count && first_unit() < H)
      write_units(static_cast<T*>(p.gates) + ((now.first + b) * 4 + thread.q()) * H + first_unit(),
                  staged + (thread.q() * 8 + thread.lane / 4) * 8, H - first_unit(), wide);
  }

  // Stores the results of a cell of sequence b: h for the next step of this block and to memory, h to h_n at the end of
  // the sequence, c, gates.
  __device__ __forceinline__ void keep(int tile, T* staged, int row, int b, T h, float c, const float (&gate)[4]) {
    const bool live = b < now.count && unit() < H;
    if constexpr (Exchange::kWhole) {
      const bool stopped = is_reset(p.s, next, b);
      if (unit() < H && (live || stopped)) exchange.put(exchange.parity ^ 1, 8 * tile + row, unit(), stopped ? T{} : h);
    }
    if (!live) return;
    if (p.exchange != p.h) static_cast<T*>(p.h)[(now.first + b) * H + unit()] = h;
    if (b >= next.count) static_cast<T*>(p.h_n)[int64_t(b) * H + unit()] = h;
    carried_c(tile)[32 * (row % 2)] = c;
    if (p.c) p.c[(now.first + b) * H + unit()] = c;
#pragma unroll
    for (int g = 0; g < 4; ++g) staged[(g * 8 + row) * 8 + thread.lane / 4] = from_float<T>(gate[g]);
  }

  // GridExchange: publishes h for the other blocks; zero beyond H.
  __device__ __forceinline__ void publish_h(int tile, int which, const T (&value)[2]) {
    uint32_t* to = static_cast<uint32_t*>(p.exchange);
    const int width = p.exchange_width / kPerWord<T>, at = unit() / kPerWord<T>;
    // MUTATE: publish-width-tail
    exchange.publish(thread, tile, which, at < width ? now.count : 0, value[0], value[1],
                     [&](int b) { return to + (now.first + b) * width + at; });
  }

  // The tiles of one phase: products of all of them, then the cells of this warp's share.
  __device__ __forceinline__ void phase(int k, int first) {
    const int tiles = min_of(t.phase, t.row_tiles - first);
    float sums[8] = {};
    recompute(thread.lane);
#pragma unroll 1
    for (int r = 0; r < tiles; ++r) {
      if (thread.sequence(first + r, 0) >= now.count) break;
      ForwardProduct<T> product;
      weights.multiply(product, operands(k, first + r), exchange.step(), exchange.stride(), l, thread);
      product.finish(sums, thread.lane);
      if (t.k_splits > 1) partials.put(thread, r, sums);
    }
    // MUTATE: partials-barrier
    if (t.k_splits > 1) __syncthreads();
    for_own_cells(first, [&](int tile, int which) {
      if (t.k_splits > 1 && thread.sequence(tile, 0) < now.count) {
        float mine[4];
        partials.template sum<2>(thread, tile - first, which - 1, mine);
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = mine[i / 2];  // only those of the one j are read
      }
      cell(k, tile, which, sums);
    });
    partials.parity ^= 1;
  }

  __device__ __forceinline__ void run() {
    const int begin = p.s.begin, end = p.s.end;
    before = rows_of(p.s, begin - 1), now = rows_of(p.s, begin), next = rows_of(p.s, begin + 1);
    prefetch(begin, now);
    prefetch(begin + 1, next);
    load_weights();
    // MUTATE: carried-c
    for_own_states([](float* place, float* state) { *place = *state; });
    start();
#pragma unroll 1
    for (int k = begin; k < end; ++k) {
#pragma unroll 1
      for (int first = 0; first < t.row_tiles; first += t.phase) phase(k, first);
      __syncwarp();
      before = now, now = next, next = rows_of(p.s, k + 2);
      prefetch(k + 2, next);
      if constexpr (Exchange::kWhole) {
        // MUTATE: step-barrier
        __syncthreads();
        exchange.parity ^= 1;
      }
    }
    for_own_states([](float* place, float* state) { *state = *place; });
  }
};

// Whether every row begins at a multiple of 16 bytes; decided on the host.
inline bool rows_aligned(const ForwardArgs& p, int type_bytes) {
  return p.s.H * type_bytes % 16 == 0 && all_aligned(p.w_hh, p.x_gates, p.table, p.gates, p.h0, p.h);
}

}  // namespace fastlstm::cuda
