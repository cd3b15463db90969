// What the kernels are told: shape, unit and aliasing rule of every pointer. Plain data, passed to a kernel by value.
//
// Sizes: T steps, B sequences, H hidden units, N rows of all steps together (T * B, or the packed rows). Steps are
// counted as they are processed: step k is at time k, or T - 1 - k when `reverse`. Row (t, b) is row t * B + b, or
// offsets[t] + b when packed. "type": the call's own type (float, half, bfloat16); cell states are always float.
// Arrays are contiguous and do not overlap unless said.
#pragma once
#include <cstdint>

namespace fastlstm::cuda {

enum class Type : int { f32 = 0, tf32 = 1, f16 = 2, bf16 = 3 };

struct Sequence {
  int T, B, H;
  int begin, end;  // steps of this launch
  int reverse;     // 0 or 1
  int64_t N;
  const int64_t* offsets;  // (T,) first row of each time; null: dense
  const uint8_t* reset;    // (N,) 1: the state that comes into this row is zero; null: never
};

// How a recurrent kernel is spread over blocks, warps and memory; made by the planner (plan.h says what each means).
struct Tiling {
  int unit_blocks;  // blocks that share the hidden units of the same sequences
  int row_blocks;   // groups of sequences that exchange nothing
  int groups;       // groups of 8 units (backward: 16 columns) in a block
  int k_splits;     // warps that share the products of one group
  int row_tiles;    // tiles of 8 sequences in a block
  int phase;        // row tiles between two barriers
  int gate_splits;  // backward over several blocks: parts in which the gates are summed
};

struct ForwardArgs {
  Sequence s;
  Tiling t;
  // outputs
  void* h;      // (N, H) type
  float* c;     // (N, H) or null
  void* gates;  // (N, 4H) type, activated; or null. May be the same memory as x_gates
  void* h_n;    // (B, H) type; `per_step`: comes in as the state, goes out as the new one. Others only write it
  float* c_n;   // (B, H) comes in as the state, goes out as the new one
  // inputs
  const void* x_gates;  // (N, 4H) type: input side of the pre-activations; null with ids
  const void* table;    // (V, 4H) type, with ids
  const int64_t* ids;   // (N,) rows of the table
  const void* absent;   // (4H,) NaN, type: the row of an id outside the table
  int64_t V;
  const void* w_hh;   // (4H, H) type
  const void* h0;     // (B, H) type
  const void* zeros;  // (H,) type, with resets in `lean`: the state after one
  // a layer above another in one launch of `lean`, in place of x_gates, table and ids
  const void* below;  // (N, H) type: h of the layer below, which the same launch writes; else null
  const void* w_ih;   // (4H, H) type
  const void* bias;   // (4H,) type or null
  // `per_step` only
  const void* hw;       // (B, 4H) float or type: h_prev @ w_hh^T
  void* h_unprojected;  // (B, H) type: o * tanh(c), in place of h and h_n, for a projection; else null
  // `cooperative` only
  void* exchange;      // (N, exchange_width) type, filled with kNotWritten: h as blocks publish it; may be h itself
  int exchange_width;  // a multiple of 16 bytes
  int* status;         // one word that the host can read: a Status
};

// Layers or directions that one launch of `lean` runs side by side, all with the same sizes and Tiling.
constexpr int kMostLayers = 12;  // a kernel's parameters have 4 KiB
struct LayersArgs {
  ForwardArgs layers[kMostLayers];
  int count, blocks;  // layers; blocks of each
};

struct BackwardArgs {
  Sequence s;
  Tiling t;
  // outputs
  void* d_gates;    // (N, 4H) type
  float* dh_state;  // (B, H) float (`per_step`: float or type): comes in as the gradient at h_n, goes out as that at h0
  float* dc_state;  // (B, H) likewise for c
  // inputs
  const void* dh;      // (N, H) type or null
  const float* dc;     // (N, H) or null
  const void* gates;   // (N, 4H) type, activated
  const float* c;      // (N, H)
  const float* c0;     // (B, H)
  const void* w_hh_t;  // (H, 4H) type: W_hh transposed, so that a column of W_hh is contiguous; `per_step`: null
  // `per_step` only, for a projection to P
  int P;
  const void* dh_unprojected;  // (B, H) float or type: gradient at o * tanh(c); null: dh + dh_state is it
  void* dh_proj;               // (N, P) type: dh + dh_state, written by per_step_backward_sum
  // `cooperative` only
  // (N, 4 * exchange_width) type, filled with kNotWritten: gradients of the gates, [unit / n][gate][unit % n] with n
  // units in 16 bytes, the order in which a span of the products reads them
  void* exchange;
  int exchange_width;     // units, a multiple of n
  const void* above;      // `lean`, a layer below another in one launch: the exchange of that; else null
  const void* w_above_t;  // (H, 4H) type: W_ih of the layer above transposed
  float* bias;            // `lean`: (row_blocks, 4H) or null: to each, the sums of d_gates over its sequences are added
  float* partial;  // (end - begin, partial_words) filled with kNotWritten: partial sums of dh; null with one gate split
  int* status;
};

struct LayersBackwardArgs {
  BackwardArgs layers[kMostLayers];
  int count, blocks;
};
static_assert(sizeof(LayersArgs) <= 4096 && sizeof(LayersBackwardArgs) <= 4096, "a kernel's parameters");

// How long a block spins on another block's words before it gives up. CMake: FASTLSTM_TIMEOUT_MS.
#if !defined(FASTLSTM_TIMEOUT_MS)
#define FASTLSTM_TIMEOUT_MS 2000
#endif
constexpr int kTimeoutMs = FASTLSTM_TIMEOUT_MS;

// Values of the status word; the host raises on them at the next call.
enum Status : int { kFine = 0, kTimedOut = 1, kBadId = 2 };

}  // namespace fastlstm::cuda
