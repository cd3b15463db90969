// The shapes of the lean kernels (lean_forward.cuh, lean_backward.cuh): which template instances there are, and what a
// block of each keeps in shared memory. For the planner and the kernels, as layout.h for the general ones.
//
// A block has 8 warps, which share out the spans of the summed dimension: warp w takes spans w, w + 8, … It runs its
// sequences in passes over a few tiles of 8. Of a Tiling: groups, k_splits (8), row_tiles (tiles of all passes), phase
// (tiles of a pass), gate_splits.
#pragma once
#include "layout.h"

namespace fastlstm::cuda {

constexpr int kLeanWarps = 8, kLeanThreads = 32 * kLeanWarps;

// Words of W_hh that a lane keeps in registers. Backward with two matrices, fewer: two products have operands in
// others.
FASTLSTM_BOTH constexpr int lean_registers(bool backward, bool chained) { return backward && chained ? 96 : 128; }

// Of one span and group, a lane has so many words of a matrix; and so many spans stay in registers. chained: `spans`
// are those of two matrices, of a layer next to another in one launch.
FASTLSTM_BOTH constexpr int lean_words(bool backward) { return backward ? 8 : 16; }
FASTLSTM_BOTH constexpr int lean_register_spans(int spans, int groups, bool backward, bool chained) {
  const int most = lean_registers(backward, chained) / (lean_words(backward) * groups);
  return spans < most ? spans : most;
}
FASTLSTM_BOTH constexpr int lean_rest_bytes(int spans, int groups, bool backward, bool chained) {
  const int all = chained ? 2 * spans : spans, rest = all - lean_register_spans(all, groups, backward, chained);
  return rest * groups * lean_words(backward) * 4 * kLeanThreads;
}

// X(spans of a warp, groups of 8 units, tiles of a pass). FASTLSTM_LEAN_FEW: a few of them, for tests that are compiled
// often; 2: also some with more spans.
#if FASTLSTM_LEAN_FEW == 1
#define FASTLSTM_LEAN_FORWARD(X) X(1, 1, 1) X(2, 1, 1) X(1, 2, 1) X(1, 2, 2) X(2, 2, 2)
#define FASTLSTM_LEAN_LAYERS(X) X(1, 1, 1) X(1, 2, 1) X(1, 2, 2)
#elif FASTLSTM_LEAN_FEW == 2
#define FASTLSTM_LEAN_FORWARD(X) X(1, 1, 1) X(2, 1, 1) X(1, 2, 1) X(1, 2, 2) X(2, 2, 2) X(4, 2, 1) X(8, 2, 1)
#define FASTLSTM_LEAN_LAYERS(X) X(1, 1, 1) X(2, 1, 1) X(1, 2, 1) X(4, 2, 1) X(1, 2, 2)
#else
#define FASTLSTM_LEAN_FORWARD(X) \
  X(1, 1, 1)                     \
  X(2, 1, 1) X(4, 1, 1) X(8, 1, 1) X(1, 2, 1) X(2, 2, 1) X(4, 2, 1) X(8, 2, 1) X(1, 2, 2) X(2, 2, 2) X(4, 2, 2)
// The same of launches of several layers or directions.
#define FASTLSTM_LEAN_LAYERS(X) X(1, 1, 1) X(2, 1, 1) X(4, 1, 1) X(1, 2, 1) X(2, 2, 1) X(4, 2, 1) X(1, 2, 2) X(2, 2, 2)
#endif

// Shared memory of a forward block, in bytes: the rest of W_hh (and W_ih of a layer above another), sums of all warps
// for two passes, c.
FASTLSTM_BOTH constexpr int lean_forward_bytes(int spans, int groups, int tiles, int row_tiles, bool below) {
  return lean_rest_bytes(spans, groups, false, below) + 2 * kLeanWarps * 8 * tiles * (8 * groups + 1) * 16 +
         8 * row_tiles * 8 * groups * 4;
}

// X(spans of a warp, gate splits). A block has 16 columns for each split, and passes of one tile.
#if FASTLSTM_LEAN_FEW == 1
#define FASTLSTM_LEAN_BACKWARD(X) X(1, 1) X(2, 1) X(4, 1) X(8, 1) X(1, 4)
#define FASTLSTM_LEAN_LAYERS_BACKWARD(X) X(1) X(2)
#elif FASTLSTM_LEAN_FEW == 2
#define FASTLSTM_LEAN_BACKWARD(X) X(1, 1) X(2, 1) X(4, 1) X(8, 1) X(1, 4) X(8, 4)
#define FASTLSTM_LEAN_LAYERS_BACKWARD(X) X(1) X(2) X(8)
#else
#define FASTLSTM_LEAN_BACKWARD(X) X(1, 1) X(2, 1) X(4, 1) X(8, 1) X(16, 1) X(1, 4) X(2, 4) X(4, 4) X(8, 4)
#define FASTLSTM_LEAN_LAYERS_BACKWARD(X) X(1) X(2) X(4) X(8)  // spans; one split. 16 take too many registers
#endif

// Shared memory of a backward block: the rest of W_hh, sums of all warps for two passes, dh, dc and c.
FASTLSTM_BOTH constexpr int lean_backward_bytes(int spans, int splits, int row_tiles, bool above) {
  return lean_rest_bytes(spans, splits, true, above) + 2 * kLeanWarps * 8 * (16 * splits + 4) * 4 +
         row_tiles * 3 * 128 * 4;
}

// The spans of a warp of the instance that covers a sum; 0: none does. Forward the sum is over H numbers, backward over
// four gates of the units of one slice.
inline int lean_spans(const Tiling& t, int H, int type_bytes, bool backward) {
  const int slice = 16 * divide_up(H, 16 * t.gate_splits);  // units
  const int spans = divide_up((backward ? 4 * slice : H) * type_bytes, 64), needed = divide_up(spans, kLeanWarps);
  const auto covers = [needed](int most) { return needed <= most && (2 * needed > most || most == 1); };
#define FASTLSTM_TRY(Spans, Groups, Tiles) \
  if (!backward && t.groups == Groups && t.phase == Tiles && covers(Spans)) return Spans;
  FASTLSTM_LEAN_FORWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
#define FASTLSTM_TRY(Spans, Splits) \
  if (backward && t.groups == Splits && t.gate_splits == Splits && t.phase == 1 && covers(Spans)) return Spans;
  FASTLSTM_LEAN_BACKWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
  return 0;
}

}  // namespace fastlstm::cuda
