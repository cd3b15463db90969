// The sampling loop in one call: row of the token table → layers → scores → draw → next row (fastlstm.decode).
//
// Partition: with many streams and weights that stay in the second-level cache, each thread owns streams and needs no
// barrier. Otherwise threads own units and columns of the scores, read all weights once a step together, and
// synchronise after every layer. A stream that ends is replaced by the last active one, so work shrinks with the active
// streams.
#pragma once
#include "lstm_step.h"
#include "sampler.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::SampleArgs;

// Engine: StepEngine (lstm_step.h) or Int8Engine (int8_step.h)
template <class Engine, class Layer>
class SamplingLoop {
  using Args = SampleArgs<Layer>;

 public:
  explicit SamplingLoop(const Args& args)
      : a(args),
        order(active_streams()),
        n(int64_t(order.size())),
        h_row(round_up_16(a.P)),
        c_row(round_up_16(a.H)),
        s_row(round_up_16(a.V)),
        h_data(2 * a.L * n * h_row),
        c_data(a.L * n * c_row),
        h_unprojected_data(n * c_row),
        s_data(n * s_row),
        engine(a.layers, a.H, a.P, {h_data.get(), c_data.get(), h_unprojected_data.get(), a.L, n, c_row, h_row},
               make_partition()),
        samplers(size_t(engine.partition.threads), Sampler(a.options, a.V)) {}

  void run() {
    if (n == 0) return;
    for (int64_t slot = 0; slot < n; ++slot) copy_state<true>(slot, 0);
    engine.run([this](int i) { run_thread(i); });
  }

 private:
  std::vector<int64_t> active_streams() const {
    std::vector<int64_t> streams;
    for (int64_t b = 0; b < a.B; ++b)
      if (!a.ended[b]) streams.push_back(b);
    return streams;
  }

  // A partition by streams needs whole tiles for every thread and weights that each thread's cache holds (2 x 128
  // does). A partition by units costs a barrier a layer: a thread is worth it from some 30,000 products a step on.
  Partition make_partition() const {
    const int64_t products = a.V * a.P + Engine::weights(a.layers, a.L, a.H, a.P);
    const int64_t max_threads = a.threads < 1 ? 1 : a.threads;
    if (n >= max_threads * kTile && products * Engine::kWeightBytes <= (2 << 20)) return {int(max_threads), true};
    const int64_t useful = std::min({max_threads, products * n >> 15, c_row / kUnitBlock});
    return useful > 1 ? Partition{int(useful), false} : Partition{1, true};
  }

  void run_thread(int i) {
    const Partition& partition = engine.partition;
    const ThreadRank thread = partition.unit_rank(i);
    Range slots = partition.by_rows ? split(n, i, partition.threads) : Range{0, n};
    int side = 0;
    for (int64_t row = a.fed; row < a.known - 1 + a.T && slots.from < slots.to; ++row) {
      const int64_t* ids = a.ids + row * a.B;
      const auto table_row = [&](int64_t slot) { return a.layers[0].start + ids[order[size_t(slot)]] * c_row * 4; };
      for (int64_t l = 0; l < a.L; ++l) engine.layer(l, side, nullptr, 0, slots, thread, table_row);
      side ^= 1;
      if (row + 1 < a.known) continue;
      const float* h = engine.state.h(side, a.L - 1, 0);
      engine.product(a.w_out, a.P, h, h_row, a.b_out, s_data.get(), s_row, slots, thread);
      engine.sync();
      draw(row + 1, slots, thread, samplers[size_t(i)]);
      remove_ended(side, slots, thread);
    }
    if (thread.index > 0) return;
    for (int64_t slot = slots.from; slot < slots.to; ++slot) copy_state<false>(slot, side);
  }

  // Draws row `row` of the ids for the thread's part of the streams.
  void draw(int64_t row, Range slots, ThreadRank thread, Sampler& sampler) {
    const Range part = thread.split(slots.to - slots.from);
    for (int64_t slot = slots.from + part.from; slot < slots.from + part.to; ++slot) {
      const int64_t b = order[size_t(slot)], step = row - a.known;
      const float* scores = s_data.get() + slot * s_row;
      const bool lost = a.transitions && uint64_t(a.states[b]) >= uint64_t(a.state_count);
      const int32_t* transitions = a.transitions && !lost ? a.transitions + a.states[b] * a.V : nullptr;
      const int64_t id =
          lost ? Sampler::kFailed : sampler.draw(scores, transitions, a.options.position + uint64_t(step), uint64_t(b));
      a.ids[row * a.B + b] = id;
      a.ended[b] = id < 0 || stops(row, b);
      if (id < 0) continue;
      if (transitions) a.states[b] = transitions[id];
      if (a.log_probs) a.log_probs[step * a.B + b] = sampler.log_probability(scores, id);
    }
    engine.sync();
  }

  // True if a stop sequence ends with the id of stream b in this row.
  bool stops(int64_t row, int64_t b) const {
    for (int64_t s = 0; s < a.stop_count; ++s) {
      const int64_t length = a.stop_ends[s] - (s ? a.stop_ends[s - 1] : 0), first = row + 1 - length;
      if (first < a.drawn) continue;
      bool same = true;
      for (int64_t k = 0; k < length && same; ++k)
        same = a.ids[(first + k) * a.B + b] == a.stops[a.stop_ends[s] - length + k];
      if (same) return true;
    }
    return false;
  }

  // Fills the slots of streams that ended with the last active ones, and shortens `slots`.
  void remove_ended(int side, Range& slots, ThreadRank thread) {
    int64_t count = 0;
    for (int64_t slot = slots.from; slot < slots.to; ++slot) count += a.ended[order[size_t(slot)]];
    if (count == 0) return;
    engine.sync();
    if (thread.index == 0)
      for (int64_t slot = slots.from, to = slots.to; slot < to;) {
        if (!a.ended[order[size_t(slot)]]) {
          ++slot;
          continue;
        }
        copy_state<false>(slot, side);
        move(--to, slot, side);
      }
    slots.to -= count;
    engine.sync();
  }

  void move(int64_t from, int64_t to, int side) {
    if (from == to) return;
    order[size_t(to)] = order[size_t(from)];
    const StepState& state = engine.state;
    for (int64_t l = 0; l < a.L; ++l) {
      std::memcpy(state.h(side, l, to), state.h(side, l, from), size_t(h_row) * sizeof(float));
      std::memcpy(state.c(l, to), state.c(l, from), size_t(c_row) * sizeof(float));
    }
  }

  // The caller's state of a stream into its slot (in), or back
  template <bool in>
  void copy_state(int64_t slot, int side) {
    const int64_t b = order[size_t(slot)];
    const auto copy = [](float* caller, float* own, int64_t count) {
      std::memcpy(in ? own : caller, in ? caller : own, size_t(count) * sizeof(float));
    };
    const StepState& state = engine.state;
    for (int64_t l = 0; l < a.L; ++l) {
      copy(a.h + (l * a.B + b) * a.P, state.h(side, l, slot), a.P);
      copy(a.c + (l * a.B + b) * a.H, state.c(l, slot), a.H);
      if (in) std::memset(state.c(l, slot) + a.H, 0, size_t(c_row - a.H) * sizeof(float));
    }
  }

  const Args& a;
  std::vector<int64_t> order;  // slot → stream
  const int64_t n, h_row, c_row, s_row;
  Buffer<float> h_data, c_data, h_unprojected_data, s_data;
  Engine engine;
  std::vector<Sampler> samplers;  // of each thread
};

}  // namespace FASTLSTM_ISA
