// The backward recurrence with W_hh on the chip for the whole sequence; `single_block` and `cooperative` again differ
// in the exchange only.
//
//   dh = dh_out + d_gates_next W_hh                   d_gates_next: of the step after, zero where that step is reset
//   dc = dc_out + dc_next + dh o (1 - tanh²(c))
//   d_gates_i = dc g i (1 - i);    d_gates_f = dc c' f (1 - f)
//   d_gates_g = dc i (1 - g²);  d_gates_o = dh tanh(c) o (1 - o)
//   dc_next of the step before = dc f            (back-propagation through time, Werbos 1990)
//
// From the last step to the first: the cells compute d_gates, the warps multiply it with W_hh. A group is 16 columns of
// W_hh, that is 16 units of the step before; the lane has columns lane / 4 and lane / 4 + 8 and keeps dh, dc and c of
// both, for two sequences, in shared memory. The cells are distributed over the warps of a group: halves of the units
// and, with warps enough, single sequences.
//
// With gate_splits = 1 every block reads all 4H numbers of d_gates. With gate_splits R > 1 a block sums only over its
// share of the units, and blocks exchange partial sums of dh instead. They form a grid: block (column set, r)
// multiplies the gates of units in slice r of their column set, runs the cells of slice r of its own column set, and
// adds the R partial sums for those. A block exchanges B * 4H / R numbers of d_gates and 2 * B * columns floats a step.
// The order of every sum is fixed: results are deterministic.
#pragma once
#include "backward_coords.cuh"
#include "dispatch.h"
#include "exchange.cuh"

namespace fastlstm::cuda {

template <class T, class Exchange>
struct BackwardRun {
  static constexpr int kSpanUnits = 4 * kPerWord<T>;  // a span of d_gates: this many units, word group q is gate q
  const BackwardArgs& p;
  const Tiling& t;
  const Layout& l;
  BackwardCoords thread;
  const int H;
  const bool& wide;
  Exchange exchange;
  Weights<T, BackwardProduct<T>, kBackwardPieces, kRegisterSpans<T, kBackwardPieces, Exchange::kWhole>> weights;
  Partials<4> partials;
  Rows before, now;

  __device__ __forceinline__ BackwardRun(const KernelParams<BackwardArgs>& params, const ThreadCoords& coords,
                                         const Exchange& ex)
      : p(params.args),
        t(params.args.t),
        l(params.layout),
        thread(coords, params.args.t, params.args.s.H),
        H(params.args.s.H),
        wide(params.wide),
        exchange(ex),
        partials{params.layout, params.args.t} {}

  // The units of the warp's spans, from its i-th on.
  __device__ __forceinline__ SetCursor spans_from(int i) const {
    const int span = thread.split + i * t.k_splits, within = span % l.set_spans;
    return {span / l.set_spans * thread.columns() + thread.slice() * thread.slice_units() + within * kSpanUnits, within,
            l};
  }

  // Staged for 8 sequences x 8 units: gates [gate][sequence][unit], then c before the step, then dh.
  __device__ __forceinline__ unsigned char* slot(int k, int tile, int half) const {
    const int index = ((((p.s.end - 1 - k) & 1) * t.groups + thread.group) * t.row_tiles + tile) * 2 + half;
    return shared_memory() + l.stage + index * l.stage_bytes;
  }
  static __device__ __forceinline__ float* staged_c(unsigned char* slot) {
    return reinterpret_cast<float*>(slot + 256 * sizeof(T));
  }
  static __device__ __forceinline__ T* staged_dh(unsigned char* slot) {
    return reinterpret_cast<T*>(slot + 256 * sizeof(T) + 256);
  }
  // Carried by the lane for column `half` and sequence 2q + j: [dh, dc, c][half][j].
  enum Carry { kDh = 0, kDc = 4, kC = 8 };
  __device__ __forceinline__ float* carried(int tile, int what) const {
    return reinterpret_cast<float*>(shared_memory() + l.carry) +
           ((thread.group * t.row_tiles + tile) * 12 + what) * 32 + thread.lane;
  }

  struct SpanCursor {  // a piece is part of one column of W_hh
    const T* column;
    int64_t half;  // numbers between the lane's two columns
    int first, H;  // the first of these
    SetCursor at;

    __device__ __forceinline__ Piece<T> piece(int h) const {
      // MUTATE: weights-column-tail
      return {column + h * half + at.unit, first + 8 * h < H ? H - at.unit : 0};
    }
    __device__ __forceinline__ void next() { at.advance(); }
  };

  __device__ __forceinline__ void load_weights() {
    const int first = thread.column(0);
    const T* column = static_cast<const T*>(p.w_hh_t) + (int64_t(first) * 4 + thread.q()) * H;
    weights.load(l, t, thread, wide,
                 [&](int i) { return SpanCursor{column, int64_t(32) * H, first, H, spans_from(i)}; });
  }

  // Calls f(shared, global) for dh and dc of the lane's columns.
  template <class F>
  __device__ __forceinline__ void for_own_states(F f) const {
    thread.for_all_own_cells([&](int tile, int half, int which) {
#pragma unroll 1
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int b = thread.sequence(tile, 2 * thread.q() + i % 2), u = thread.column(half);
        if (!has(which, i) || b >= p.s.B || u >= H) continue;
        f(carried(tile, kDh + i), p.dh_state + int64_t(b) * H + u);
        f(carried(tile, kDc + i), p.dc_state + int64_t(b) * H + u);
      }
    });
  }

  __device__ __forceinline__ const float* c_before(const Rows& earlier, int b) const {
    return b < earlier.count ? p.c + (earlier.first + b) * H : p.c0 + int64_t(b) * H;
  }

  // Prefetches the inputs of the cells of step k: the lane loads 8 units of gate lane % 4 of sequence lane / 4; lane 0
  // of a quad also loads c', lane 1 dh.
  __device__ __forceinline__ void prefetch(int k, const Rows& rows, const Rows& earlier) {
    thread.recompute_all();
    if (k >= p.s.begin) {
      thread.for_all_own_cells([&](int tile, int half, int which) {
        const int u = thread.first_column() + 8 * half, b = thread.sequence(tile, thread.lane / 4),
                  row = thread.lane / 4;
        if (!has(which, row) || b >= rows.count) return;
        unsigned char* to = slot(k, tile, half);
        fetch_units(reinterpret_cast<T*>(to) + (thread.q() * 8 + row) * 8,
                    static_cast<const T*>(p.gates) + ((rows.first + b) * 4 + thread.q()) * H + u, H - u, wide);
        if (thread.q() == 0) fetch_units(staged_c(to) + row * 8, c_before(earlier, b) + u, H - u, wide);
        if (thread.q() == 1 && p.dh)
          fetch_units(staged_dh(to) + row * 8, static_cast<const T*>(p.dh) + (rows.first + b) * H + u, H - u, wide);
      });
    }
    commit_copies();
  }

  // The cells of 8 units and the sequences `which` of a tile.
  __device__ __forceinline__ void cell(int k, int tile, int half, int which) {
    thread.recompute_all();
    // MUTATE: backward-staged-wait
    wait_copies<1>();
    __syncwarp();
    unsigned char* staged = slot(k, tile, half);
    T* gates = reinterpret_cast<T*>(staged);
    float d_gates[2][4] = {};
    const int u = thread.column(half);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 2 * thread.q() + j, b = thread.sequence(tile, row), i = 2 * half + j,
                at = row * 8 + thread.lane / 4;
      // MUTATE: backward-unit-tail
      if (!has(which, j) || b >= now.count || u >= H) continue;
      const bool fresh = is_reset(p.s, now, b);
      float gate[4], dc_prev, *c = carried(tile, kC + i), *dc = carried(tile, kDc + i);
#pragma unroll
      for (int g = 0; g < 4; ++g) gate[g] = to_float(gates[g * 64 + at]);
      // c of this step was staged by the step after it, unless this is the last step of the sequence
      const bool first = k + 1 == p.s.end || b >= rows_of(p.s, k + 1).count;
      const float c_now = first ? p.c[(now.first + b) * H + u] : *c;
      const float c_prev = staged_c(staged)[at];
      const float dh = *carried(tile, kDh + i) + (p.dh ? to_float(staged_dh(staged)[at]) : 0.0f);
      const float dc_in = *dc + (p.dc ? p.dc[(now.first + b) * H + u] : 0.0f);
      LstmCell::backward<typename MathOf<T>::type>(gate, fresh ? 0.0f : c_prev, c_now, dh, dc_in, d_gates[j], dc_prev);
      *dc = fresh ? 0.0f : dc_prev;
      *c = c_prev;
    }
    publish_d_gates(tile, half, which, gates, d_gates);
  }

  // Passes d_gates on: to the products of this or the other blocks, and to the output.
  __device__ __forceinline__ void publish_d_gates(int tile, int half, int which, T* staged,
                                                  const float (&d_gates)[2][4]) {
    thread.recompute_all();
    const int u = thread.column(half);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        if (!has(which, j)) continue;
        const T value = from_float<T>(d_gates[j][g]);
        const int row = 2 * thread.q() + j;
        staged[(g * 8 + row) * 8 + thread.lane / 4] = value;
        // also for units beyond H, as zeros
        if constexpr (Exchange::kWhole) exchange.put(exchange.parity, 8 * tile + row, interleaved(u, g), value);
      }
    __syncwarp();
    thread.recompute_all();
    const int b = thread.sequence(tile, thread.lane / 4), first = thread.first_column() + 8 * half;
    if (!has(which, thread.lane / 4) || b >= now.count) return;
    const T* mine = staged + (thread.q() * 8 + thread.lane / 4) * 8;  // gate q of sequence b
    if constexpr (!Exchange::kWhole) {
      T* row = static_cast<T*>(p.exchange) + (now.first + b) * 4 * p.exchange_width;
#pragma unroll
      for (int i = 0; i < 8; i += kSpanUnits)
        if (first + i < p.exchange_width)
          store_relaxed(reinterpret_cast<uint32_t*>(row + interleaved(first + i, thread.q())),
                        canonical_nan<T>(load_vector<uint4>(mine + i)));
    }
    write_units(static_cast<T*>(p.d_gates) + ((now.first + b) * 4 + thread.q()) * H + first, mine, H - first, wide);
  }

  // Offset of gate g of a unit in a row of d_gates as the products read it: 16 bytes of each gate side by side.
  static __device__ __forceinline__ int interleaved(int u, int g) {
    return 4 * (u - u % kSpanUnits) + g * kSpanUnits + u % kSpanUnits;
  }

  __device__ __forceinline__ const uint32_t* operands(int tile) {
    if constexpr (Exchange::kWhole) {
      return exchange.tile(thread, tile);
    } else {
      const int b = thread.sequence(tile, thread.lane / 4), width = p.exchange_width;
      const T* row = static_cast<const T*>(p.exchange) + (now.first + b) * 4 * width + interleaved(0, thread.q());
      return exchange.template fetch<T>(thread, weights.count, b < now.count, row, width, spans_from(0),
                                        [](int) { return uint4{0, 0, 0, 0}; });
    }
  }

  // Stores dh of the step before, for sequences that took this step; zero at a reset.
  __device__ __forceinline__ void keep(int tile, int half, int which, const float (&sums)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = thread.sequence(tile, 2 * thread.q() + j);
      if (has(which, j) && b < now.count) *carried(tile, kDh + 2 * half + j) = is_reset(p.s, now, b) ? 0.0f : sums[j];
    }
  }

  // Words between two parts of the partial sums, and the address of the lane's four sums of part 0; the same lane of
  // another block writes them (layout.h, partial_words).
  __device__ __forceinline__ int part_words() const {
    return divide_up(p.s.B, 8) * (t.unit_blocks / t.gate_splits) * t.groups * 128;
  }
  __device__ __forceinline__ uint32_t* parts(int k, int tile) const {
    const int sets = t.unit_blocks / t.gate_splits, set = thread.units_at / t.gate_splits;
    const int at = ((thread.sequence(tile, 0) / 8 * sets + set) * t.groups + thread.group) * 128 + 4 * thread.lane;
    return reinterpret_cast<uint32_t*>(p.partial) + int64_t(k - p.s.begin) * t.gate_splits * part_words() + at;
  }

  // R > 1: adds up the partial sums of the units whose cells this warp runs, in the order of the parts.
  __device__ __forceinline__ void collect(int k) {
    if constexpr (!Exchange::kWhole) {
      thread.for_all_own_cells([&](int tile, int half, int which) {
        if (thread.sequence(tile, 0) >= now.count) return;
        const uint32_t* from = parts(k, tile) + 2 * half;
        float sums[2] = {};
        SpinTimeout timeout;
#pragma unroll 1
        for (int first = 0; first < t.gate_splits; first += kPartsInFlight) {
          const uint32_t* where[kPartsInFlight];
          uint2 v[kPartsInFlight];
#pragma unroll
          for (int r = 0; r < kPartsInFlight; ++r)
            where[r] = from + min_of(first + r, t.gate_splits - 1) * part_words();
          // MUTATE: parts-poll
          exchange.poll(v, where, timeout);
#pragma unroll
          for (int r = 0; r < kPartsInFlight; ++r) {
            if (first + r >= t.gate_splits) break;
            sums[0] += __builtin_bit_cast(float, v[r].x), sums[1] += __builtin_bit_cast(float, v[r].y);
          }
        }
        keep(tile, half, which, sums);
      });
    }
  }

  // Products of the tiles of one phase, then their sums.
  __device__ __forceinline__ void phase(int k, int first) {
    const int tiles = min_of(t.phase, t.row_tiles - first);
    float sums[4] = {};
    recompute(thread.lane);
#pragma unroll 1
    for (int r = 0; r < tiles; ++r) {
      if (thread.sequence(first + r, 0) >= now.count) break;
      BackwardProduct<T> product;
      weights.multiply(product, operands(first + r), exchange.step(), exchange.stride(), l, thread);
      product.finish(sums, thread.lane);
      if (t.k_splits > 1) partials.put(thread, r, sums);
    }
    // MUTATE: backward-partials-barrier
    if (t.k_splits > 1) __syncthreads();
    if (t.gate_splits > 1) {
#pragma unroll 1
      for (int r = thread.split; r < tiles; r += t.k_splits) {
        if (thread.sequence(first + r, 0) >= now.count) break;
        if (t.k_splits > 1) partials.template sum<1>(thread, r, 0, sums);
        store_relaxed(parts(k, first + r) + thread.slice() * part_words(),
                      {word_of(sums[0]), word_of(sums[1]), word_of(sums[2]), word_of(sums[3])});
      }
    } else {
      thread.for_own_cells(first, [&](int tile, int half, int which) {
        if (thread.sequence(tile, 0) >= now.count) return;
        float mine[2] = {half ? sums[2] : sums[0], half ? sums[3] : sums[1]};
        if (t.k_splits > 1) partials.template sum<1>(thread, tile - first, 2 * half, mine);
        keep(tile, half, which, mine);
      });
    }
    partials.parity ^= 1;
  }

  __device__ __forceinline__ void run() {
    const int last = p.s.end - 1;
    now = rows_of(p.s, last), before = rows_of(p.s, last - 1);
    prefetch(last, now, before);
    prefetch(last - 1, before, rows_of(p.s, last - 2));
    load_weights();
    // MUTATE: carried-dh-dc
    for_own_states([](float* place, float* state) { *place = *state; });
    if constexpr (Exchange::kWhole) {
      // MUTATE: clear-d-gates-buffers
      exchange.clear();
      __syncthreads();
    }
#pragma unroll 1
    for (int k = last; k >= p.s.begin; --k) {
      thread.for_all_own_cells([&](int tile, int half, int which) { cell(k, tile, half, which); });
      // MUTATE: d-gates-barrier
      if constexpr (Exchange::kWhole) __syncthreads();
      __syncwarp();
      prefetch(k - 2, rows_of(p.s, k - 2), rows_of(p.s, k - 3));
#pragma unroll 1
      for (int first = 0; first < t.row_tiles; first += t.phase) phase(k, first);
      if (t.gate_splits > 1) collect(k);
      if constexpr (Exchange::kWhole) exchange.parity ^= 1;
      now = before, before = rows_of(p.s, k - 2);
    }
    for_own_states([](float* place, float* state) { *state = *place; });
  }
};

// Whether every row begins at a multiple of 16 bytes; decided on the host.
inline bool rows_aligned(const BackwardArgs& p, int type_bytes) {
  return p.s.H * type_bytes % 16 == 0 && all_aligned(p.d_gates, p.dh, p.gates, p.c, p.c0, p.w_hh_t);
}

}  // namespace fastlstm::cuda
