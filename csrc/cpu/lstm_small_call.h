// Inference of all layers for few rows and steps (T·B <= 4, bindings/small_call.cpp).
//
// Every weight is used once or a few times, so reading it is all the work. Rows of W_ih and W_hh are read in torch's
// own layout, the four gates of a unit side by side, and nothing is packed: packing would read the weights once more
// and write them. Threads own units and synchronise after every layer and step.
#pragma once
#include "lstm_step.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::PlainLayer;
using fastlstm::cpu::SmallCall;

class SmallCallPass {
  using V = Vec<float>;

 public:
  explicit SmallCallPass(const SmallCall& call)
      : s(call),
        z_data(4 * s.H * s.B),
        h_data(2 * s.L * s.B * s.H),
        partition(make_partition()),
        barrier(partition.threads),
        prefetch_weights(4 * s.H * (s.H * (2 * s.L - 1) + s.I) * int64_t(sizeof(float)) / partition.threads >
                         kL2Bytes) {}

  void run() {
    parallel_region(partition, barrier, [this](int i) { run_thread(i); });
  }

 private:
  // A thread is worth its barriers from about 64 K weights a layer on.
  Partition make_partition() const {
    const int64_t weights = 4 * s.H * (s.H + s.I);
    const int64_t max_threads = s.threads < 1 ? 1 : s.threads, useful = weights / (1 << 16);
    const int64_t threads = useful < 1 ? 1 : useful < max_threads ? useful : max_threads;
    return {int(threads), threads == 1};
  }

  float* hidden(int64_t layer, int64_t side) { return h_data.get() + (layer * 2 + (side & 1)) * s.B * s.H; }

  void run_thread(int i) {
    const Range units = partition.rank(i).split(s.H, V::width);
    for (int64_t l = 0; l < s.L; ++l)
      for (int64_t b = 0; b < s.B; ++b) load_state(l, b, units);
    barrier.wait();
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t l = 0; l < s.L; ++l) {
        const float* x = l == 0 ? s.x + t * s.B * s.I : hidden(l - 1, t + 1);
        step(l, t, x, l == 0 ? s.I : s.H, units);
        barrier.wait();
      }
    for (int64_t l = 0; l < s.L; ++l) copy(s.h_n + l * s.B * s.H, hidden(l, s.T), units);
  }

  void load_state(int64_t l, int64_t b, Range units) {
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

  // sum[g] += w[g * gate_stride :][:n] * v[:n], four rows of w: the gates of one unit. prefetch: the weights are not in
  // the second-level cache; those that follow in memory are fetched (2 x 512 gains 2 %; cached weights lose as much).
  template <bool prefetch>
  static FASTLSTM_INLINE void dot4(const float* w, int64_t gate_stride, const float* v, int64_t n, V (&sum)[4]) {
    int64_t k = 0;
    for (; k + V::width <= n; k += V::width) {
      const V x = V::load(v + k);
      for (int g = 0; g < 4; ++g) {
        if (prefetch) __builtin_prefetch(w + g * gate_stride + k + kPrefetchInRow, 0, 3);
        sum[g] += V::load(w + g * gate_stride + k) * x;
      }
    }
    if (k < n) {
      const V x = V::load(v + k, n - k);
      for (int g = 0; g < 4; ++g) sum[g] += V::load(w + g * gate_stride + k, n - k) * x;
    }
  }

  void step(int64_t l, int64_t t, const float* x, int64_t I, Range units) {
    const PlainLayer& w = s.layers[l];
    const int64_t H = s.H;
    const float* h = hidden(l, t);
    for (int64_t u = units.from; u < units.to; ++u)
      for (int64_t b = 0; b < s.B; ++b) {
        V sum[4] = {V(0.0f), V(0.0f), V(0.0f), V(0.0f)};
        if (prefetch_weights && b == 0) {
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
    const V h = step_cell(z_data.get() + b * 4 * H + u, H, s.c_n + (l * s.B + b) * H + u, n);
    h.store(hidden(l, t + 1) + b * H + u, n);
    if (l == s.L - 1) h.store(s.out + (t * s.B + b) * H + u, n);
  }

  // Weights of a thread up to this size are not prefetched
  static constexpr int64_t kL2Bytes = int64_t(1) << 20;
  static constexpr int64_t kPrefetchInRow = 256;  // numbers of a row of w by which it is prefetched

  const SmallCall& s;
  Buffer<float> z_data, h_data;
  Partition partition;
  Barrier barrier;
  bool prefetch_weights;
};

}  // namespace FASTLSTM_ISA
