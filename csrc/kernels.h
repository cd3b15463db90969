// Entry points of the native CPU kernels: the shape, unit and aliasing rule of every pointer.
//
// Sizes: T steps, B rows (sequences), H hidden units, P = width of h (H, or the projection), N = rows of all steps
// together (T * B, or the packed rows). Arrays are contiguous, row-major, of one real type R (float or double) and do
// not overlap unless said. Gates are in torch's order i, f, g, o. Row (t, b) of a packed array is offset[t] + b.
#pragma once
#include <cstdint>

namespace fastlstm::cpu {

// How h is rounded when it is stored: the real type itself, bfloat16 or float16 (kept in a float).
enum class Rounding : int { none = 0, bfloat16 = 1, float16 = 2 };

struct Shape {
  int64_t T, B, H, P;
  const int64_t* batch_sizes;  // (T,) rows alive at each step, not increasing; null: B at every step
  const uint8_t* reset;        // (N,) 1 = the state that comes into this step is zero; null: never
  bool reverse;                // steps run T-1 ... 0
  Rounding rounding;
  int threads;  // upper limit
};

template <class R>
struct Forward {
  // outputs
  R* h;      // (N, P)
  R* c;      // (N, H) or null
  R* gates;  // (N, 4H) activated gates or null; may be the same memory as xg
  R* h_n;    // (B, P)
  R* c_n;    // (B, H)
  // inputs
  const R* xg;         // (N, 4H) input side of the pre-activations; with ids: the table (V, 4H); null with x
  const int64_t* ids;  // (N,) rows of the table, checked by the caller; null: xg is used row by row
  const R* bias;       // (4H,) added to xg, or null
  const R* w_hh;       // (4H, P)
  const R* w_hr;       // (P, H) or null
  const R* h0;         // (B, P)
  const R* c0;         // (B, H)
  const R* x;          // (N, I) or null; the input side is then computed in chunks of steps, as x @ w_x^T
  const R* w_x;        // (4H, I) with x
  int64_t I;
};

// What follows from the gradients at the pre-activations, by products over chunks of steps. A null output is not
// wanted.
template <class R>
struct Products {
  // outputs
  R* dx;     // (N, I)
  R* dw_x;   // (4H, I); with ids the gradient of the table, (V, 4H)
  R* dbias;  // (4H,)
  R* dw_hh;  // (4H, P)
  R* dw_hr;  // (P, H)
  // inputs
  const R* x;          // (N, I) or null
  const int64_t* ids;  // (N,) or null
  const R* w_x;        // (4H, I)
  const R* h;          // (N, P)
  const R* h0;         // (B, P)
  int64_t I, V;        // V > 0: ids, also where there are no rows
};

template <class R>
struct Backward {
  // outputs
  R* dxg;   // (N, 4H) gradient at the pre-activations; may be the same memory as gates; null: not kept. With it no
            // products.
  R* d_hr;  // (N, P) total gradient at the projected h; null without projection, and where dxg is not kept
  R* dh0;   // (B, P)
  R* dc0;   // (B, H)
  // inputs; a null gradient is zero
  const R* dh;     // (N, P)
  const R* dc;     // (N, H)
  const R* dh_n;   // (B, P)
  const R* dc_n;   // (B, H)
  const R* gates;  // (N, 4H)
  const R* c;      // (N, H)
  const R* c0;     // (B, H)
  const R* w_hh;   // (4H, P)
  const R* w_hr;   // (P, H) or null
  Products<R> products;
};

// One layer of a stack for `stack`: torch's own parameters, read where they lie. Biases may be null.
struct StackLayer {
  const float *w_ih, *w_hh, *b_ih, *b_hh;
};

// Inference for small T * B: every layer in one call, weights read unpacked (row-dot products).
struct Stack {
  float* out;            // (T, B, H)
  float *h_n, *c_n;      // (L, B, H)
  const float* x;        // (T, B, I)
  const float *h0, *c0;  // (L, B, H) or null: zero
  const StackLayer* layers;
  int64_t L, T, B, I, H;
  int threads;
};

// One layer of a stream. A block is 16 units: for every k (first x, then h) their gates i, f, g, o, 16 numbers each;
// the last block is filled up with zeros. Weights are float, or bfloat16 as its 16 bits.
inline constexpr int kStreamLanes = 16;
struct StreamLayer {
  const void* w;      // (blocks of H, I + P, 4, 16)
  const float* bias;  // (blocks of H, 4, 16), b_ih + b_hh
  const void* w_hr;   // (blocks of P, H, 16) or null
  int64_t I;          // width of what this layer reads
};

// One step of every layer. H_padded and P_padded are H and P rounded up to 16.
struct StreamStep {
  float* out;      // (B, P)
  const float* x;  // (B, I)
  float* h;        // (2, L, B, P_padded): side `side` is read, the other written
  float* c;        // (L, B, H_padded), in place
  float* y;        // (B, H_padded) scratch with projection, or null
  const StreamLayer* layers;
  int64_t L, B, H, P, H_padded, P_padded;
  int side;
  int threads;
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

// Weights into the blocks of cpu/blocks.h: `gates` matrices of `units` rows, each row its I and then its P numbers.
// With one gate a block is 64 rows (the last a smaller multiple of 16), with four it is 16 rows of each; rows past the
// last are 0.
struct Pack {
  void* out;       // gates * units rounded up to 16 * (I + P) floats, or bfloat16 as their 16 bits
  const float* x;  // (gates * units, I)
  const float* h;  // (gates * units, P)
  int64_t gates, units, I, P;
  int threads;
};

// How a number is drawn. The draw of row known + t is number position + t of its stream.
struct Drawing {
  double temperature;  // 0: the largest score
  int64_t top_k;       // 0: all
  double top_p;        // 1: all
  uint64_t seed, position;
};

// One layer of a decoder, packed by `Pack`. H_up is H rounded up to 16.
struct DecodeLayer {
  const float* start;  // first layer: the table (V, H_up / 16, 4, 16); others: the bias (H_up / 16, 4, 16)
  const void* w;       // blocks of (I + P) x 4 gates x 16 units; I is 0 in the first layer, else P
  const void* w_hr;    // blocks of H x 64 projected units, or null
};

// Sampling: the known rows of ids from `fed` on are fed, then T more are drawn, each fed in turn but the last.
struct Decode {
  int64_t* ids;      // (known + T, B); rows from `known` on hold -1; -2: there was nothing to draw
  float* log_probs;  // (T, B) log softmax of the scores at what was drawn, or null
  float *h, *c;      // (L, B, P), (L, B, H), in place
  uint8_t* ended;    // (B,) in place: 1 = nothing is drawn for this stream (any more)
  int32_t* states;   // (B,) in place: states of the automaton, or null
  const DecodeLayer* layers;
  const void* w_out;         // blocks of P x 64 numbers
  const float* b_out;        // (V rounded up to 16,)
  const int32_t* follows;    // (states, V): the state after each number, below 0 where it is forbidden; or null
  const int64_t* stops;      // sequences that end a stream, one after another
  const int64_t* stop_ends;  // (stop_count,) where each ends in `stops`
  int64_t stop_count, L, B, H, P, V, known, T;
  int64_t fed;    // rows of ids that the state has seen; below known
  int64_t drawn;  // first row of ids that was drawn, here or before: a stop sequence lies in these
  Drawing drawing;
  int threads;
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  void (*forward_f32)(const Shape&, const Forward<float>&);
  void (*forward_f64)(const Shape&, const Forward<double>&);
  void (*backward_f32)(const Shape&, const Backward<float>&);
  void (*backward_f64)(const Shape&, const Backward<double>&);
  void (*stack_f32)(const Stack&);
  void (*stream_f32)(const StreamStep&);
  void (*stream_bf16)(const StreamStep&);
  void (*pack_f32)(const Pack&);
  void (*pack_bf16)(const Pack&);
  void (*decode_f32)(const Decode&);
  void (*decode_bf16)(const Decode&);
  void (*gumbel)(double* noise, int64_t n, uint64_t seed, uint64_t position, uint64_t stream);  // n: a multiple of 8
  void (*gemm_f32)(const Gemm<float>&);
  void (*gemm_f64)(const Gemm<double>&);
  void (*sum_by_id_f32)(const SumById<float>&);
  void (*sum_by_id_f64)(const SumById<double>&);
  void (*unary_f32)(const float* x, float* y, int64_t n, int what);  // what: 0 sigmoid, 1 tanh; for the tests
  void (*unary_f64)(const double* x, double* y, int64_t n, int what);
};

extern const Kernels kernels_baseline;
#if defined(FASTLSTM_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace fastlstm::cpu
