// How operands of one step reach the warps that multiply them in the next: the one thing in which `tile` and
// `persistent` differ. Both give a warp a pointer to 8 rows of words in shared memory.
//
//   WithinBlock   one block has all units. The rows lie in shared memory twice; what a step writes, the next one reads,
//                 and one barrier a step separates them.
//   BetweenBlocks units are spread over blocks. Numbers travel through global memory as words that are their own flag;
//                 each warp fetches the spans it multiplies into a strip of its own, so no barrier is needed.
#pragma once
#include "block.cuh"

namespace fastlstm::cuda {

struct WithinBlock {
  static constexpr bool kWhole = true;
  const Layout& l;
  const Tiling& t;
  int parity = 0;

  __device__ __forceinline__ uint32_t* words() const {  // [parity][row][stride]
    return reinterpret_cast<uint32_t*>(shared_memory() + l.operand);
  }
  __device__ __forceinline__ uint32_t* row(int which, int r) const {
    return words() + (which * 8 * t.row_tiles + r) * l.stride;
  }
  // Where the warp's first span of a tile lies, and how far apart its spans are.
  __device__ __forceinline__ const uint32_t* tile(const Place& me, int tile) const {
    return row(parity, 8 * tile) + me.split * kSpanWords;
  }
  __device__ __forceinline__ int step() const { return t.k_splits * kSpanWords; }
  __device__ __forceinline__ int stride() const { return l.stride; }

  // Zeros everywhere: what no cell writes stays zero. A barrier must follow.
  __device__ __forceinline__ void clear() const {
#pragma unroll 1
    for (int i = int(threadIdx.x); i < 4 * t.row_tiles * l.stride; i += int(blockDim.x))
      store_vector(words() + 4 * i, uint4{0, 0, 0, 0});
  }

  // One number at index `at` of a row, for the step after this one.
  template <class T>
  __device__ __forceinline__ void put(int which, int r, int at, T value) const {
    if constexpr (sizeof(T) == 4)
      row(which, r)[at] = operand<T>(bits_of(value));
    else
      reinterpret_cast<T*>(row(which, r))[at] = value;
  }
};

struct BetweenBlocks {
  static constexpr bool kWhole = false;
  uint32_t* strip;  // [8 rows][stride] of this warp
  int pitch;
  bool lost = false;  // this thread has run out of patience once: it waits no more
  int* status;

  __device__ __forceinline__ BetweenBlocks(const Layout& l, const Place& me, int* status)
      : strip(reinterpret_cast<uint32_t*>(shared_memory() + l.operand) + me.warp * 8 * l.stride),
        pitch(l.stride),
        status(status) {}

  __device__ __forceinline__ int step() const { return kSpanWords; }
  __device__ __forceinline__ int stride() const { return pitch; }

  // What the lane's unit has for its sequences of a tile (bits of `which`), as words that are never kUnset. word(b):
  // where that of sequence b lies; sequences below `count` are running. In half types two units share a word: with both
  // sequences each lane sends one, else the lane of the even unit.
  template <class T, class Word>
  static __device__ __forceinline__ void send(const Place& me, int tile, int which, int count, T first, T second,
                                              Word word) {
    if constexpr (sizeof(T) == 4) {
      const int b = me.sequence(tile, 2 * me.q());
      if ((which & 1) && b < count) store_relaxed(word(b), word_of(to_float(first)));
      if ((which & 2) && b + 1 < count) store_relaxed(word(b + 1), word_of(to_float(second)));
    } else {
      // with one sequence both lanes of a pair offer it
      const uint32_t both = pair_units(which == 2 ? second : first, which == 1 ? first : second, me.lane);
      const int odd = me.lane / 4 % 2, b = me.sequence(tile, 2 * me.q() + (which == 3 ? odd : which - 1));
      if ((which == 3 || !odd) && b < count) store_relaxed(word(b), both);
    }
  }

  // Fetches `count` spans of 8 rows; the lane, words 4q … 4q + 3 of row lane / 4. `waits`: from row `from` of `width`
  // numbers, once they have arrived; `at` is the place of the first. Else what plain(i) gives for the i-th.
  template <class T, class Cursor, class Plain>
  __device__ __forceinline__ const uint32_t* fetch(const Place& me, int count, bool waits, const T* from, int width,
                                                   Cursor at, Plain plain) {
    __syncwarp();  // the strip's last use is over
    uint32_t* mine = strip + (me.lane / 4) * pitch + 4 * me.q();
    if (waits) {
      await<T>(mine, count, from, width - 4 * kPerWord<T>, at);
    } else {
#pragma unroll 1
      for (int i = 0; i < count; ++i) store_vector(mine + i * kSpanWords, operand<T>(plain(i)));
    }
    __syncwarp();
    return strip;
  }

  // Beyond the row a lane loads its `last` piece, so that nothing branches between two loads; W_hh is zero there.
  template <class T, class Cursor>
  __device__ __forceinline__ void await(uint32_t* mine, int count, const T* from, int last, Cursor at) {
    Patience patience;
#pragma unroll 1
    for (int first = 0; first < count; first += kLoadsInFlight) {
      const uint32_t* where[kLoadsInFlight];
      uint4 v[kLoadsInFlight];
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i, at.advance())
        where[i] = reinterpret_cast<const uint32_t*>(from + Cursor::kNumbers * min_of(at.unit, last));
      receive(v, where, patience);
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i)
        if (first + i < count) store_vector(mine + (first + i) * kSpanWords, operand<T>(v[i]));
    }
  }

  // Words that other blocks send, once they are there. All loads are issued before the first is looked at: a group
  // costs one round trip to L2. What is missing is loaded again, alone: blocks that wait take rate from those that
  // send.
  template <class V, int N>
  __device__ __forceinline__ void receive(V (&v)[N], const uint32_t* const (&where)[N], Patience& patience) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = load_relaxed<V>(where[i]);
    while (any_unset(v) && !lost && patience.again(status, lost)) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (unset(v[i])) v[i] = load_relaxed<V>(where[i]);
    }
  }
};

// Spans of a row of h: `step` numbers apart.
struct EvenCursor {
  static constexpr int kNumbers = 1;  // of a unit in the row
  int unit, step;

  __device__ __forceinline__ void advance() { unit += step; }
};

// Spans of a row of dz: so many units apart, and further where the next column set begins (layout.h).
struct SetCursor {
  static constexpr int kNumbers = 4;
  int unit;
  int within;  // the set
  const Layout& l;

  __device__ __forceinline__ void advance() {
    within += l.span_step;
    const bool over = within >= l.set_spans;
    unit += l.unit_step + (over ? l.set_step : 0);
    within -= over ? l.set_spans : 0;
  }
};

}  // namespace fastlstm::cuda
