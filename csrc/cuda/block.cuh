// What the forward and the backward recurrent kernel share: who a thread is, its part of W_hh, staged rows, partial
// sums.
#pragma once
#include <type_traits>

#include "layout.h"
#include "memory.cuh"
#include "product.cuh"
#include "rows.cuh"

namespace fastlstm::cuda {

// The place of a thread in its block, and of the block in the grid.
struct Place {
  int lane, warp;
  int group, split;       // group within the block, and which of its warps
  int units_at, rows_at;  // index of the block among those that share sequences; first sequence of the block

  __device__ __forceinline__ int q() const { return lane % 4; }  // which piece of a span
  __device__ __forceinline__ int sequence(int tile, int row) const { return rows_at + 8 * tile + row; }

  __device__ __forceinline__ explicit Place(const Tiling& t) {
    lane = int(threadIdx.x % 32);
    warp = int(threadIdx.x / 32);
    group = warp / t.k_splits;
    split = warp % t.k_splits;
    units_at = int(blockIdx.x) % t.unit_blocks;
    rows_at = int(blockIdx.x) / t.unit_blocks * t.row_tiles * 8;
  }
};

// Whether a set of a lane's two sequences of a tile (bit j: 2q + j) has that of a row.
__device__ __forceinline__ bool has(int which, int row) { return which >> (row & 1) & 1; }

template <class T>
__device__ __forceinline__ uint32_t bits_of(T x) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint32_t, x);
  else
    return x.bits;
}

// Four words of numbers, the first `count` of them; zero beyond. wide: 16-byte access is possible. The slow way is a
// loop on purpose: unrolled, the loads in flight would take the registers that W_hh needs.
template <class T>
__device__ __forceinline__ uint4 gather_words(const T* from, int count, bool wide) {
  if (wide && count >= 4 * kPerWord<T>) return load_vector<uint4>(from);
  uint4 v{0, 0, 0, 0};
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < kPerWord<T>; ++j, ++from)
      if (i * kPerWord<T> + j < count) word |= bits_of(*from) << (16 * j);
    v = {v.y, v.z, v.w, word};
  }
  return v;
}

// Where a lane's piece of a row of W_hh begins, and how many numbers there are to the end of the row (none: <= 0).
template <class T>
struct Piece {
  const T* from;
  int count;
};

// A warp's part of W_hh: `Pieces` 16-byte pieces per lane and span; the first `Registers` spans in registers, the
// others in the lane's own places in shared memory, which no other thread touches. Both as the product takes them.
template <class T, class Product, int Pieces, int Registers>
struct Weights {
  static constexpr int kBatch = 8 / Pieces;  // spans whose loads are on their way together
  // Spans in shared memory that are multiplied side by side: two where registers allow it.
  static constexpr int kUnrolled = std::is_same<T, float>::value || Registers * Pieces <= 16 ? 1 : 2;
  uint4 first[Registers][Pieces];
  int count;  // spans of this warp

  // The lane's place for piece 0 of the warp's span Registers.
  static __device__ __forceinline__ unsigned char* rest(const Layout& l, const Place& me) {
    const int most = l.spans_per_warp > Registers ? l.spans_per_warp - Registers : 0;
    return shared_memory() + l.weights + (me.warp * most * Pieces * 32 + me.lane) * 16;
  }

  // spans(i): a cursor at the warp's i-th span. Its piece(p) is the lane's p-th piece there, next() goes one span on.
  // What goes to shared memory comes first, while the registers are free for loads.
  template <class F>
  __device__ __forceinline__ void load(const Layout& l, const Tiling& t, const Place& me, bool wide, F spans) {
    count = (l.spans - me.split + t.k_splits - 1) / t.k_splits;
    unsigned char* mine = rest(l, me);
#pragma unroll 1
    for (int i = Registers; i < count; i += kBatch) {
      uint4 w[kBatch][Pieces];
      fetch(w, i, wide, spans(i));
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int p = 0; p < Pieces; ++p)
          if (i + j < count) store_vector(mine + ((i + j - Registers) * Pieces + p) * kWeightBytes, w[j][p]);
    }
    fetch(first, 0, wide, spans(0));
  }

  // Spans i … i + Spans - 1, zero beyond the warp's last. Wide rows hold whole pieces: a load is made or not, and none
  // waits for another.
  template <int Spans, class Cursor>
  __device__ __forceinline__ void fetch(uint4 (&w)[Spans][Pieces], int i, bool wide, Cursor at) const {
#pragma unroll
    for (int j = 0; j < Spans; ++j, at.next())
#pragma unroll
      for (int p = 0; p < Pieces; ++p) {
        const Piece<T> piece = at.piece(p);
        w[j][p] = uint4{0, 0, 0, 0};
        if (i + j >= count || piece.count <= 0) continue;
        w[j][p] = wide ? load_vector<uint4>(piece.from) : gather_words(piece.from, piece.count, false);
      }
#pragma unroll
    for (int j = 0; j < Spans; ++j) {
#pragma unroll
      for (int p = 0; p < Pieces; ++p) w[j][p] = operand<T>(w[j][p]);
      Product::arrange(w[j]);
    }
  }

  // Adds the products with one tile of operands, whose i-th span begins at tile + i * step words.
  __device__ __forceinline__ void multiply(Product& product, const uint32_t* tile, int step, int stride,
                                           const Layout& l, const Place& me) const {
#pragma unroll
    for (int i = 0; i < Registers; ++i)
      if (i < count) product.add(first[i], tile + i * step, stride, me.lane);
    if (count <= Registers) return;
    const unsigned char* mine = rest(l, me);
#pragma unroll kUnrolled
    for (int i = Registers; i < count; ++i) {
      uint4 w[Pieces];
#pragma unroll
      for (int p = 0; p < Pieces; ++p) w[p] = load_vector<uint4>(mine + ((i - Registers) * Pieces + p) * kWeightBytes);
      product.add(w, tile + i * step, stride, me.lane);
    }
  }
};

// Sums of the warps of a group meet here: [parity][split][group][tile of the phase][value][lane]. Two parities, so that
// one barrier a phase is enough: what is read after a barrier is overwritten only after the next one.
template <int Values>
struct Partials {
  const Layout& l;
  const Tiling& t;
  int parity = 0;

  __device__ __forceinline__ float* at(const Place& me, int from, int which) const {
    const int tile = ((parity * t.k_splits + from) * t.groups + me.group) * t.phase + which;
    return reinterpret_cast<float*>(shared_memory() + l.partial) + tile * Values * 32 + me.lane;
  }
  __device__ __forceinline__ void put(const Place& me, int which, const float (&values)[Values]) const {
    float* to = at(me, me.split, which);
#pragma unroll
    for (int v = 0; v < Values; ++v) to[32 * v] = values[v];
  }
  // Some of the values, from `first` on and `Apart` from each other, in the order of the splits, whatever the schedule.
  template <int Apart, int Some>
  __device__ __forceinline__ void sum(const Place& me, int which, int first, float (&values)[Some]) const {
#pragma unroll
    for (int v = 0; v < Some; ++v) values[v] = 0.0f;
#pragma unroll 2
    for (int from = 0; from < t.k_splits; ++from) {
      const float* part = at(me, from, which) + 32 * first;
#pragma unroll
      for (int v = 0; v < Some; ++v) values[v] += part[32 * Apart * v];
    }
  }
};

// A piece of a row: 8 neighbouring units, 16 or 32 bytes, between global and shared memory. `valid`: how many units
// there are to the end of the row, perhaps fewer than 8.
template <class T>
__device__ __forceinline__ void copy_units(T* to, const T* from, int valid) {
#pragma unroll 1
  for (int i = 0; i < min_of(valid, 8); ++i) to[i] = from[i];
}

template <class T>
__device__ __forceinline__ void fetch_units(T* to, const T* from, int valid, bool wide) {
  if (wide) {
    constexpr int n = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < 8; i += n)
      if (i < valid) copy_async(to + i, from + i);
  } else {
    copy_units(to, from, valid);
  }
}

template <class T>
__device__ __forceinline__ void write_units(T* to, const T* from, int valid, bool wide) {
  if (wide) {
    constexpr int n = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < 8; i += n)
      if (i < valid) store_vector(to + i, load_vector<uint4>(from + i));
  } else {
    copy_units(to, from, valid);
  }
}

// Numbers of two sequences (2q and 2q + 1) of one unit become a word of two units of one sequence: the lane of the even
// unit gets sequence 2q, that of the odd unit 2q + 1.
template <class T>
__device__ __forceinline__ uint32_t pair_units(T first, T second, int lane) {
  const bool odd = lane / 4 % 2;
  const uint32_t mine = odd ? second.bits : first.bits, send = odd ? first.bits : second.bits;
  const uint32_t got = __shfl_xor_sync(0xffffffffu, send, 4);
  return odd ? got | mine << 16 : mine | got << 16;
}

}  // namespace fastlstm::cuda
