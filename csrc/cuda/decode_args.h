// The sampling loop on a GPU: what its kernel is told, and how it is spread over the chip. Plain data, as in args.h.
//
// Sizes: L layers of H units, V ids, B streams. A block owns `units` units of every layer and some groups of 4 rows of
// the output layer. Weights lie in the order in which a warp reads them: [unit or group][chunk][row of
// 4][lane][number], 16 bytes a lane; a chunk is 32 lanes of the columns of one vector, which is padded with zeros to
// whole chunks. The rows are the gates i, f, g, o of a unit or 4 rows of scores. A layer above another has two vectors,
// its own h before the step and h of the layer below.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastlstm::cuda {

constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps;
constexpr int kMostDecodeLayers = 16, kMostDecodeStreams = 64;
constexpr int kDecodeTile = 8;  // streams that share a read of the weights, at most

struct DecodePlan {
  int units, blocks;  // units of a block; blocks, all resident at once
  int tile;           // streams of a pass: 1, 2, 4 or 8
  int keeps_h;        // 1: h of all layers stays in shared memory from step to step; needs one pass for all streams
  int everywhere;     // 1: every block draws every stream; 0: one block draws a stream and sends the id
  int bytes;          // of shared memory; 0: the sizes do not fit, and nothing else holds
  // of each layer and (at L) the output layer: where its weights begin in shared memory, in bytes; -1: not there
  int place[kMostDecodeLayers + 1];
};

struct DecodeArgs {
  int L, H, V, B;
  int known, fed, T;  // rows of ids that were known and, of those, that were fed before this launch; rows to draw
  int first_stream;   // the number of the first stream, for its noise
  DecodePlan plan;
  // how to draw
  float temperature;
  double top_p;
  int top_k;  // 0: all
  int stop_count;
  int drawn;                 // rows of ids that were not drawn, where no stop may reach
  int states;                // of the automaton
  uint64_t seed, position;   // position: ids drawn before, of each stream
  const int64_t* stops;      // all sequences that end a stream, one after another
  const int64_t* stop_ends;  // (stop_count,) where each ends
  const int32_t* follows;    // (states, V) the automaton's next state, below 0: forbidden; or null
  // weights, float or bfloat16 as the launch says; starts and biases are float
  const void* weights[kMostDecodeLayers + 1];  // of each layer and of the output layer
  const float* start[kMostDecodeLayers + 1];   // (V, 4H) of the first layer, (4H,) of others; (V,) of the output layer
  // streams
  int64_t* ids;      // (known + T, B), known rows are given; -1 where nothing is drawn
  float* log_probs;  // (T, B) or null
  float* h;          // (L, B, H) out
  float* c;          // (L, B, H) in and out
  // before and after: one block may be at its first draw before another has begun
  const int32_t* ended_before;  // (B,) 1: it draws no more
  int32_t* ended;               // (B,) comes in as ended_before
  const int32_t* state_before;  // (B,) of the automaton; or null
  int32_t* state;               // (B,) comes in as state_before; or null
  // words that blocks exchange: a number and the turn in which it was sent; zeros but for h before the first step
  uint64_t* h_words;      // (2, L, B, H)
  uint64_t* score_words;  // (2, B, V)
  uint64_t* id_words;     // (2, B)
  int* status;
};

// Columns of one lane's 16 bytes; of a chunk; a vector with its padding.
constexpr int decode_numbers(int type_bytes) { return 16 / type_bytes; }
constexpr int decode_chunks(int H, int type_bytes) {
  return (H + 32 * decode_numbers(type_bytes) - 1) / (32 * decode_numbers(type_bytes));
}
constexpr int decode_columns(int H, int type_bytes) {
  return decode_chunks(H, type_bytes) * 32 * decode_numbers(type_bytes);
}
constexpr int kDecodeChunkBytes = 4 * 32 * 16;  // of the weights

// Bytes of a unit's weights in layer l, or of a group of rows of the output layer (l = L).
constexpr int decode_unit_bytes(int L, int H, int l, int type_bytes) {
  return decode_chunks(H, type_bytes) * (l == 0 || l == L ? 1 : 2) * kDecodeChunkBytes;
}
// Units of a block in a layer, or groups of rows of the output layer.
constexpr int decode_share(const DecodePlan& plan, int L, int V, int l) {
  const int groups = (V + 3) / 4;
  return l < L ? plan.units : (groups + plan.blocks - 1) / plan.blocks;
}

// Shared memory but for weights: vectors of h, scores, and four words a stream, and two pairs of long words a warp.
constexpr int decode_other_bytes(const DecodePlan& plan, int L, int H, int V, int type_bytes) {
  const int vectors = plan.keeps_h ? L : 2;
  return vectors * plan.tile * decode_columns(H, type_bytes) * 4 + (V + 3) / 4 * 16 + 4 * kMostDecodeStreams * 4 +
         2 * kDecodeWarps * 16;
}

// How to decode on a GPU with so many multiprocessors and so much shared memory for a block. As few blocks as hold all
// weights in shared memory, with at most a unit a warp; else as many as there are. longest_stop: in ids.
DecodePlan plan_decode(int sms, int shared_bytes, int type_bytes, int L, int H, int V, int B, int longest_stop);

}  // namespace fastlstm::cuda
