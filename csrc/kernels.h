// Entry points of the native CPU kernels: the shape, unit and aliasing rule of every pointer.
//
// Sizes: T steps, B rows (sequences), H hidden units, P = width of h (H, or the projection), N = rows of all steps
// together (T * B, or the packed rows). Arrays are contiguous, row-major, and do not overlap unless said. Gates are in
// torch's order i, f, g, o. Row (t, b) of a packed array is offset[t] + b.
//
// Types: the cell computes in R (float or double). Rows of x, h, the gates and their gradients are stored as S, weights
// and their gradients as W. All three are one type, or R is float, S the 16 bits of a bfloat16, and W either.
#pragma once
#include <cstdint>

namespace fastlstm::cpu {

// How h is rounded when it is stored: the real type itself, bfloat16 or float16 (kept in a float).
enum class Rounding : int { none = 0, bfloat16 = 1, float16 = 2 };

struct Shape {
  int64_t T, B, H, P;
  const int64_t* batch_sizes;  // (T,) active rows of each step, not increasing; null: B at every step
  const uint8_t* reset;        // (N,) 1 = the state before this step is zero; null: never
  bool reverse;                // steps run T-1 ... 0
  Rounding rounding;
  int threads;  // upper limit
};

template <class R, class S = R, class W = S>
struct Forward {
  // outputs
  S* h;      // (N, P)
  R* c;      // (N, H) or null
  S* gates;  // (N, 4H) activated gates or null; may be the same memory as x_gates where S is R
  S* h_n;    // (B, P)
  R* c_n;    // (B, H)
  // inputs
  const R* x_gates;    // (N, 4H) input side of the pre-activations; with ids: the table (V, 4H); null with x
  const int64_t* ids;  // (N,) rows of the table, checked by the caller; null: x_gates is used row by row
  const R* bias;       // (4H,) added to x_gates, or null
  const W* w_hh;       // (4H, P)
  const W* w_hr;       // (P, H) or null
  const S* h0;         // (B, P)
  const R* c0;         // (B, H)
  const S* x;          // (N, I) or null; the input side is then computed in chunks of steps, as x @ w_x^T
  const W* w_x;        // (4H, I) with x
  int64_t I;
};

// Gradients that follow from those at the pre-activations by matrix products. Null outputs are not computed.
template <class R, class S = R, class W = S>
struct Products {
  // outputs
  S* dx;       // (N, I)
  W* dw_x;     // (4H, I); null with ids
  R* d_table;  // (V, 4H) gradient of the table, with ids
  R* dbias;    // (4H,)
  W* dw_hh;    // (4H, P)
  W* dw_hr;    // (P, H)
  // inputs
  const S* x;          // (N, I) or null
  const int64_t* ids;  // (N,) or null
  const W* w_x;        // (4H, I)
  const S* h;          // (N, P)
  const S* h0;         // (B, P)
  int64_t I, V;        // V > 0: ids, also where there are no rows
};

template <class R, class S = R, class W = S>
struct Backward {
  // outputs
  S* d_gates;  // (N, 4H) gradient at the pre-activations; may be the same memory as gates. Null: `products` are
               // computed instead.
  S* dh_proj;  // (N, P) total gradient at the projected h; null without projection or without d_gates
  S* dh0;      // (B, P)
  R* dc0;      // (B, H)
  // inputs; a null gradient is zero
  const S* dh;     // (N, P)
  const R* dc;     // (N, H)
  const S* dh_n;   // (B, P)
  const R* dc_n;   // (B, H)
  const S* gates;  // (N, 4H)
  const R* c;      // (N, H)
  const R* c0;     // (B, H)
  const W* w_hh;   // (4H, P)
  const W* w_hr;   // (P, H) or null
  Products<R, S, W> products;
};

// One layer of a small call: torch's own parameters. Biases may be null.
struct PlainLayer {
  const float *w_ih, *w_hh, *b_ih, *b_hh;  // (4H, I), (4H, H), (4H,), (4H,); I is H from the second layer on
};

// Inference for small T * B: all layers in one call, weights read unpacked (row-dot products).
struct SmallCall {
  float* out;            // (T, B, H)
  float *h_n, *c_n;      // (L, B, H)
  const float* x;        // (T, B, I)
  const float *h0, *c0;  // (L, B, H) or null: zero
  const PlainLayer* layers;
  int64_t L, T, B, I, H;
  int threads;
};

// Packed weights come in blocks of this many units, the last filled up with zeros. Weights are float, or bfloat16 as
// its 16 bits.
inline constexpr int64_t kUnitBlock = 16;

// Packs `count` groups of `gates` matrices, each of `units` rows of I + P numbers. With four gates a block is 16 units:
// for every k (first I, then P) their gates i, f, g, o, 16 numbers each. With one gate a block is 64 units, the last a
// smaller multiple of 16.
struct Pack {
  void* out;         // count * gates * (units rounded up to 16) * (I + P) floats or bfloat16
  const float* w_x;  // (count * gates * units, I)
  const float* w_h;  // (count * gates * units, P)
  int64_t count, gates, units, I, P;
  int threads;
};

// One layer of a single step, packed by `Pack`. H_up is H rounded up to 16.
struct StepLayer {
  const float*
      start;      // (H_up / 16, 4, 16) the bias; in the first layer of a token model the table, (V, H_up / 16, 4, 16)
  const void* w;  // (H_up / 16, I + P, 4, 16)
  const void* w_hr;  // (P, H) packed with one gate, or null
  int64_t I;         // width of what the layer reads; 0 in the first layer of a token model
};

// One step of all layers, each a StepLayer or an Int8Layer. H_up and P_up are H and P rounded up to 16.
template <class Layer = StepLayer>
struct StepArgs {
  float* out;            // (B, P)
  float* h;              // (2, L, B, P_up): side `side` is read, the other written
  float* c;              // (L, B, H_up), in place
  float* h_unprojected;  // (B, H_up) scratch with projection, or null
  const float* x;        // (B, I)
  const Layer* layers;
  int64_t L, B, H, P;
  int side;
  int threads;
};

// int8 weights in blocks of 64 columns (fastlstm/backends/cpu/int8.py packs them): of a layer a block holds 16 units,
// their gates i, f, g, o; of a projection 64 columns. K_up is K rounded up to 64. What is past the last column or k is
// zero.
struct Int8Matrix {
  const int8_t* w;            // (blocks, K_up / 4, 64, 4), or null: not there
  const float* scale;         // (blocks, 64)
  const int32_t* subtracted;  // (blocks, 64) 128 times the sum of each column
};

// One layer in one direction with int8 weights
struct Int8Layer {
  Int8Matrix ih;       // K = I; not read with ids
  Int8Matrix hh;       // K = P
  Int8Matrix hr;       // K = H, or not there
  const float* start;  // (blocks, 64) the bias; in the first layer of a decoder the table, (V, blocks, 64)
  int64_t I;           // width of what the layer reads
};

// Inference of one layer in one direction; Shape without reset and rounding
struct Int8Forward {
  float* h;    // (N, P)
  float* h_n;  // (B, P)
  float* c_n;  // (B, H)
  const Int8Layer* layer;
  const float* x;      // (N, I); null with ids
  const float* table;  // (V, blocks, 64) the input side of the pre-activations of each id, with the bias; null with x
  const int64_t* ids;  // (N,) rows of the table, checked by the caller
  const float* h0;     // (B, P)
  const float* c0;     // (B, H)
};

// out[id[n]] += rows[n] over all n in order; out (V, width) starts as given, rows (N, width). Each thread owns columns.
template <class R>
struct SumById {
  R* out;
  const R* rows;
  const int64_t* ids;
  int64_t N, V, width;
  int threads;
};

// C (M, N) = A (M, K) @ B (K, N), added to C if `accumulate`. Element strides: c[m * c_row + n],
// a[m * a_row + k * a_column], b[k * b_row + n * b_column]. Row m of C or A is number c_at[m] or a_at[m] of its array
// where that is given. C overlaps neither A nor B.
template <class R>
struct Gemm {
  R* c;
  const R *a, *b;
  int64_t M, N, K;
  int64_t c_row, a_row, a_column, b_row, b_column;
  bool accumulate;
  int threads;
  const int64_t *c_at = nullptr, *a_at = nullptr;
};

// How an id is drawn. The draw of row known + t is number position + t of its stream.
struct SamplingOptions {
  double temperature;  // 0: the largest score
  int64_t top_k;       // 0: all
  double top_p;        // 1: all
  uint64_t seed, position;
};

// The sampling loop over layers that are StepLayer or Int8Layer: feeds the rows of ids from `fed` to `known`, then
// draws T more; each is fed in turn but the last.
template <class Layer = StepLayer>
struct SampleArgs {
  int64_t* ids;      // (known + T, B) in: the first `known` rows, and -1 below; out: all; -2: nothing could be drawn
  float* log_probs;  // (T, B) log softmax of the scores at the drawn ids, or null
  float *h, *c;      // (L, B, P), (L, B, H), in place
  uint8_t* ended;    // (B,) in place: 1 = nothing (more) is drawn for this stream
  int32_t* states;   // (B,) in place: states of the automaton, or null
  const Layer* layers;
  const void* w_out;           // (V, P) packed with one gate
  const float* b_out;          // (V rounded up to 16,)
  const int32_t* transitions;  // (states, V): the state after each id, below 0 where the id is forbidden; or null
  int64_t state_count;         // a state from here on is an error: nothing can be drawn
  const int64_t* stops;        // sequences that end a stream, one after another
  const int64_t* stop_ends;    // (stop_count,) where each ends in `stops`
  int64_t stop_count, L, B, H, P, V;
  int64_t known, T;
  int64_t fed;    // rows of ids that the state has seen; below known
  int64_t drawn;  // first row of ids that was drawn, here or before: a stop sequence lies in these
  SamplingOptions options;
  int threads;
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  void (*forward_f32)(const Shape&, const Forward<float>&);
  void (*forward_f64)(const Shape&, const Forward<double>&);
  void (*backward_f32)(const Shape&, const Backward<float>&);
  void (*backward_f64)(const Shape&, const Backward<double>&);
  void (*small_call_f32)(const SmallCall&);
  void (*step_f32)(const StepArgs<>&);
  void (*step_bf16)(const StepArgs<>&);
  void (*pack_f32)(const Pack&);
  void (*pack_bf16)(const Pack&);
  void (*sample_f32)(const SampleArgs<>&);
  void (*sample_bf16)(const SampleArgs<>&);
  void (*gumbel)(double* noise, int64_t n, uint64_t seed, uint64_t position, uint64_t stream);  // n: a multiple of 8
  void (*empty_workspaces)(int threads);
  void (*gemm_f32)(const Gemm<float>&);
  void (*gemm_f64)(const Gemm<double>&);
  void (*sum_by_id_f32)(const SumById<float>&);
  void (*sum_by_id_f64)(const SumById<double>&);
  void (*unary_f32)(const float* x, float* y, int64_t n, int what);  // what: 0 sigmoid, 1 tanh; for the tests
  void (*unary_f64)(const double* x, double* y, int64_t n, int what);
};

// The kernels of one instruction set that multiplies bfloat16. mixed: weights and their gradients are float.
struct BfloatKernels {
  const char* name;
  void (*empty_workspaces)(int threads);
  void (*forward)(const Shape&, const Forward<float, uint16_t>&);
  void (*forward_mixed)(const Shape&, const Forward<float, uint16_t, float>&);
  void (*backward)(const Shape&, const Backward<float, uint16_t>&);
  void (*backward_mixed)(const Shape&, const Backward<float, uint16_t, float>&);
};

// The int8 kernels of one instruction set; all give the same bits.
struct Int8Kernels {
  const char* name;
  void (*forward)(const Shape&, const Int8Forward&);
  void (*step)(const StepArgs<Int8Layer>&);
  void (*sample)(const SampleArgs<Int8Layer>&);
  void (*empty_workspaces)(int threads);
};

extern const Kernels kernels_baseline;
extern const Int8Kernels kernels_int8_baseline;
#if defined(FASTLSTM_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const BfloatKernels bfloat_kernels_avx512_bf16;
extern const BfloatKernels bfloat_kernels_amx;
extern const Int8Kernels kernels_int8_avx2, kernels_int8_avx_vnni, kernels_int8_avx512_vnni, kernels_int8_amx;
#endif

}  // namespace fastlstm::cpu
