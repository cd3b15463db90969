// The lean forward recurrence: the equations of forward.cuh with W_hh spread over blocks that exchange h, where all
// that a step need not decide is a template parameter. For the types of the tensor cores and rows of a multiple of 16
// bytes.
//
// A pass runs `Tiles` tiles of 8 sequences through one step; a block's passes follow each other through its sequences
// and then through time. h goes from L2 straight into mma's registers: a lane loads the 16 bytes that it multiplies, of
// all its spans at once. The warps add their sums through shared memory behind one barrier a pass; then a thread owns
// one cell, unit fastest. It sends h first: gates, c and the input side of the pass after the next follow while h is on
// its way. Bound: the hand-over through L2, then the instructions between barrier and send.
//
// Dense: T x B rows of x_gates, no resets. Otherwise packed rows, resets and ids too. Below: instead of x_gates, the
// input is h of the layer below, which other blocks of this launch send: W_ih is on the chip too, its products with the
// layer below come first, while h of this layer is on its way, and the bias is added to the sums.
#pragma once
#include "input.cuh"
#include "lean_block.cuh"

namespace fastlstm::cuda {

template <class T, int Spans, int Groups, int Tiles, bool Dense, bool Below>
struct LeanForward {
  static constexpr int kUnits = 8 * Groups, kRows = 8 * Tiles, kCells = kUnits * kRows;
  static constexpr int kAll = Spans * (1 + Below);  // spans of W_hh, then those of W_ih
  static constexpr int kKept = lean_register_spans(kAll, Groups, false, Below);
  static constexpr int kStride = kLeanWarps * kSpan<T>;                    // numbers between two spans of a warp
  static constexpr int kChains = Spans > 1 && Groups* Tiles == 1 ? 2 : 1;  // of products that wait for each other
  static_assert(kCells <= kLeanThreads, "one cell a thread");
  const ForwardArgs& p;
  const int block;  // among those of the layer
  const int H, lane, warp;
  const int first_unit, begin_row, end_row;  // of the block: its first unit and sequence, and where the latter end
  const int first_number;                    // of the sum: the lane's first
  const int spans;                           // of which the lane has numbers
  const int unit, sequence;                  // of the thread's cell: among all, and in the pass
  const bool has_cell;
  bool timed_out = false;
  uint4 weights[kKept][Groups][4];

  __device__ __forceinline__ LeanForward(const ForwardArgs& args, int block_of_layer)
      : p(args),
        block(block_of_layer),
        H(args.s.H),
        lane(int(threadIdx.x) % 32),
        warp(int(threadIdx.x) / 32),
        first_unit(block % args.t.unit_blocks * kUnits),
        begin_row(block / args.t.unit_blocks * args.t.row_tiles * 8),
        end_row(min_of(begin_row + args.t.row_tiles * 8, args.s.B)),
        first_number(warp * kSpan<T> + lane % 4 * 4 * kPerWord<T>),
        spans(divide_up(H - first_number, kStride)),
        unit(first_unit + int(threadIdx.x) % kUnits),
        sequence(int(threadIdx.x) / kUnits),
        // MUTATE: lean-cell-tail
        has_cell(int(threadIdx.x) < kCells && unit < H) {}

  // Shared memory: the lane's pieces of W_hh that are not in registers; sums [parity][warp][sequence][unit] of all
  // gates, a row one cell longer so that no bank is met twice; c of the cells of each pass.
  __device__ __forceinline__ uint4* rest(int span, int group) const {
    return reinterpret_cast<uint4*>(shared_memory()) + ((span - kKept) * Groups + group) * 4 * kLeanThreads +
           int(threadIdx.x);
  }
  __device__ __forceinline__ float4* sums(int parity, int from) const {
    return reinterpret_cast<float4*>(shared_memory() + lean_rest_bytes(Spans, Groups, false, Below)) +
           (parity * kLeanWarps + from) * kRows * (kUnits + 1);
  }
  __device__ __forceinline__ float* carried_c(int row) const {
    return reinterpret_cast<float*>(sums(2, 0)) + (row - begin_row) * kUnits + int(threadIdx.x);
  }

  // The lane's pieces of a span for a group: rows i, f, g, o of unit lane / 4, as mma takes them.
  __device__ __forceinline__ void load_span(uint4 (&w)[4], int span, int group) const {
    const int row = first_unit + 8 * group + lane / 4, k = first_number + span % Spans * kStride;
    const T* matrix = static_cast<const T*>(span < Spans ? p.w_hh : p.w_ih);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      w[gate] = uint4{0, 0, 0, 0};
      // MUTATE: lean-weights-tail
      if (row < H && k < H) w[gate] = load_vector<uint4>(matrix + (int64_t(gate) * H + row) * H + k);
      w[gate] = operand<T>(w[gate]);
    }
    ForwardProduct<T>::arrange(w);
  }
  __device__ __forceinline__ void load_weights() {
#pragma unroll 1
    for (int s = kKept; s < kAll; ++s)
#pragma unroll
      for (int g = 0; g < Groups; ++g) {
        uint4 w[4];
        load_span(w, s, g);
#pragma unroll
        for (int i = 0; i < 4; ++i) store_vector(rest(s, g) + i * kLeanThreads, w[i]);
      }
#pragma unroll
    for (int s = 0; s < kKept; ++s)
#pragma unroll
      for (int g = 0; g < Groups; ++g) load_span(weights[s][g], s, g);
  }

  __device__ __forceinline__ bool live(const StepRows& rows, int pass_row) const {
    // MUTATE: lean-sequence-tail
    return has_cell && pass_row + sequence < min_of(end_row, rows.count);
  }

  // The input side of the thread's cell, as bits.
  __device__ __forceinline__ void fetch(uint32_t (&x)[4], const StepRows& rows, int pass_row) const {
    if (Below || !live(rows, pass_row)) return;
    const int row = rows.first + pass_row + sequence;
    const T* from = (Dense ? static_cast<const T*>(p.x_gates) + int64_t(row) * (4 * H) : input_row<T>(p, row)) + unit;
#pragma unroll
    for (int g = 0; g < 4; ++g, from += H) x[g] = bits_of(*from);
  }

  // Where h before the step lies for the lane's sequence of a tile, and whether a block of this launch sends it.
  __device__ __forceinline__ const uint32_t* state(const NearRows<Dense>& rows, int k, int b, bool& waits) const {
    // MUTATE: lean-given-tail
    const bool given = b >= rows.at(-1).count || (Dense && k == 0);
    const T* from = given ? static_cast<const T*>(p.h0) + int64_t(b) * H
                          : static_cast<const T*>(p.h) + int64_t(rows.at(-1).first + b) * H;
    // MUTATE: lean-given-row
    waits = k > p.s.begin && !given;
    if constexpr (!Dense) {
      const bool dead = b >= rows.at(0).count;
      if (dead) from = static_cast<const T*>(p.h0) + int64_t(b) * H;
      const bool fresh = !dead && p.s.reset && p.s.reset[rows.at(0).first + b];
      if (fresh) from = static_cast<const T*>(p.zeros);
      waits = waits && !dead && !fresh;
    }
    return reinterpret_cast<const uint32_t*>(from + first_number);
  }

  struct Sums {
    float d[kChains][Tiles][Groups][2][4];
  };
  // Adds the warp's products with rows of h; from the span `First` of the weights on.
  template <int First>
  __device__ __forceinline__ void multiply(Sums& sum, const uint4 (&h)[Tiles][Spans]) const {
#pragma unroll
    for (int i = 0; i < Spans; ++i)
#pragma unroll
      for (int g = 0; g < Groups; ++g) {
        constexpr int kLast = kKept - 1;
        const int s = First + i;
        uint4 w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          w[j] = s < kKept ? weights[s < kKept ? s : kLast][g][j] : load_vector<uint4>(rest(s, g) + j * kLeanThreads);
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          const uint4 x = operand<T>(h[t][i]);
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            mma<T>(sum.d[0][t][g][pair], w[2 * pair], x.x, x.y);
            mma<T>(sum.d[kChains - 1][t][g][pair], w[2 * pair + 1], x.z, x.w);
          }
        }
      }
  }

  // Puts the warp's sums where the threads of the cells find them.
  __device__ __forceinline__ void put(const Sums& sum, int parity) const {
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int g = 0; g < Groups; ++g)
#pragma unroll
        for (int j = 0; j < 2; ++j) {  // all gates of unit lane / 4 and sequence 2q + j
          float z[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            z[i] = sum.d[0][t][g][i / 2][2 * (i % 2) + j];
            if (kChains == 2) z[i] += sum.d[kChains - 1][t][g][i / 2][2 * (i % 2) + j];
          }
          // MUTATE: lean-sums-row
          sums(parity, warp)[(8 * t + 2 * (lane % 4) + j) * (kUnits + 1) + 8 * g + lane / 4] = {z[0], z[1], z[2], z[3]};
        }
  }

  // h' W_hhᵀ of the thread's cell, in a fixed order.
  __device__ __forceinline__ float4 total(int parity) const {
    float4 part[kLeanWarps];
#pragma unroll
    for (int w = 0; w < kLeanWarps; ++w) part[w] = sums(parity, w)[sequence * (kUnits + 1) + int(threadIdx.x) % kUnits];
    return add(add(add(part[0], part[1]), add(part[2], part[3])), add(add(part[4], part[5]), add(part[6], part[7])));
  }

  // Sends h of the thread's cell: in half types a thread with an even unit sends that of its neighbour too.
  __device__ __forceinline__ void send(T* to, bool alive, T h) const {
    if constexpr (sizeof(T) == 4) {
      if (alive) store_relaxed(reinterpret_cast<uint32_t*>(to), word_of(to_float(h)));
    } else {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, uint32_t(h.bits), 1);
      if (alive && unit % 2 == 0) store_relaxed(reinterpret_cast<uint32_t*>(to), h.bits | other << 16);
    }
  }

  // A pass of step k. x: the input side of its cells.
  __device__ __forceinline__ void pass(const NearRows<Dense>& rows, int k, int pass_row, int parity,
                                       const uint32_t (&x)[4]) {
    Sums sum = {};
    uint4 h[Tiles][Spans];
    const uint32_t* from[Tiles];
    bool waits[Tiles];
    if constexpr (Below) {
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        const int b = min_of(pass_row + 8 * t + lane / 4, p.s.B - 1);
        const bool alive = Dense || b < rows.at(0).count;
        const T* row = static_cast<const T*>(p.below) + int64_t(rows.at(0).first + (alive ? b : 0)) * H;
        // MUTATE: lean-runs-ahead
        waits[t] = alive;
        from[t] = reinterpret_cast<const uint32_t*>(row + first_number);
      }
      await_words<Tiles, Spans, Spans / 2, kStride / kPerWord<T>>(h, from, waits, spans, timed_out, p.status);
      __syncwarp();
      multiply<Spans>(sum, h);
    }
#pragma unroll
    for (int t = 0; t < Tiles; ++t) from[t] = state(rows, k, min_of(pass_row + 8 * t + lane / 4, p.s.B - 1), waits[t]);
    await_words<Tiles, Spans, Spans / 2, kStride / kPerWord<T>>(h, from, waits, spans, timed_out, p.status);
    __syncwarp();
    multiply<0>(sum, h);
    put(sum, parity);
    const bool alive = live(rows.at(0), pass_row);
    const int row = rows.at(0).first + pass_row + sequence;
    T* to = static_cast<T*>(p.h) + int64_t(row) * H + unit;
    float before[4], c = 0.0f;
#pragma unroll
    for (int g = 0; g < 4; ++g) before[g] = to_float(from_bits<T>(x[g]));
    if (alive && (Dense || !p.s.reset || !p.s.reset[row])) c = *carried_c(pass_row);
    compute_here(to);
    // MUTATE: lean-barrier
    __syncthreads();
    if (int(threadIdx.x) / 32 * 32 >= kCells) return;
    const float4 z = total(parity);
    float gate[4] = {z.x + before[0], z.y + before[1], z.z + before[2], z.w + before[3]}, value;
    LstmCell::forward<Fast>(gate, c, c, value);
    const T out = from_float<T>(value);
    send(to, alive, out);
    if (!alive) return;
    *carried_c(pass_row) = c;
    // MUTATE: lean-h-n-tail
    if (pass_row + sequence >= (Dense ? (k + 1 < p.s.T ? p.s.B : 0) : rows.at(1).count))
      static_cast<T*>(p.h_n)[int64_t(pass_row + sequence) * H + unit] = out;
    if (p.c) p.c[int64_t(row) * H + unit] = c;
    if (!p.gates) return;
    T* gates = static_cast<T*>(p.gates) + int64_t(row) * (4 * H) + unit;
#pragma unroll
    for (int g = 0; g < 4; ++g, gates += H) *gates = from_float<T>(gate[g]);
  }

  // f(shared, global) for c of the thread's cells.
  template <class F>
  __device__ __forceinline__ void for_own_states(F f) const {
#pragma unroll 1
    for (int row = begin_row; row < end_row; row += kRows)
      if (has_cell && row + sequence < end_row) f(carried_c(row), p.c_n + int64_t(row + sequence) * H + unit);
  }

  __device__ __forceinline__ void run() {
    load_weights();
    // MUTATE: lean-carried-c
    for_own_states([](float* place, float* state) { *place = *state; });
    NearRows<Dense> rows(p.s, p.s.begin, 1);
    uint32_t x[2][4] = {};
    int ahead_row = begin_row, ahead = 0;  // the pass whose input side is fetched next, and steps from here to it
    const auto fetch_next = [&](uint32_t (&to)[4], int k) {
      if (k + ahead < p.s.end) fetch(to, rows.at(ahead), ahead_row);
      ahead_row += kRows;
      if (ahead_row >= end_row) ahead_row = begin_row, ++ahead;
    };
    fetch_next(x[0], p.s.begin);
    fetch_next(x[1], p.s.begin);
    if (Below && p.bias && has_cell)
#pragma unroll
      for (int g = 0; g < 4; ++g) x[0][g] = x[1][g] = bits_of(static_cast<const T*>(p.bias)[g * H + unit]);
    int parity = 0;
#pragma unroll 1
    for (int k = p.s.begin; k < p.s.end; ++k) {
#pragma unroll 1
      for (int row = begin_row; row < end_row; row += kRows) {
        pass(rows, k, row, parity, x[0]);
#pragma unroll
        for (int g = 0; g < 4; ++g) x[0][g] = x[1][g];
        // MUTATE: lean-fetch-order
        fetch_next(x[1], k);
        // MUTATE: lean-parity
        parity ^= 1;
      }
      rows.advance(p.s, k + 1, 1);
      --ahead;
    }
    for_own_states([](float* place, float* state) { *state = *place; });
  }
};

}  // namespace fastlstm::cuda
