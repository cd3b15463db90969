// Inference of a whole stack of layers for a few rows and steps: the path of sampling and of reinforcement learning.
//
// Every weight is used once or a few times, so reading it is all the work: rows of W_ih and W_hh are read where torch
// keeps them, four gates side by side, and nothing is packed. Threads own units and meet after every layer and step.
#pragma once
#include "../cell.h"
#include "math.h"
#include "team.h"

namespace FASTLSTM_ISA {

using fastlstm::LstmCell;
using fastlstm::cpu::Stack;
using fastlstm::cpu::StackLayer;

class StackPass {
  using V = Vec<float>;

 public:
  explicit StackPass(const Stack& stack)
      : s(stack),
        z_data(4 * s.H * s.B),
        h_data(2 * s.L * s.B * s.H),
        plan(make_plan()),
        barrier(plan.threads),
        far(4 * s.H * (s.H * (2 * s.L - 1) + s.I) * int64_t(sizeof(float)) / plan.threads > kNearWeights) {}

  void run() {
    run_team(plan, barrier, [this](int i) { thread(i); });
  }

 private:
  // A thread is worth its barriers from about 64 K weights a layer on.
  Plan make_plan() const {
    const int64_t weights = 4 * s.H * (s.H + s.I);
    const int64_t most = s.threads < 1 ? 1 : s.threads, useful = weights / (1 << 16);
    const int64_t threads = useful < 1 ? 1 : useful < most ? useful : most;
    return {int(threads), threads == 1};
  }

  float* hidden(int64_t layer, int64_t side) { return h_data.get() + (layer * 2 + (side & 1)) * s.B * s.H; }

  void thread(int i) {
    const int64_t blocks = (s.H + V::width - 1) / V::width;
    Range units = share(blocks, i, plan.threads);
    units = {units.from * V::width, units.to * V::width < s.H ? units.to * V::width : s.H};
    for (int64_t l = 0; l < s.L; ++l)
      for (int64_t b = 0; b < s.B; ++b) start(l, b, units);
    barrier.wait();
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t l = 0; l < s.L; ++l) {
        const float* x = l == 0 ? s.x + t * s.B * s.I : hidden(l - 1, t + 1);
        step(l, t, x, l == 0 ? s.I : s.H, units);
        barrier.wait();
      }
    for (int64_t l = 0; l < s.L; ++l) copy(s.h_n + l * s.B * s.H, hidden(l, s.T), units);
  }

  void start(int64_t l, int64_t b, Range units) {
    const size_t bytes = size_t(units.to - units.from) * sizeof(float);
    const int64_t at = (l * s.B + b) * s.H + units.from;
    float* h = hidden(l, 0) + b * s.H + units.from;
    if (s.h0)
      std::memcpy(h, s.h0 + at, bytes);
    else
      std::memset(h, 0, bytes);
    if (s.c0)
      std::memcpy(s.c_n + at, s.c0 + at, bytes);
    else
      std::memset(s.c_n + at, 0, bytes);
  }

  void copy(float* to, const float* from, Range units) {
    for (int64_t b = 0; b < s.B; ++b)
      std::memcpy(to + b * s.H + units.from, from + b * s.H + units.from,
                  size_t(units.to - units.from) * sizeof(float));
  }

  // dot products of four rows of w (one unit's gates, gate_stride apart) with v. ahead: the weights come from afar,
  // and those further on in memory, of this row or the next, are asked for (2 x 512 gains 2 %; near ones lose as much)
  template <bool ahead>
  static FASTLSTM_INLINE void dot4(const float* w, int64_t gate_stride, const float* v, int64_t n, V (&sum)[4]) {
    int64_t k = 0;
    for (; k + V::width <= n; k += V::width) {
      const V x = V::load(v + k);
      for (int g = 0; g < 4; ++g) {
        if (ahead) __builtin_prefetch(w + g * gate_stride + k + kAheadInRow, 0, 3);
        sum[g] += V::load(w + g * gate_stride + k) * x;
      }
    }
    if (k < n) {
      const V x = V::load(v + k, n - k);
      for (int g = 0; g < 4; ++g) sum[g] += V::load(w + g * gate_stride + k, n - k) * x;
    }
  }

  void step(int64_t l, int64_t t, const float* x, int64_t I, Range units) {
    const StackLayer& w = s.layers[l];
    const int64_t H = s.H;
    const float* h = hidden(l, t);
    for (int64_t u = units.from; u < units.to; ++u)
      for (int64_t b = 0; b < s.B; ++b) {
        V sum[4] = {V(0.0f), V(0.0f), V(0.0f), V(0.0f)};
        if (far && b == 0) {
          dot4<true>(w.w_ih + u * I, H * I, x + b * I, I, sum);
          dot4<true>(w.w_hh + u * H, H * H, h + b * H, H, sum);
        } else {
          dot4<false>(w.w_ih + u * I, H * I, x + b * I, I, sum);
          dot4<false>(w.w_hh + u * H, H * H, h + b * H, H, sum);
        }
        for (int g = 0; g < 4; ++g)
          z_data.get()[(b * 4 + g) * H + u] =
              FASTLSTM_ISA::sum(sum[g]) + (w.b_ih ? w.b_ih[g * H + u] + w.b_hh[g * H + u] : 0.0f);
      }
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t u = units.from; u < units.to; u += V::width) cell(l, t, b, u, units.to - u);
  }

  FASTLSTM_INLINE void cell(int64_t l, int64_t t, int64_t b, int64_t u, int64_t n) {
    const int64_t H = s.H;
    float* c_state = s.c_n + (l * s.B + b) * H + u;
    V gate[4], c, h;
    for (int g = 0; g < 4; ++g) gate[g] = V::load(z_data.get() + (b * 4 + g) * H + u, n);
    LstmCell::forward<Math>(gate, V::load(c_state, n), c, h);
    c.store(c_state, n);
    h.store(hidden(l, t + 1) + b * H + u, n);
    if (l == s.L - 1) h.store(s.out + (t * s.B + b) * H + u, n);
  }

  // Weights of a thread that its second-level cache holds from one step to the next
  static constexpr int64_t kNearWeights = int64_t(1) << 20;
  static constexpr int64_t kAheadInRow = 256;

  const Stack& s;
  Buffer<float> z_data, h_data;
  Plan plan;
  Barrier barrier;
  bool far;
};

}  // namespace FASTLSTM_ISA
