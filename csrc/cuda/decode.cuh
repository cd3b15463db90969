// The sampling loop on a GPU (fastlstm.decode): row of the token table -> layers -> scores -> draw -> next row, all in
// one launch. Float throughout; weights float or bfloat16, in shared memory where they fit.
//
// A warp owns the four gates of a unit, or four rows of scores: its lanes split the columns, and their sums are added
// by shuffles. Blocks share out units and rows, and send what they computed to all others through L2. A step takes one
// hand-over a layer, one for the scores and, where a block does not draw every stream itself, one for the ids.
//
// Words that blocks exchange hold a number and the turn in which it was sent, so a reader knows a word of this turn
// from an older one, and two places for each number suffice. A word of turn n + 2 takes the place of that of turn n
// only when every block has sent all of turn n + 1 for that stream, and a block sends those after it has read turn n.
//
// Every wait ends: within a turn a block waits for h of the layer below, then the scores, then the ids, each of which
// follows from earlier ones of the same order, and all blocks are resident at once (a cooperative launch).
#pragma once
#include "../cell.h"
#include "decode_draw.cuh"
#include "memory.cuh"

namespace fastlstm::cuda {

// 64-bit accesses, which are never torn.
__device__ __forceinline__ uint64_t load_word(const uint64_t* from) {
  uint64_t word;
  PTX("ld.relaxed.gpu.global.b64 %0, [%1];", (OUT_L(word)), (IN_L(from)));
  return word;
}
__device__ __forceinline__ void send_word(uint64_t* to, uint32_t bits, uint32_t turn) {
  // MUTATE: decode-send
  PTX("st.relaxed.gpu.global.b64 [%0], %1;", (), (IN_L(to), IN_L(uint64_t(turn) << 32 | bits)));
}

template <class W, int Streams>
struct Decode {
  static constexpr int kNumbers = decode_numbers(sizeof(W));  // columns of a lane in a chunk
  static constexpr int kSums = 4 * Streams;                   // of a warp: [stream][row]
  static constexpr int kLanes = 32 / kSums;                   // that hold the same sum after `add_lanes`
  static constexpr int kInFlight = 4;                         // loads of a thread
  const DecodeArgs& p;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, block = int(blockIdx.x);
  const int columns = decode_columns(p.H, sizeof(W)), chunks = decode_chunks(p.H, sizeof(W));
  bool timed_out = false;
  int live = 0;                                                          // streams that have not ended
  const int units = least_of(p.plan.units, p.H - block * p.plan.units);  // of the block

  static __device__ __forceinline__ int least_of(int a, int b) { return a < b ? a : b; }
  __device__ __forceinline__ explicit Decode(const DecodeArgs& args) : p(args) {}

  // Shared memory, in this order (decode_other_bytes)
  __device__ __forceinline__ float* vectors(int which) const {  // [vector][stream of the pass][column]
    return reinterpret_cast<float*>(shared_memory()) + which * Streams * columns;
  }
  __device__ __forceinline__ float* scores() const { return vectors(p.plan.keeps_h ? p.L : 2); }
  __device__ __forceinline__ uint64_t* scratch() const {
    return reinterpret_cast<uint64_t*>(scores() + (p.V + 3) / 4 * 4);
  }
  // Of each stream its id; of the live ones their numbers; of each stream the automaton's state, and a new id
  __device__ __forceinline__ int* ids() const { return reinterpret_cast<int*>(scratch() + 4 * kDecodeWarps); }
  __device__ __forceinline__ int* order() const { return ids() + kMostDecodeStreams; }
  __device__ __forceinline__ int* automaton() const { return order() + kMostDecodeStreams; }
  __device__ __forceinline__ int* drawn() const { return automaton() + kMostDecodeStreams; }

  __device__ __forceinline__ uint64_t* h_words(uint32_t turn, int l, int b) const {
    return p.h_words + ((int64_t(turn % 2) * p.L + l) * p.B + b) * p.H;
  }
  __device__ __forceinline__ uint64_t* score_words(uint32_t turn, int b) const {
    return p.score_words + (int64_t(turn % 2) * p.B + b) * p.V;
  }

  // Waits for the word of a turn that `from` points to, whose first read brought `word`.
  __device__ __forceinline__ uint32_t await(uint64_t word, const uint64_t* from, uint32_t turn) {
    SpinTimeout timeout;
    // MUTATE: decode-await
    while (uint32_t(word >> 32) != turn && !timed_out && timeout.keep_polling(p.status, timed_out))
      word = load_word(from);
    return timed_out ? 0x7fc00000u : uint32_t(word);  // NaN
  }

  // Waits for `count` numbers, of which word(i) and place(i) are those of number i.
  template <class Word, class Place>
  __device__ __forceinline__ void collect(int count, uint32_t turn, Word word, Place place) {
#pragma unroll 1
    for (int first = int(threadIdx.x); first < count; first += kInFlight * kDecodeThreads) {
      uint64_t words[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) words[i] = load_word(word(least_of(first + i * kDecodeThreads, count - 1)));
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int at = first + i * kDecodeThreads;
        if (at < count) *place(at) = __builtin_bit_cast(float, await(words[i], word(at), turn));
      }
    }
  }

  // Brings h of a layer after a turn for the streams of a pass, `count` from order()[first] on.
  __device__ __forceinline__ void bring_h(int which, int l, uint32_t turn, int first, int count) {
    const uint64_t* words = h_words(turn, l, 0);
    float* to = vectors(which);
    collect(
        count * p.H, turn, [&](int i) { return words + int64_t(order()[first + i / p.H]) * p.H + i % p.H; },
        [&](int i) { return to + i / p.H * columns + i % p.H; });
  }

  // Where the weights of the block's unit (or group of rows) `index` of a layer lie.
  __device__ __forceinline__ const W* weights(int l, int index) const {
    const int bytes = decode_unit_bytes(p.L, p.H, l, sizeof(W));
    const int share = decode_share(p.plan, p.L, p.V, l);
    const unsigned char* own = p.plan.place[l] >= 0
                                   ? shared_memory() + p.plan.place[l]
                                   : static_cast<const unsigned char*>(p.weights[l]) + int64_t(block) * share * bytes;
    return reinterpret_cast<const W*>(own + int64_t(index) * bytes);
  }

  // Adds the products of four rows with a vector of each stream; w: the first chunk of the rows.
  __device__ __forceinline__ void multiply(float (&sums)[Streams][4], const W* w, int which) const {
    const float* h = vectors(which) + lane * kNumbers;
    w += lane * kNumbers;
#pragma unroll 2
    for (int chunk = 0; chunk < chunks; ++chunk, w += 4 * 32 * kNumbers, h += 32 * kNumbers) {
      float row[4][kNumbers];
#pragma unroll
      for (int r = 0; r < 4; ++r) unpack(row[r], load_vector<uint4>(w + r * 32 * kNumbers));
#pragma unroll
      for (int s = 0; s < Streams; ++s)
#pragma unroll
        for (int j = 0; j < kNumbers; j += 4) {
          const float4 x = load_vector<float4>(h + s * columns + j);
#pragma unroll
          for (int r = 0; r < 4; ++r)
            sums[s][r] += row[r][j] * x.x + row[r][j + 1] * x.y + row[r][j + 2] * x.z + row[r][j + 3] * x.w;
        }
    }
  }
  static __device__ __forceinline__ void unpack(float (&to)[kNumbers], const uint4& v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      if constexpr (sizeof(W) == 4)
        to[i] = __builtin_bit_cast(float, words[i]);
      else
        to[i] = __builtin_bit_cast(float, i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
  }

  // Adds up what the lanes have: lanes kLanes * i … return sum i = 4 * stream + row. At each step a lane gives half of
  // its sums to the lane that is By away and keeps the other half.
  template <int Count, int By>
  __device__ __forceinline__ float add_halves(const float (&v)[Count]) const {
    if constexpr (By == 0) {
      return v[0];
    } else if constexpr (Count == 1) {
      const float both[1] = {v[0] + __shfl_xor_sync(0xffffffffu, v[0], By)};
      return add_halves<1, By / 2>(both);
    } else {
      float kept[Count / 2];
      const bool upper = lane & By;
#pragma unroll
      for (int i = 0; i < Count / 2; ++i) {
        const float given = upper ? v[i] : v[i + Count / 2];
        kept[i] = (upper ? v[i + Count / 2] : v[i]) + __shfl_xor_sync(0xffffffffu, given, By);
      }
      return add_halves<Count / 2, By / 2>(kept);
    }
  }
  __device__ __forceinline__ float add_lanes(const float (&sums)[Streams][4]) const {
    float v[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) v[i] = sums[i / 4][i % 4];
    return add_halves<kSums, 16>(v);
  }

  // Of the lanes that compute the cell of a stream, the one that keeps its state.
  __device__ __forceinline__ bool owns_cell() const { return lane % (4 * kLanes) == 0; }

  // What a lane needs of a unit that does not depend on h: its part of the sums, and c.
  struct Given {
    float start, c;
  };
  __device__ __forceinline__ Given given(int l, int unit, int first, int count) const {
    const int stream = lane / kLanes / 4, gate = lane / kLanes % 4;
    if (stream >= count) return {0.0f, 0.0f};
    const int b = order()[first + stream];
    const float* start = p.start[l] + (l == 0 ? int64_t(ids()[b]) * 4 * p.H : 0);
    return {start[gate * p.H + unit], owns_cell() ? p.c[(int64_t(l) * p.B + b) * p.H + unit] : 0.0f};
  }

  // The cell of a unit for all streams of the pass; sends h.
  __device__ __forceinline__ void finish(int l, int unit, int first, int count, uint32_t turn,
                                         const float (&sums)[Streams][4], const Given& before) const {
    const float own = add_lanes(sums) + before.start;
    const int stream = lane / kLanes / 4;
    float gate[4], c, h;
#pragma unroll
    for (int g = 0; g < 4; ++g) gate[g] = __shfl_sync(0xffffffffu, own, (4 * stream + g) * kLanes);
    LstmCell::forward<Precise>(gate, before.c, c, h);
    // MUTATE: decode-stream-tail
    if (!owns_cell() || stream >= count) return;
    const int b = order()[first + stream];
    send_word(h_words(turn, l, b) + unit, __builtin_bit_cast(uint32_t, h), turn);
    const int64_t at = (int64_t(l) * p.B + b) * p.H + unit;
    p.c[at] = c;
    p.h[at] = h;
  }

  // One layer in one turn for the streams of a pass.
  __device__ __forceinline__ void layer(int l, int first, int count, uint32_t turn) {
    const bool keeps = p.plan.keeps_h;
    const int own = keeps ? l : 0, below = keeps ? l - 1 : 1;
    const auto unit_of = [&](int index) { return block * p.plan.units + index; };
    // MUTATE: decode-vectors-barrier
    __syncthreads();  // the last use of the vectors that come now is over
    Given before{};
    // MUTATE: decode-unit-tail
    if (warp < units) before = given(l, unit_of(warp), first, count);
    if (!keeps) {
      // MUTATE: decode-turn-before
      bring_h(own, l, turn - 1, first, count);
      __syncthreads();
    }
    float sums[Streams][4] = {};
    int index = warp;
    if (index < units) multiply(sums, weights(l, index), own);  // while h of the layer below is on its way
    if (l > 0) {
      // MUTATE: decode-runs-ahead
      bring_h(below, l - 1, turn, first, count);
      __syncthreads();
    }
#pragma unroll 1
    while (index < units) {
      if (l > 0) multiply(sums, weights(l, index) + chunks * 4 * 32 * kNumbers, below);
      finish(l, unit_of(index), first, count, turn, sums, before);
      index += kDecodeWarps;
      if (index >= units) break;
      before = given(l, unit_of(index), first, count);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i / 4][i % 4] = 0.0f;
      multiply(sums, weights(l, index), own);
    }
  }

  // The last layer's h, and the block's rows of scores where the turn draws.
  __device__ __forceinline__ void output(int first, int count, uint32_t turn, bool draws) {
    const int which = p.plan.keeps_h ? p.L - 1 : 1;
    if (!draws && !p.plan.keeps_h) return;
    __syncthreads();
    bring_h(which, p.L - 1, turn, first, count);
    __syncthreads();
    if (!draws) return;
    const int share = decode_share(p.plan, p.L, p.V, p.L);
#pragma unroll 1
    for (int index = warp; index < share; index += kDecodeWarps) {
      const int row = (block * share + index) * 4 + lane / kLanes % 4, stream = lane / kLanes / 4;
      if (row - row % 4 >= p.V) break;
      float sums[Streams][4] = {};
      multiply(sums, weights(p.L, index), which);
      const float sum = add_lanes(sums);
      // MUTATE: decode-score-tail
      if (lane % kLanes || row >= p.V || stream >= count) continue;
      const float score = sum + p.start[p.L][row];
      send_word(score_words(turn, order()[first + stream]) + row, __builtin_bit_cast(uint32_t, score), turn);
    }
  }

  // Whether a stop sequence ends with an id of stream b in a row.
  __device__ __forceinline__ bool stops(int row, int b, int64_t id) const {
#pragma unroll 1
    for (int s = 0; s < p.stop_count; ++s) {
      const int64_t end = p.stop_ends[s], length = end - (s ? p.stop_ends[s - 1] : 0), first = row + 1 - length;
      // MUTATE: decode-stop-reach
      if (first < p.drawn || id != p.stops[end - 1]) continue;
      bool same = true;
      for (int64_t k = 0; k < length - 1 && same; ++k) same = p.ids[(first + k) * p.B + b] == p.stops[end - length + k];
      if (same) return true;
    }
    return false;
  }

  // Draws row `row` of stream b, and keeps it where the stream is this block's own.
  __device__ __forceinline__ void draw(int row, int b, uint32_t turn, Draw& drawing) {
    const uint64_t* words = score_words(turn, b);
    float* to = scores();
    __syncthreads();
    collect(p.V, turn, [&](int i) { return words + i; }, [&](int i) { return to + i; });
    __syncthreads();
    const int step = row - p.known;
    const bool lost = p.follows && uint32_t(automaton()[b]) >= uint32_t(p.states);
    const int32_t* next = p.follows && !lost ? p.follows + int64_t(automaton()[b]) * p.V : nullptr;
    const int id = lost ? -2 : drawing.draw(next, p.position + uint64_t(step), uint32_t(p.first_stream + b));
    const bool own = b % p.plan.blocks == block;
    float log_probability = 0.0f;
    if (own && p.log_probs && id >= 0) log_probability = drawing.log_probability(id);
    __syncthreads();  // all have read the automaton's state
    if (threadIdx.x > 0) return;
    const bool ends = id < 0 || stops(row, b, id);
    if (id >= 0 && next) automaton()[b] = next[id];
    if (p.plan.everywhere)
      drawn()[b] = ends ? -1 : id;
    else
      send_word(p.id_words + (turn % 2) * p.B + b, uint32_t(ends ? -1 : id), turn);
    if (!own) return;
    p.ids[int64_t(row) * p.B + b] = id;
    if (ends) p.ended[b] = 1;
    if (id >= 0 && next) p.state[b] = next[id];
    if (p.log_probs && id >= 0) p.log_probs[int64_t(step) * p.B + b] = log_probability;
  }

  // The ids of the next row: drawn, or given where it was known. Streams that ended leave the order.
  __device__ __forceinline__ void draws(int row, uint32_t turn, Draw& drawing) {
#pragma unroll 1
    for (int i = 0; i < live; ++i) {
      const int b = order()[i];
      if (p.plan.everywhere || b % p.plan.blocks == block) draw(row, b, turn, drawing);
    }
    __syncthreads();
    if (int(threadIdx.x) < live) {
      const int b = order()[threadIdx.x];
      const uint64_t* word = p.id_words + (turn % 2) * p.B + b;
      ids()[b] = p.plan.everywhere ? drawn()[b] : int(await(load_word(word), word, turn));
      if (timed_out) ids()[b] = -1;
    }
    const int before = live;
    remove_ended();
    // the streams of a pass are others now, and so are their rows of h
    // MUTATE: decode-bring-again
    if (p.plan.keeps_h && live < before) bring_all(turn);
  }
  __device__ __forceinline__ void take_row(int row) {
    __syncthreads();
    if (int(threadIdx.x) < live) {
      const int b = order()[threadIdx.x];
      ids()[b] = int(p.ids[int64_t(row) * p.B + b]);
    }
    __syncthreads();
  }
  // Threads of the block agree on who is live.
  __device__ __forceinline__ void remove_ended() {
    __syncthreads();
    int left = 0;
    if (threadIdx.x == 0) {
      for (int i = 0; i < live; ++i)
        if (ids()[order()[i]] >= 0) order()[left++] = order()[i];
      drawn()[0] = left;
    }
    __syncthreads();
    live = drawn()[0];
    __syncthreads();
  }

  __device__ __forceinline__ void begin() {
    for (int l = 0; l <= p.L; ++l) {
      if (p.plan.place[l] < 0) continue;
      const int64_t bytes = decode_unit_bytes(p.L, p.H, l, sizeof(W)), share = decode_share(p.plan, p.L, p.V, l);
      const int64_t units = l < p.L ? p.H : (p.V + 3) / 4, left = units - block * share;
      const auto* from = static_cast<const unsigned char*>(p.weights[l]) + block * share * bytes;
      // MUTATE: decode-weights-tail
      for (int64_t i = threadIdx.x; i < (left < share ? left : share) * bytes / 16; i += kDecodeThreads)
        store_vector(shared_memory() + p.plan.place[l] + 16 * i, load_vector<uint4>(from + 16 * i));
    }
    // columns that are only padding, and rows of streams that are not there, stay zero
    const int numbers = (p.plan.keeps_h ? p.L : 2) * Streams * columns;
    // MUTATE: decode-zeros
    for (int i = int(threadIdx.x); i < numbers; i += kDecodeThreads) vectors(0)[i] = 0.0f;
    if (int(threadIdx.x) < p.B) {
      const int b = int(threadIdx.x);
      order()[b] = b;
      // MUTATE: decode-ended
      ids()[b] = p.ended_before[b] ? -1 : int(p.ids[int64_t(p.fed) * p.B + b]);
      if (p.state_before) automaton()[b] = p.state_before[b];
    }
    live = p.B;
    remove_ended();
    if (p.plan.keeps_h) bring_all(1);
  }
  __device__ __forceinline__ void bring_all(uint32_t turn) {
    for (int l = 0; l < p.L; ++l) bring_h(l, l, turn, 0, live);
  }

  __device__ __forceinline__ void run() {
    begin();
    Draw drawing{p, scores(), scratch()};
    uint32_t turn = 2;  // the state before came in turn 1
#pragma unroll 1
    for (int row = p.fed + 1; row < p.known + p.T && live > 0; ++row, ++turn) {
      const bool draws_now = row >= p.known;
#pragma unroll 1
      for (int first = 0; first < live; first += Streams) {
        const int count = least_of(Streams, live - first);
#pragma unroll 1
        for (int l = 0; l < p.L; ++l) layer(l, first, count, turn);
        output(first, count, turn, draws_now);
      }
      if (draws_now)
        draws(row, turn, drawing);
      else
        take_row(row);
    }
  }
};

}  // namespace fastlstm::cuda
