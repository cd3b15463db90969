// `per_step`: the pointwise part of one time step, between two matrix products by cuBLAS. Runs for any H and B: for
// W_hh too large to stay on the chip, and the only kernel with a projection.
//
//   z = x_gates + hw                    hw = h' W_hhᵀ from cuBLAS; h', c': of the step before, zero at a reset
//   i, f, o = σ(z_i), σ(z_f), σ(z_o);  g = tanh(z_g)
//   c = f c' + i g;  h = o tanh(c)                (Hochreiter and Schmidhuber 1997; Gers et al. 2000)
//
//   dh = dh_out + dh_state         dh_state = d_gates_next W_hh from cuBLAS, d_gates_next: of the step after
//   dc = dc_out + dc_next + dh o (1 - tanh²(c))
//   d_gates_i = dc g i (1 - i);    d_gates_f = dc c' f (1 - f)
//   d_gates_g = dc i (1 - g²);  d_gates_o = dh tanh(c) o (1 - o)
//   dc_next of the step before = dc f             (back-propagation through time, Werbos 1990)
//
// One thread per sequence and V neighbouring units (V = 4 where H and the pointers allow 4-wide access, else 1). A step
// moves about 22 bytes per unit and sequence in half types. Bound: below B * H of some hundred thousand the launch,
// about 2 µs; above it HBM.
#pragma once
#include "input.cuh"

namespace fastlstm::cuda {

constexpr int kPerStepThreads = 256;

// The sequence and first unit of a thread; false: none.
template <int V>
__device__ __forceinline__ bool cell_of_thread(int count, int width, int& b, int& u) {
  const int64_t index = (int64_t(blockIdx.x) * kPerStepThreads + threadIdx.x) * V;
  b = int(index / width);
  u = int(index % width);
  // MUTATE: per-step-row-tail
  return b < count;
}

// T: type of the call; S: type of the products hw.
template <class T, class S, int V>
__global__ void __launch_bounds__(kPerStepThreads) per_step_forward(ForwardArgs p) {
  const int H = p.s.H;
  const Rows rows = rows_of(p.s, p.s.begin);
  int b, u;
  if (!cell_of_thread<V>(rows.count, H, b, u)) return;
  const int64_t row = rows.first + b;
  const bool fresh = is_reset(p.s, rows, b);
  const T* x = input_row<T>(p, row) + u;
  const S* hw = static_cast<const S*>(p.hw) + int64_t(b) * 4 * H + u;
  float z[4][V], c_prev[V], c[V], h[V];
  for (int g = 0; g < 4; ++g) {
    float product[V];
    load_floats(x + g * H, z[g]);
    // MUTATE: per-step-gate
    load_floats(hw + g * H, product);
    for (int v = 0; v < V; ++v) z[g][v] += fresh ? 0.0f : product[v];
  }
  float* state = p.c_n + int64_t(b) * H + u;
  load_floats(state, c_prev);
  for (int v = 0; v < V; ++v) {
    float gate[4] = {z[0][v], z[1][v], z[2][v], z[3][v]};
    LstmCell::forward<typename MathOf<T>::type>(gate, fresh ? 0.0f : c_prev[v], c[v], h[v]);
    for (int g = 0; g < 4; ++g) z[g][v] = gate[g];
  }
  store_floats(state, c);
  if (p.c) store_floats(p.c + row * H + u, c);
  if (p.gates)
    for (int g = 0; g < 4; ++g) store_floats(static_cast<T*>(p.gates) + row * 4 * H + g * H + u, z[g]);
  if (p.h_unprojected) return store_floats(static_cast<T*>(p.h_unprojected) + int64_t(b) * H + u, h);
  store_floats(static_cast<T*>(p.h) + row * H + u, h);
  store_floats(static_cast<T*>(p.h_n) + int64_t(b) * H + u, h);
}

// dh: the gradient from the later step (zero already at a reset) and from outside.
template <class T, class S, int V>
__device__ __forceinline__ void incoming_dh(const BackwardArgs& p, const Rows& rows, int b, int u, int width,
                                            float (&dh)[V]) {
  load_floats(reinterpret_cast<const S*>(p.dh_state) + int64_t(b) * width + u, dh);
  float outside[V] = {};
  if (p.dh) load_floats(static_cast<const T*>(p.dh) + (rows.first + b) * width + u, outside);
  for (int v = 0; v < V; ++v) dh[v] += outside[v];
}

// With a projection: dh_proj = dh_out + dh_state, (n, P), before cuBLAS's product with w_hr.
template <class T, class S, int V>
__global__ void __launch_bounds__(kPerStepThreads) per_step_backward_sum(BackwardArgs p) {
  const Rows rows = rows_of(p.s, p.s.begin);
  int b, u;
  if (!cell_of_thread<V>(rows.count, p.P, b, u)) return;
  float dh[V];
  incoming_dh<T, S>(p, rows, b, u, p.P, dh);
  store_floats(static_cast<T*>(p.dh_proj) + (rows.first + b) * p.P + u, dh);
}

template <class T, class S, int V>
__global__ void __launch_bounds__(kPerStepThreads) per_step_backward(BackwardArgs p) {
  const int H = p.s.H;
  const Rows rows = rows_of(p.s, p.s.begin), before = rows_of(p.s, p.s.begin - 1);
  int b, u;
  if (!cell_of_thread<V>(rows.count, H, b, u)) return;
  const int64_t row = rows.first + b, at = row * H + u, state = int64_t(b) * H + u;
  const bool fresh = is_reset(p.s, rows, b);
  float dh[V], dc[V], outside[V] = {}, c[V], c_prev[V], z[4][V];
  if (p.dh_unprojected)
    load_floats(static_cast<const S*>(p.dh_unprojected) + state, dh);
  else
    incoming_dh<T, S>(p, rows, b, u, H, dh);
  load_floats(p.dc_state + state, dc);
  if (p.dc) load_floats(p.dc + at, outside);
  load_floats(p.c + at, c);
  // MUTATE: per-step-c-before
  load_floats(b < before.count ? p.c + (before.first + b) * H + u : p.c0 + state, c_prev);
  for (int g = 0; g < 4; ++g) load_floats(static_cast<const T*>(p.gates) + row * 4 * H + g * H + u, z[g]);
  for (int v = 0; v < V; ++v) {
    const float gate[4] = {z[0][v], z[1][v], z[2][v], z[3][v]};
    float d_gates[4], dc_prev;
    LstmCell::backward<typename MathOf<T>::type>(gate, fresh ? 0.0f : c_prev[v], c[v], dh[v], dc[v] + outside[v],
                                                 d_gates, dc_prev);
    for (int g = 0; g < 4; ++g) z[g][v] = d_gates[g];
    dc[v] = fresh ? 0.0f : dc_prev;
  }
  store_floats(p.dc_state + state, dc);
  for (int g = 0; g < 4; ++g) store_floats(static_cast<T*>(p.d_gates) + row * 4 * H + g * H + u, z[g]);
}

}  // namespace fastlstm::cuda
