// Step by step inference with weights packed once (fastlstm/stream.py): every layer in one call, a skinny product each.
//
// Reading the weights is all the work, so they may be bfloat16 (half the bytes); products and sums are float32. Sixteen
// units and their gates are one block, k after k, so a block is read from one end to the other whatever the machine's
// registers are, and every row of the batch uses what was read. Threads own blocks and meet after every layer.
#pragma once
#include "../cell.h"
#include "math.h"
#include "team.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::StreamLayer;
using fastlstm::cpu::StreamStep;

// Weights are asked for this many bytes ahead: a core that also turns bfloat16 into float32 looks too little ahead by
// itself (2 x 512 gains 15 % on an Intel Xeon, whose third-level cache is slow; 2 x 128, which is near, nothing).
inline constexpr int64_t kWeightsAhead = 4096;
inline constexpr int kLanes = fastlstm::cpu::kStreamLanes;

FASTLSTM_INLINE Vec<float> load_weights(const float* p) { return Vec<float>::load(p); }
FASTLSTM_INLINE Vec<float> load_weights(const uint16_t* p) {
  typedef uint16_t Half __attribute__((vector_size(FASTLSTM_VECTOR_BYTES / 2)));
  Half half;
  std::memcpy(&half, p, sizeof(half));
  return Vec<float>((Vec<float>::Raw)(__builtin_convertvector(half, Vec<float>::Int) << 16));
}

template <class W>
class StreamPass {
  using V = Vec<float>;
  static constexpr int NV = kLanes / V::width;                       // registers of one gate's block
  static constexpr int kRows = FASTLSTM_VECTOR_BYTES == 64 ? 4 : 1;  // rows at once, as registers allow

 public:
  explicit StreamPass(const StreamStep& step) : s(step), plan(make_plan()), barrier(plan.threads) {}

  void run() {
    run_team(plan, barrier, [this](int i) { thread(i); });
  }

 private:
  // A thread is worth its barriers from about 128 KiB of weights a layer on.
  Plan make_plan() const {
    const int64_t bytes = 4 * s.H * (s.P + s.layers[s.L - 1].I) * int64_t(sizeof(W));
    const int64_t most = s.threads < 1 ? 1 : s.threads, useful = bytes / (1 << 17);
    const int64_t threads = useful < 1 ? 1 : useful < most ? useful : most;
    return {int(threads), threads == 1};
  }

  void thread(int i) {
    for (int64_t l = 0; l < s.L; ++l) {
      const float* x = l == 0 ? s.x : hidden(l - 1, 1);
      const Range units = share(s.H_padded / kLanes, i, plan.threads);
      for (int64_t block = units.from; block < units.to; ++block)
        rows([&](auto n, int64_t b) { cells<decltype(n)::value>(l, block, b, x); });
      barrier.wait();
      if (!s.layers[l].w_hr) continue;
      const Range out = share(s.P_padded / kLanes, i, plan.threads);
      for (int64_t block = out.from; block < out.to; ++block)
        rows([&](auto n, int64_t b) { project<decltype(n)::value>(l, block, b); });
      barrier.wait();
    }
  }

  template <class F>
  FASTLSTM_INLINE void rows(F&& tile) {
    int64_t b = 0;
    for (; b + kRows <= s.B; b += kRows) tile(std::integral_constant<int, kRows>(), b);
    for (; b < s.B; ++b) tile(std::integral_constant<int, 1>(), b);
  }

  // (B, P_padded) of layer l before (0) or after (1) this step
  float* hidden(int64_t l, int after) const { return s.h + (((s.side ^ after) * s.L) + l) * s.B * s.P_padded; }

  // sum += v (rows `stride` apart) times a block of K x gates x 16 weights; returns where the block ends
  template <int gates, int n>
  static FASTLSTM_INLINE const W* add(const W* w, const float* v, int64_t stride, int64_t K, V (&sum)[n][gates * NV]) {
    for (int64_t k = 0; k < K; ++k, w += gates * kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < gates * kLanes * int(sizeof(W)); i += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + kWeightsAhead + i, 0, 3);
#pragma GCC unroll 16
      for (int g = 0; g < gates * NV; ++g) {
        const V weight = load_weights(w + g * V::width);
#pragma GCC unroll 4
        for (int b = 0; b < n; ++b) sum[b][g] += weight * V(v[b * stride + k]);
      }
    }
    return w;
  }

  template <int n>
  FASTLSTM_INLINE void cells(int64_t l, int64_t block, int64_t b0, const float* x) {
    const StreamLayer& layer = s.layers[l];
    const int64_t u = block * kLanes, x_stride = l == 0 ? layer.I : s.P_padded;
    V sum[n][4 * NV];
    for (int b = 0; b < n; ++b)
      for (int g = 0; g < 4 * NV; ++g) sum[b][g] = V::load(layer.bias + 4 * u + g * V::width);
    const W* w = static_cast<const W*>(layer.w) + 4 * u * (layer.I + s.P);
    w = add<4, n>(w, x + b0 * x_stride, x_stride, layer.I, sum);
    add<4, n>(w, hidden(l, 0) + b0 * s.P_padded, s.P_padded, s.P, sum);
    for (int b = 0; b < n; ++b)
      for (int v = 0; v < NV; ++v) {
        V gate[4] = {sum[b][v], sum[b][NV + v], sum[b][2 * NV + v], sum[b][3 * NV + v]}, c, h;
        float* c_state = s.c + (l * s.B + b0 + b) * s.H_padded + u + v * V::width;
        fastlstm::LstmCell::forward<Math>(gate, V::load(c_state), c, h);
        c.store(c_state);
        if (layer.w_hr)
          h.store(s.y + (b0 + b) * s.H_padded + u + v * V::width);
        else
          emit(l, b0 + b, u + v * V::width, h);
      }
  }

  template <int n>
  FASTLSTM_INLINE void project(int64_t l, int64_t block, int64_t b0) {
    V sum[n][NV] = {};
    const W* w = static_cast<const W*>(s.layers[l].w_hr) + block * kLanes * s.H;
    add<1, n>(w, s.y + b0 * s.H_padded, s.H_padded, s.H, sum);
    for (int b = 0; b < n; ++b)
      for (int v = 0; v < NV; ++v) emit(l, b0 + b, block * kLanes + v * V::width, sum[b][v]);
  }

  FASTLSTM_INLINE void emit(int64_t l, int64_t b, int64_t at, V h) {
    h.store(hidden(l, 1) + b * s.P_padded + at);
    if (l == s.L - 1 && at < s.P) h.store(s.out + b * s.P + at, s.P - at);
  }

  const StreamStep& s;
  Plan plan;
  Barrier barrier;
};

}  // namespace FASTLSTM_ISA
