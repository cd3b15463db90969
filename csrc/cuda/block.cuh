// Shared by the forward and the backward recurrent kernel: coordinates of a thread, its part of W_hh, staged rows,
// partial sums.
#pragma once
#include <type_traits>

#include "layout.h"
#include "memory.cuh"
#include "product.cuh"
#include "rows.cuh"

namespace fastlstm::cuda {

// Coordinates of a thread in its block, and of the block in the grid.
struct ThreadCoords {
  int lane, warp;
  int group, split;       // group within the block, and which of its warps
  int units_at, rows_at;  // index of the block among those of the same sequences; first sequence of the block

  __device__ __forceinline__ int q() const { return lane % 4; }  // which piece of a span
  __device__ __forceinline__ int sequence(int tile, int row) const { return rows_at + 8 * tile + row; }

  __device__ __forceinline__ explicit ThreadCoords(const Tiling& t) {
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

// Four words of numbers, the first `count` of them; zero beyond. wide: 16-byte access is possible. The narrow path is
// not unrolled: its loads in flight would take the registers that W_hh needs.
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

// First number of a lane's piece of a row of W_hh, and how many numbers the row has from there on (none: <= 0).
template <class T>
struct Piece {
  const T* from;
  int count;
};

// A warp's part of W_hh: `Pieces` 16-byte pieces per lane and span. The first `Registers` spans stay in registers, the
// others in shared memory that only this lane accesses. Both in the order that the product reads.
template <class T, class Product, int Pieces, int Registers>
struct Weights {
  static constexpr int kBatch = 8 / Pieces;  // spans whose loads are in flight together
  // Spans in shared memory that are multiplied side by side: two where registers allow it.
  static constexpr int kUnrolled = std::is_same<T, float>::value || Registers * Pieces <= 16 ? 1 : 2;
  uint4 first[Registers][Pieces];
  int count;  // spans of this warp

  // Shared memory of the lane for piece 0 of the warp's span Registers.
  static __device__ __forceinline__ unsigned char* rest(const Layout& l, const ThreadCoords& thread) {
    const int most = l.spans_per_warp > Registers ? l.spans_per_warp - Registers : 0;
    return shared_memory() + l.weights + (thread.warp * most * Pieces * 32 + thread.lane) * 16;
  }

  // spans(i): a cursor at the warp's i-th span. piece(p) is the lane's p-th piece there, next() advances one span.
  // Spans for shared memory are loaded first, while the registers are free for loads.
  template <class F>
  __device__ __forceinline__ void load(const Layout& l, const Tiling& t, const ThreadCoords& thread, bool wide,
                                       F spans) {
    count = (l.spans - thread.split + t.k_splits - 1) / t.k_splits;
    unsigned char* mine = rest(l, thread);
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

  // Loads spans i … i + Spans - 1, zero beyond the warp's last. Wide rows hold whole pieces, so the loads are
  // independent.
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
                                           const Layout& l, const ThreadCoords& thread) const {
#pragma unroll
    for (int i = 0; i < Registers; ++i)
      if (i < count) product.add(first[i], tile + i * step, stride, thread.lane);
    if (count <= Registers) return;
    const unsigned char* mine = rest(l, thread);
#pragma unroll kUnrolled
    for (int i = Registers; i < count; ++i) {
      uint4 w[Pieces];
#pragma unroll
      for (int p = 0; p < Pieces; ++p) w[p] = load_vector<uint4>(mine + ((i - Registers) * Pieces + p) * kWeightBytes);
      product.add(w, tile + i * step, stride, thread.lane);
    }
  }
};

// Partial sums of the warps of a group: [parity][split][group][tile of the phase][value][lane]. Double-buffered, so one
// barrier a phase is enough: what is read after a barrier is overwritten only after the next one.
template <int Values>
struct Partials {
  const Layout& l;
  const Tiling& t;
  int parity = 0;

  __device__ __forceinline__ float* at(const ThreadCoords& thread, int from, int which) const {
    const int tile = ((parity * t.k_splits + from) * t.groups + thread.group) * t.phase + which;
    return reinterpret_cast<float*>(shared_memory() + l.partial) + tile * Values * 32 + thread.lane;
  }
  __device__ __forceinline__ void put(const ThreadCoords& thread, int which, const float (&values)[Values]) const {
    float* to = at(thread, thread.split, which);
#pragma unroll
    for (int v = 0; v < Values; ++v) to[32 * v] = values[v];
  }
  // Sums `Some` values, from `first` on and `Apart` from each other, in the order of the splits: deterministic.
  template <int Apart, int Some>
  __device__ __forceinline__ void sum(const ThreadCoords& thread, int which, int first, float (&values)[Some]) const {
#pragma unroll
    for (int v = 0; v < Some; ++v) values[v] = 0.0f;
#pragma unroll 2
    for (int from = 0; from < t.k_splits; ++from) {
      const float* part = at(thread, from, which) + 32 * first;
#pragma unroll
      for (int v = 0; v < Some; ++v) values[v] += part[32 * Apart * v];
    }
  }
};

// Copies 8 neighbouring units, 16 or 32 bytes, between global and shared memory. `valid`: units to the end of the row,
// perhaps fewer than 8.
template <class T>
__device__ __forceinline__ void copy_units(T* to, const T* from, int valid) {
#pragma unroll 1
  // MUTATE: copy-units-tail
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
