// Passes the results of one step to the warps that multiply them in the next: the only difference between
// `single_block` and `cooperative`. Both return to a warp a pointer to 8 rows of words in shared memory.
//
//   BlockExchange  One block has all units. The rows are double-buffered in shared memory: a step writes one buffer,
//                  the next step reads it after one __syncthreads().
//   GridExchange   Units are spread over blocks. A step publishes words in global memory, each its own flag; every
//                  warp polls the spans that it multiplies and copies them to its own strip: no barrier is needed.
#pragma once
#include "block.cuh"

namespace fastlstm::cuda {

struct BlockExchange {
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
  // The warp's first span of a tile, and the words between two of its spans.
  __device__ __forceinline__ const uint32_t* tile(const ThreadCoords& thread, int tile) const {
    return row(parity, 8 * tile) + thread.split * kSpanWords;
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

struct GridExchange {
  static constexpr bool kWhole = false;
  uint32_t* strip;  // [8 rows][stride] of this warp
  int pitch;
  bool timed_out = false;  // a wait of this thread timed out: it polls no more
  int* status;

  __device__ __forceinline__ GridExchange(const Layout& l, const ThreadCoords& thread, int* status)
      : strip(reinterpret_cast<uint32_t*>(shared_memory() + l.operand) + thread.warp * 8 * l.stride),
        pitch(l.stride),
        status(status) {}

  __device__ __forceinline__ int step() const { return kSpanWords; }
  __device__ __forceinline__ int stride() const { return pitch; }

  // Publishes the lane's unit of its sequences of a tile (bits of `which`) as words that are never kNotWritten.
  // word(b): address for sequence b; sequences below `count` are running. In half types two units share a word: with
  // both sequences each lane stores one word, else the lane of the even unit does.
  template <class T, class Word>
  static __device__ __forceinline__ void publish(const ThreadCoords& thread, int tile, int which, int count, T first,
                                                 T second, Word word) {
    if constexpr (sizeof(T) == 4) {
      const int b = thread.sequence(tile, 2 * thread.q());
      if ((which & 1) && b < count) store_relaxed(word(b), word_of(to_float(first)));
      if ((which & 2) && b + 1 < count) store_relaxed(word(b + 1), word_of(to_float(second)));
    } else {
      // with one sequence both lanes of a pair hold it
      const uint32_t both = pair_units(which == 2 ? second : first, which == 1 ? first : second, thread.lane);
      const int odd = thread.lane / 4 % 2, b = thread.sequence(tile, 2 * thread.q() + (which == 3 ? odd : which - 1));
      if ((which == 3 || !odd) && b < count) store_relaxed(word(b), both);
    }
  }

  // Copies `count` spans of 8 rows to the strip; the lane copies words 4q … 4q + 3 of row lane / 4. `waits`: from row
  // `from` of `width` numbers, as soon as they are written; `at` is the offset of the first. Else plain(i) is the i-th.
  template <class T, class Cursor, class Plain>
  __device__ __forceinline__ const uint32_t* fetch(const ThreadCoords& thread, int count, bool waits, const T* from,
                                                   int width, Cursor at, Plain plain) {
    __syncwarp();  // the strip's last use is over
    uint32_t* mine = strip + (thread.lane / 4) * pitch + 4 * thread.q();
    if (waits) {
      await<T>(mine, count, from, width - 4 * kPerWord<T>, at);
    } else {
#pragma unroll 1
      for (int i = 0; i < count; ++i) store_vector(mine + i * kSpanWords, operand<T>(plain(i)));
    }
    // MUTATE: strip-barrier
    __syncwarp();
    return strip;
  }

  // Beyond the end of the row a lane loads the `last` piece again: no branch between two loads, and W_hh is zero there.
  template <class T, class Cursor>
  __device__ __forceinline__ void await(uint32_t* mine, int count, const T* from, int last, Cursor at) {
    SpinTimeout timeout;
#pragma unroll 1
    for (int first = 0; first < count; first += kLoadsInFlight) {
      const uint32_t* where[kLoadsInFlight];
      uint4 v[kLoadsInFlight];
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i, at.advance())
        // MUTATE: row-end-clamp
        where[i] = reinterpret_cast<const uint32_t*>(from + Cursor::kNumbers * min_of(at.unit, last));
      poll(v, where, timeout);
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i)
        if (first + i < count) store_vector(mine + (first + i) * kSpanWords, operand<T>(v[i]));
    }
  }

  // Loads words until other blocks have written all of them. All loads are issued before the first is tested: a group
  // costs one round trip to L2. Only words not yet written are loaded again: polling takes L2 bandwidth from the blocks
  // that publish.
  template <class V, int N>
  __device__ __forceinline__ void poll(V (&v)[N], const uint32_t* const (&where)[N], SpinTimeout& timeout) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = load_relaxed<V>(where[i]);
    // MUTATE: poll-until-written
    while (any_not_written(v) && !timed_out && timeout.keep_polling(status, timed_out)) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        // MUTATE: poll-again
        if (not_written(v[i])) v[i] = load_relaxed<V>(where[i]);
    }
  }
};

// Spans of a row of h: `step` numbers apart.
struct EvenCursor {
  static constexpr int kNumbers = 1;  // of a unit in the row
  int unit, step;

  __device__ __forceinline__ void advance() { unit += step; }
};

// Spans of a row of d_gates: unit_step units apart, set_step more at the begin of a column set (layout.h).
struct SetCursor {
  static constexpr int kNumbers = 4;
  int unit;
  int within;  // the set
  const Layout& l;

  __device__ __forceinline__ void advance() {
    within += l.span_step;
    const bool over = within >= l.set_spans;
    // MUTATE: set-cursor
    unit += l.unit_step + (over ? l.set_step : 0);
    within -= over ? l.set_spans : 0;
  }
};

}  // namespace fastlstm::cuda
