// The lean backward recurrence: the equations of backward.cuh, spread over blocks as lean_forward.cuh's.
//
// A block has 16 * Splits columns of W_hh. With Splits = 1 it sums over all units and runs the cells of its 16 columns.
// Else blocks form a grid of column sets and slices: block (set, r) sums over the units of slice r of every set, for
// all columns of its own set, and runs the cells of slice r of its set; the parts of dh go through memory too. That is
// one more hand-over for 1 / Splits of the words: worth it with many units and sequences.
//
// A pass runs 8 sequences through one step: first the cells, which send the gradients of their gates; then, when those
// of all units have come, the products. Words are sent in the order in which a lane multiplies them: 16 bytes of each
// gate side by side. d_gates, and the input of the pass after the next, follow while they are on their way.
//
// Above: the gradient at h also comes from the layer above, whose gradients of the gates other blocks of this launch
// send. W_ih of that layer is on the chip too, and dh of step k - 1 is
//
//   d_gates_k W_hh + d_gates_above_(k-1) W_ih_above
//
// of which the second product comes first, while d_gates of step k are on their way.
#pragma once
#include "lean_block.cuh"

namespace fastlstm::cuda {

template <class T, int Spans, int Splits, bool Dense, bool Above>
struct LeanBackward {
  static constexpr int kSpanUnits = 4 * kPerWord<T>;  // word group q of a span is gate q of so many units
  static constexpr int kUnits = 16, kColumns = kUnits * Splits, kRows = 8, kCells = kUnits * kRows;
  static constexpr int kAll = Spans * (1 + Above);  // spans of W_hh, then those of W_ih of the layer above
  static constexpr int kKept = lean_register_spans(kAll, Splits, true, Above);
  static constexpr int kSetSpans = kUnits / kSpanUnits;              // of a slice in one set
  static constexpr int kStride = kLeanWarps / kSetSpans * kColumns;  // units between two spans of a warp
  // Spans that are loaded together: of 16 in TF32, without the room of dense rows, half.
  static constexpr int kBatch = Spans == 16 && !Dense && sizeof(T) == 4 ? 8 : Spans;
  static constexpr int kPitch = kColumns + 4;  // of sums, so that no bank is met twice
  static_assert(kLeanWarps % kSetSpans == 0, "a warp has the same place in every set");
  static_assert(Splits == 1 || !Above, "layers are not split");
  static_assert(Splits == 1 || Splits * kCells % kLeanThreads == 0, "every thread adds as many sums");
  const BackwardArgs& p;
  const int block;  // among those of the layer
  const int H, lane, warp;
  const int slice, first_column;  // of the block
  const int begin_row, end_row;   // its sequences
  const int first_unit;           // of the lane's spans
  const int spans;                // of the warp
  const int unit, sequence;       // of the thread's cell: among all, and in the pass
  const bool has_cell;
  bool timed_out = false;
  uint4 weights[kKept][Splits][2];
  float bias[4] = {};  // sums of the gradients of the thread's gates

  __device__ __forceinline__ LeanBackward(const BackwardArgs& args, int block_of_layer)
      : p(args),
        block(block_of_layer),
        H(args.s.H),
        lane(int(threadIdx.x) % 32),
        warp(int(threadIdx.x) / 32),
        slice(block % args.t.unit_blocks % Splits),
        first_column(block % args.t.unit_blocks / Splits * kColumns),
        begin_row(block / args.t.unit_blocks * args.t.row_tiles * 8),
        end_row(min_of(begin_row + args.t.row_tiles * 8, args.s.B)),
        first_unit(warp / kSetSpans * kColumns + slice * kUnits + warp % kSetSpans * kSpanUnits),
        spans(divide_up(H - first_unit, kStride)),
        unit(first_column + slice * kUnits + int(threadIdx.x) % kUnits),
        sequence(int(threadIdx.x) / kUnits),
        // MUTATE: lean-backward-cell-tail
        has_cell(int(threadIdx.x) < kCells && unit < H) {}

  // Shared memory: W_hh that is not in registers; sums [parity][warp][sequence][column]; of the cells of each pass dh,
  // dc and c.
  __device__ __forceinline__ uint4* rest(int span, int group) const {
    return reinterpret_cast<uint4*>(shared_memory()) + ((span - kKept) * Splits + group) * 2 * kLeanThreads +
           int(threadIdx.x);
  }
  __device__ __forceinline__ float* sums(int parity, int from) const {
    return reinterpret_cast<float*>(shared_memory() + lean_rest_bytes(Spans, Splits, true, Above)) +
           (parity * kLeanWarps + from) * kRows * kPitch;
  }
  enum Carry { kDh = 0, kDc = 1, kC = 2 };
  __device__ __forceinline__ float* carried(int row, int what) const {
    return sums(2, 0) + ((row - begin_row) / kRows * 3 + what) * kCells + int(threadIdx.x);
  }

  // The lane's pieces of a span: of columns lane / 4 and lane / 4 + 8 of a group, as mma takes them.
  __device__ __forceinline__ void load_span(uint4 (&w)[2], int span, int group) const {
    const int at = first_unit + span % Spans * kStride;
    const T* matrix = static_cast<const T*>(span < Spans ? p.w_hh_t : p.w_above_t);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = first_column + 16 * group + 8 * half + lane / 4;
      w[half] = uint4{0, 0, 0, 0};
      // MUTATE: lean-backward-weights-tail
      if (column < H && at < H) w[half] = load_vector<uint4>(matrix + (int64_t(column) * 4 + lane % 4) * H + at);
      w[half] = operand<T>(w[half]);
    }
    BackwardProduct<T>::arrange(w);
  }
  __device__ __forceinline__ void load_weights() {
#pragma unroll 1
    for (int s = kKept; s < kAll; ++s)
#pragma unroll
      for (int g = 0; g < Splits; ++g) {
        uint4 w[2];
        load_span(w, s, g);
#pragma unroll
        for (int i = 0; i < 2; ++i) store_vector(rest(s, g) + i * kLeanThreads, w[i]);
      }
#pragma unroll
    for (int s = 0; s < kKept; ++s)
#pragma unroll
      for (int g = 0; g < Splits; ++g) load_span(weights[s][g], s, g);
  }

  __device__ __forceinline__ bool live(const StepRows& rows, int pass_row) const {
    // MUTATE: lean-backward-sequence-tail
    return has_cell && pass_row + sequence < min_of(end_row, rows.count);
  }

  struct Input {
    uint32_t gates[4], dh;
    float c;  // before the step
  };
  // The inputs of the thread's cell, `steps` on from the step at hand, k.
  __device__ __forceinline__ void fetch(Input& in, const NearRows<Dense>& rows, int k, int steps, int pass_row) const {
    if (!live(rows.at(steps), pass_row)) return;
    const int b = pass_row + sequence, row = rows.at(steps).first + b;
    const T* gates = static_cast<const T*>(p.gates) + int64_t(row) * (4 * H) + unit;
#pragma unroll
    for (int g = 0; g < 4; ++g, gates += H) in.gates[g] = bits_of(*gates);
    if (p.dh) in.dh = bits_of(static_cast<const T*>(p.dh)[int64_t(row) * H + unit]);
    const StepRows earlier = rows.at(steps + 1);
    // MUTATE: lean-c-before
    const bool given = Dense ? k - steps == 0 : b >= earlier.count;
    in.c = given ? p.c0[int64_t(b) * H + unit] : p.c[int64_t(earlier.first + b) * H + unit];
  }

  // Offset of a gate of the thread's unit in a row of the exchange.
  __device__ __forceinline__ int place(int gate) const {
    return 4 * (unit - unit % kSpanUnits) + gate * kSpanUnits + unit % kSpanUnits;
  }
  // Sends the gradients of the thread's gates. In half types neighbours share words: one sends i and f, the other g and
  // o.
  __device__ __forceinline__ void send(int row, bool alive, const T (&d)[4]) const {
    T* to = static_cast<T*>(p.exchange) + int64_t(row) * (4 * H);
    if constexpr (sizeof(T) == 4) {
      if (!alive) return;
#pragma unroll
      for (int g = 0; g < 4; ++g) store_relaxed(reinterpret_cast<uint32_t*>(to + place(g)), word_of(to_float(d[g])));
    } else {
      const bool odd = unit % 2;
      const uint32_t low = d[0].bits | uint32_t(d[1].bits) << 16, high = d[2].bits | uint32_t(d[3].bits) << 16;
      const uint32_t mine = odd ? high : low, other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
      const uint32_t even_unit = odd ? other : mine, odd_unit = odd ? mine : other;
      if (!alive) return;
      // MUTATE: lean-gate-words
      auto* words = reinterpret_cast<uint32_t*>(to + place(odd ? 2 : 0) - odd);
      store_relaxed(words, (even_unit & 0xffff) | odd_unit << 16);
      store_relaxed(words + kSpanUnits / kPerWord<T>, even_unit >> 16 | (odd_unit & 0xffff0000));
    }
  }

  // The parts of dh of one step and 8 sequences: [set][slice that has the cells][part][sequence][unit].
  __device__ __forceinline__ uint32_t* parts(int k, int pass_row, int of_slice) const {
    const int tile = pass_row / kRows, sets = p.t.unit_blocks / Splits;
    const int at = (tile * sets + first_column / kColumns) * Splits + of_slice;
    return reinterpret_cast<uint32_t*>(p.partial) +
           (int64_t(k - p.s.begin) * divide_up(p.s.B, kRows) * p.t.unit_blocks + at) * (Splits * kCells);
  }
  // The gradient at h of the thread's cell from step k + 1, of which all parts are added in their order.
  __device__ __forceinline__ float collect(int k, int pass_row) {
    const uint32_t* from = parts(k, pass_row, slice) + int(threadIdx.x);
    uint32_t word[Splits];
#pragma unroll
    for (int r = 0; r < Splits; ++r) word[r] = load_relaxed<uint32_t>(from + r * kCells);
    SpinTimeout timeout;
    // MUTATE: lean-parts-poll
    while (largest_of(word) == kNotWritten && !timed_out && timeout.keep_polling(p.status, timed_out)) {
#pragma unroll
      for (int r = 0; r < Splits; ++r)
        // MUTATE: lean-parts-poll-again
        if (word[r] == kNotWritten) word[r] = load_relaxed<uint32_t>(from + r * kCells);
    }
    float sum = __builtin_bit_cast(float, word[0]);
#pragma unroll
    for (int r = 1; r < Splits; ++r) sum += __builtin_bit_cast(float, word[r]);
    return sum;
  }

  // The cells of a pass of step k.
  __device__ __forceinline__ void cells(const NearRows<Dense>& rows, int k, int pass_row, const Input& in) {
    if (int(threadIdx.x) >= kCells) return;
    const bool alive = live(rows.at(0), pass_row);
    // whether the step after this one ran in this launch
    const bool ran = k + 1 < p.s.end && live(rows.at(-1), pass_row);
    const int b = pass_row + sequence, row = rows.at(0).first + b;
    float d[4] = {}, dh = 0.0f;
    if (Splits > 1 && ran) {
      dh = collect(k + 1, pass_row);
      if (!Dense && p.s.reset && p.s.reset[rows.at(-1).first + b]) dh = 0.0f;
      if (!Dense && !alive) *carried(pass_row, kDh) = dh;
    }
    if (alive) {
      const bool fresh = !Dense && p.s.reset && p.s.reset[row];
      float gate[4], dc = *carried(pass_row, kDc), dc_prev;
#pragma unroll
      for (int g = 0; g < 4; ++g) gate[g] = to_float(from_bits<T>(in.gates[g]));
      const float c = ran ? *carried(pass_row, kC) : p.c[int64_t(row) * H + unit];
      if (p.dc) dc += p.dc[int64_t(row) * H + unit];
      if (Splits == 1 || !ran) dh = *carried(pass_row, kDh);
      if (p.dh) dh += to_float(from_bits<T>(in.dh));
      LstmCell::backward<Fast>(gate, fresh ? 0.0f : in.c, c, dh, dc, d, dc_prev);
      *carried(pass_row, kDc) = fresh ? 0.0f : dc_prev;
      *carried(pass_row, kC) = in.c;
    }
    T out[4];
#pragma unroll
    for (int g = 0; g < 4; ++g) out[g] = from_float<T>(d[g]), bias[g] += d[g];
    send(row, alive, out);
    if (!alive) return;
    T* d_gates = static_cast<T*>(p.d_gates) + int64_t(row) * (4 * H) + unit;
#pragma unroll
    for (int g = 0; g < 4; ++g, d_gates += H) *d_gates = out[g];
  }

  struct Sums {
    float d[Splits == 1 ? 2 : 1][Splits][4];
  };
  // Adds the products of the weights, from the span `First` on, with the gradients of the gates of sequence b in one
  // step, which blocks of this launch send. gone: they count as zero.
  template <int First>
  __device__ __forceinline__ void multiply(Sums& sum, const void* exchange, const StepRows& rows, int b, bool gone) {
    const bool alive = b < rows.count;
    const T* row = static_cast<const T*>(exchange) + int64_t(rows.first + (alive ? b : 0)) * (4 * H);
    const auto* from = reinterpret_cast<const uint32_t*>(row + 4 * first_unit + lane % 4 * kSpanUnits);
    gone = gone || !alive;
    multiply_batch<First, 0>(sum, from, alive, gone);
    if constexpr (kBatch < Spans) multiply_batch<First, kBatch>(sum, from, alive, gone);
  }

  // The spans from `At` on.
  template <int First, int At>
  __device__ __forceinline__ void multiply_batch(Sums& sum, const uint32_t* first, bool alive, bool gone) {
    constexpr int kStep = 4 * kStride / kPerWord<T>, kSure = At == 0 ? Spans / 2 : 0;
    uint4 z[1][kBatch];
    const uint32_t* from[1] = {first + At * kStep};
    // MUTATE: lean-runs-ahead-backward
    const bool waits[1] = {alive};
    await_words<1, kBatch, kSure, kStep>(z, from, waits, spans - At, timed_out, p.status);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (!Dense && Above && gone) z[0][i] = uint4{0, 0, 0, 0};
      z[0][i] = operand<T>(z[0][i]);
      const int s = First + At + i;
#pragma unroll
      for (int g = 0; g < Splits; ++g) {
        uint4 w[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          w[j] = s < kKept ? weights[s < kKept ? s : 0][g][j] : load_vector<uint4>(rest(s, g) + j * kLeanThreads);
        mma<T>(sum.d[0][g], w[0], z[0][i].x, z[0][i].y);
        mma<T>(sum.d[Splits == 1][g], w[1], z[0][i].z, z[0][i].w);
      }
    }
  }

  // The products of a pass of step k: dh of the step before. Above: also for k = end, where only the layer above
  // counts.
  __device__ __forceinline__ void products(const NearRows<Dense>& rows, int k, int pass_row, int parity) {
    Sums sum = {};
    const int b = min_of(pass_row + lane / 4, p.s.B - 1);
    if constexpr (Above)
      // MUTATE: lean-layer-above
      if (k > p.s.begin) multiply<Spans>(sum, p.above, rows.at(1), b, false);
    if (!Above || k < p.s.end) {
      const StepRows now = rows.at(0);
      const bool fresh = !Dense && Above && p.s.reset && b < now.count && p.s.reset[now.first + b];
      multiply<0>(sum, p.exchange, now, b, fresh);
    }
    const auto& d = sum.d;
    float* mine = sums(parity, warp) + 2 * (lane % 4) * kPitch + lane / 4;
#pragma unroll
    for (int g = 0; g < Splits; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i)  // column lane / 4 + 8 (i / 2), sequence 2q + i % 2
        // MUTATE: lean-backward-sums-row
        mine[i % 2 * kPitch + 16 * g + 8 * (i / 2)] = Splits == 1 ? d[0][g][i] + d[Splits == 1][g][i] : d[0][g][i];
    // MUTATE: lean-backward-barrier
    __syncthreads();
    if constexpr (Splits == 1)
      keep(rows, k, pass_row, parity);
    else
      send_parts(rows, k, pass_row, parity);
  }

  // The sum of a column over the warps, in a fixed order.
  __device__ __forceinline__ float total(int parity, int row, int column) const {
    float part[kLeanWarps];
#pragma unroll
    for (int w = 0; w < kLeanWarps; ++w) part[w] = sums(parity, w)[row * kPitch + column];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }

  // A sequence that took step k has the sum as its dh; one that did not adds what came from the layer above.
  __device__ __forceinline__ void keep(const NearRows<Dense>& rows, int k, int pass_row, int parity) {
    const bool ran = k < p.s.end && live(rows.at(0), pass_row);
    if (!ran && !(Above && has_cell && pass_row + sequence < end_row)) return;
    float sum = total(parity, sequence, int(threadIdx.x) % kUnits);
    const bool fresh = !Dense && !Above && p.s.reset && p.s.reset[rows.at(0).first + pass_row + sequence];
    if (!ran) sum += *carried(pass_row, kDh);
    *carried(pass_row, kDh) = fresh ? 0.0f : sum;
  }

  // Sends the sums of all columns to the blocks that run their cells.
  __device__ __forceinline__ void send_parts(const NearRows<Dense>& rows, int k, int pass_row, int parity) const {
    const int cell = int(threadIdx.x) % kCells, of_slice = int(threadIdx.x) / kCells, row = cell / kUnits;
    uint32_t* to = parts(k, pass_row, of_slice) + slice * kCells + cell;
    // MUTATE: lean-parts-tail
    const bool alive = pass_row + row < min_of(end_row, rows.at(0).count);
#pragma unroll
    for (int j = 0; j < Splits; j += kLeanThreads / kCells) {
      const float sum = total(parity, row, (of_slice + j) * kUnits + cell % kUnits);
      if (alive) store_relaxed(to + j * Splits * kCells, word_of(sum));
    }
  }

  // f(shared, global) for dh and dc of the thread's cells.
  template <class F>
  __device__ __forceinline__ void for_own_states(F f) const {
#pragma unroll 1
    for (int row = begin_row; row < end_row; row += kRows) {
      if (!has_cell || row + sequence >= end_row) continue;
      const int64_t at = int64_t(row + sequence) * H + unit;
      f(carried(row, kDh), p.dh_state + at);
      f(carried(row, kDc), p.dc_state + at);
    }
  }

  __device__ __forceinline__ void run() {
    const int end = p.s.end;
    load_weights();
    // MUTATE: lean-carried-dh-dc
    for_own_states([](float* place, float* state) { *place = *state; });
    NearRows<Dense> rows(p.s, end - 1, -1);
    Input in[2] = {};
    int ahead_row = begin_row, ahead = 0;  // the pass whose inputs are fetched next, and steps from here to it
    const auto fetch_next = [&](Input& to, int k) {
      if (k - ahead >= p.s.begin) fetch(to, rows, k, ahead, ahead_row);
      ahead_row += kRows;
      if (ahead_row >= end_row) ahead_row = begin_row, ++ahead;
    };
    fetch_next(in[0], end - 1);
    fetch_next(in[1], end - 1);
    int parity = 0;
    if constexpr (Above) {
      const NearRows<Dense> after(p.s, end, -1);
#pragma unroll 1
      for (int row = begin_row; row < end_row; row += kRows) {
        products(after, end, row, parity);
        parity ^= 1;
      }
    }
#pragma unroll 1
    for (int k = end - 1; k >= p.s.begin; --k) {
#pragma unroll 1
      for (int row = begin_row; row < end_row; row += kRows) {
        cells(rows, k, row, in[0]);
        in[0] = in[1];
        fetch_next(in[1], k);
      }
#pragma unroll 1
      for (int row = begin_row; row < end_row; row += kRows) {
        products(rows, k, row, parity);
        // MUTATE: lean-backward-parity
        parity ^= 1;
      }
      rows.advance(p.s, k - 1, -1);
      --ahead;
    }
    finish(rows);
  }

  // dh and dc go out, and the sums of the gates' gradients over the block's sequences are added to `bias`.
  __device__ __forceinline__ void finish(const NearRows<Dense>& rows) {
    if constexpr (Splits > 1) {
#pragma unroll 1
      for (int row = begin_row; row < end_row; row += kRows) {
        if (!live(rows.at(-1), row)) continue;
        const float dh = collect(p.s.begin, row);
        const bool fresh = !Dense && p.s.reset && p.s.reset[rows.at(-1).first + row + sequence];
        *carried(row, kDh) = fresh ? 0.0f : dh;
      }
    }
    for_own_states([](float* place, float* state) { *state = *place; });
    if (!p.bias) return;
    // MUTATE: lean-sums-barrier
    __syncthreads();
    float* all = sums(0, 0);  // [gate][sequence][unit]
    if (int(threadIdx.x) < kCells)
#pragma unroll
      for (int g = 0; g < 4; ++g) all[g * kCells + int(threadIdx.x)] = bias[g];
    // MUTATE: lean-bias-barrier
    __syncthreads();
    if (int(threadIdx.x) >= 4 * kUnits) return;
    const int gate = int(threadIdx.x) / kUnits, of_unit = first_column + slice * kUnits + int(threadIdx.x) % kUnits;
    float sum = 0.0f;
#pragma unroll
    for (int b = 0; b < kRows; ++b) sum += all[gate * kCells + b * kUnits + int(threadIdx.x) % kUnits];
    if (of_unit < H) p.bias[(block / p.t.unit_blocks * 4 + gate) * H + of_unit] += sum;
  }
};

}  // namespace fastlstm::cuda
