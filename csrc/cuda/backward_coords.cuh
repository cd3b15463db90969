// Which columns of W_hh a block and a lane of the backward kernels have, and which units' cells they run.
//
// A group is 16 columns; they are 16 units of the step before, and the lane has columns lane / 4 and lane / 4 + 8 of
// it. With `gate_splits` blocks form a grid of column sets and slices (backward.cuh): block (set, slice) multiplies
// into all columns of its set but runs only the cells of its slice of them.
#pragma once
#include "block.cuh"

namespace fastlstm::cuda {

struct BackwardCoords : ThreadCoords {
  const Tiling& t;
  const int H;

  __device__ __forceinline__ BackwardCoords(const ThreadCoords& coords, const Tiling& t, int H)
      : ThreadCoords(coords), t(t), H(H) {}

  __device__ __forceinline__ int columns() const { return 16 * t.groups; }  // of the block
  __device__ __forceinline__ int slice() const { return units_at % t.gate_splits; }
  __device__ __forceinline__ int slice_units() const { return columns() / t.gate_splits; }
  __device__ __forceinline__ int first_column() const { return units_at / t.gate_splits * columns() + 16 * group; }
  __device__ __forceinline__ int column(int half) const { return first_column() + 8 * half + lane / 4; }
  // Whether this block runs the cells of 8 of the group's 16 units.
  __device__ __forceinline__ bool runs(int half) const {
    return (16 * group + 8 * half) / slice_units() == slice() && first_column() + 8 * half < H;
  }
  // Calls f(tile, half, which) for the cells that this warp runs, of the tiles of a phase from `first` on; bit j of
  // `which` selects the lane's sequence 2q + j. The halves of a group's 16 units are distributed round-robin over its
  // warps and, with warps enough, single sequences.
  template <class F>
  __device__ __forceinline__ void for_own_cells(int first, F f) const {
    const int halves = int(runs(0)) + int(runs(1)), parts = t.k_splits >= 2 * halves ? 2 : 1, shares = halves * parts;
    const int count = shares * min_of(t.phase, t.row_tiles - first);
#pragma unroll 1
    for (int i = split; i < count; i += t.k_splits) {
      const int share = i & (shares - 1), tile = shares == 4 ? i / 4 : shares == 2 ? i / 2 : i;
      // MUTATE: backward-own-cells-row
      f(first + tile, halves == 2 ? share & 1 : int(runs(1)), parts == 1 ? 3 : 1 + share / halves);
    }
  }
  template <class F>
  __device__ __forceinline__ void for_all_own_cells(F f) const {
#pragma unroll 1
    for (int first = 0; first < t.row_tiles; first += t.phase) for_own_cells(first, f);
  }
  __device__ __forceinline__ void recompute_all() {
    recompute(lane), recompute(group), recompute(units_at), recompute(rows_at);
  }
};

}  // namespace fastlstm::cuda
