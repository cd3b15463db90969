// How a recurrent kernel divides hidden units, sequences and shared memory: computed here for the planner and the
// kernels, so that they cannot disagree.
//
// A block has groups * k_splits warps. Forward, a group is 8 units; backward, 16 columns of W_hh. The warps of a group
// split the spans of the summed dimension: warp s takes spans s, s + k_splits, …; its first `register_spans` stay in
// registers for the whole launch, the rest in shared memory, each lane's 16-byte pieces where that lane reads them. A
// block runs over `row_tiles` tiles of 8 sequences. With k_splits > 1 there is a barrier after every `phase` of them,
// to add the partial sums, and the cells of a phase are distributed over the warps of a group (forward.cuh,
// backward_coords.cuh). With one split a phase is one tile. All offsets are in bytes.
#pragma once
#include <cstddef>

#include "args.h"

#if defined(__CUDACC__)
#define FASTLSTM_BOTH __host__ __device__ inline
#else
#define FASTLSTM_BOTH inline
#endif

namespace fastlstm::cuda {

FASTLSTM_BOTH int divide_up(int a, int b) { return (a + b - 1) / b; }

// Words between two rows of a tile of operands: 16 beyond a multiple of 32, so that two rows never share a bank.
FASTLSTM_BOTH int row_stride(int spans) { return 16 * spans + (spans % 2 ? 0 : 16); }

FASTLSTM_BOTH constexpr int min_of(int a, int b) { return a < b ? a : b; }

struct Layout {
  int spans;  // of the whole summed dimension, for this block
  int spans_per_warp;
  int warps;
  int stride;                                             // words between rows of an operand tile
  size_t weights, operand, partial, stage, carry, bytes;  // offsets; bytes: the end
  int stage_bytes;                                        // of one slot: one tile of 8 sequences, 8 units
  int carry_floats;                                       // per lane, tile and group
  // Backward, numbers between a warp's spans in a row of d_gates: `unit_step` each time, `set_step` more where a span
  // is the first in another column set; a span is `span_step` on from the one before, modulo the `set_spans` of a set.
  int unit_step, set_step, span_step, set_spans;
};

constexpr int kWeightBytes = 512;   // of one 16-byte piece for all lanes of a warp
constexpr int kForwardPieces = 4;   // pieces a lane keeps of one span: four gates
constexpr int kBackwardPieces = 2;  // two columns

// `pieces`, `values`: 16-byte pieces of W_hh per span, and sums per lane of one product. Tiles of operands: the whole
// dimension for all rows, twice (`whole`), or one tile of a warp's own spans per warp.
FASTLSTM_BOTH Layout make_smem_layout(const Tiling& t, int spans, int register_spans, int pieces, int values,
                                      bool whole, int stage_bytes, int stage_slots, int carry_floats) {
  Layout l{};
  l.spans = spans;
  l.spans_per_warp = divide_up(spans, t.k_splits);
  l.warps = t.groups * t.k_splits;
  l.stride = row_stride(whole ? spans : l.spans_per_warp);
  l.stage_bytes = stage_bytes;
  l.carry_floats = carry_floats;
  const int shared_spans = l.spans_per_warp > register_spans ? l.spans_per_warp - register_spans : 0;
  const size_t tiles = size_t(t.groups) * t.row_tiles;
  l.weights = 0;
  l.operand = size_t(l.warps) * shared_spans * pieces * kWeightBytes;
  l.partial = l.operand + size_t(whole ? 2 * t.row_tiles : l.warps) * 8 * l.stride * 4;
  l.stage = l.partial + (t.k_splits > 1 ? size_t(2) * t.k_splits * t.groups * t.phase * 32 * values * 4 : 0);
  l.carry = l.stage + tiles * stage_slots * stage_bytes;
  l.bytes = l.carry + tiles * 32 * carry_floats * 4;
  return l;
}

// Forward: slots hold 4 gates x 8 sequences x 8 units; two steps of them. Carried: c of two sequences.
FASTLSTM_BOTH Layout forward_layout(const Tiling& t, int H, int type_bytes, int register_spans, bool whole) {
  return make_smem_layout(t, divide_up(H * type_bytes, 64), register_spans, kForwardPieces, 8, whole, 256 * type_bytes,
                          2, 2);
}

// Backward: a slot holds gates, c before the step (float) and dh for 8 sequences x 8 units; two steps of two halves.
// Carried for two columns and two sequences: dh, dc, c.
FASTLSTM_BOTH Layout backward_layout(const Tiling& t, int H, int type_bytes, int register_spans, bool whole) {
  const int columns = 16 * t.groups, slices = divide_up(H, columns);
  const int span_units = 16 / type_bytes, slice_units = columns / t.gate_splits;
  const int spans = slices * slice_units / span_units;
  Layout l = make_smem_layout(t, spans, register_spans, kBackwardPieces, 4, whole,
                              256 * type_bytes + 256 + 64 * type_bytes, 4, 12);
  l.set_spans = slice_units / span_units;
  l.span_step = t.k_splits % l.set_spans;
  l.unit_step = t.k_splits / l.set_spans * columns + l.span_step * span_units;
  l.set_step = columns - slice_units;
  return l;
}

// Words of the partial sums of dh of one step: [part][tile of 8 sequences][group of 16 columns][lane][4].
FASTLSTM_BOTH int64_t partial_words(const Tiling& t, int B) {
  return int64_t(t.unit_blocks) * t.groups * divide_up(B, 8) * 128;
}

// Warps of a block: `single_block` needs up to 16 to cover its units; `cooperative` has 8, whose 255 registers a thread
// hold the same W_hh and leave room for loads in flight.
FASTLSTM_BOTH constexpr int max_warps(bool whole) { return whole ? 16 : 8; }
constexpr int kLoadsInFlight = 8;  // 16-byte loads of exchanged words that a lane issues before it tests one
constexpr int kPartsInFlight = 4;  // the same of partial sums

// Spans of W_hh that a lane keeps in registers: half of its words. The scalar products need more of them for sums.
FASTLSTM_BOTH constexpr int register_spans(bool scalar, int pieces, bool whole) {
  return 1024 / max_warps(whole) / (scalar ? 2 : 1) / (4 * pieces);
}

// Parameters of a recurrent kernel. The layout is computed on the host: as kernel parameters it takes no registers.
template <class Args>
struct KernelParams {
  Args args;
  Layout layout;
  bool wide;  // 16-byte access works everywhere
};

}  // namespace fastlstm::cuda
