// The whole sampling loop in one call: row of the token table → layers → scores → draw → the next row
// (fastlstm/decode.py).
//
// Many streams with weights that stay in the second-level cache: each thread takes streams and never waits. Else
// threads share units and numbers, so that all weights are read once a step by all threads together, and meet after
// every layer. A stream that ends gives its place to the last one, so the work shrinks with the number of streams left.
#pragma once
#include "../cell.h"
#include "blocks.h"
#include "draw.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::Decode;
using fastlstm::cpu::DecodeLayer;

template <class W>
class DecodePass {
  using V = Vec<float>;
  struct Part {
    int index, of;
    Range of_blocks(int64_t n) const { return share(n, index, of); }
  };

 public:
  explicit DecodePass(const Decode& decode)
      : a(decode),
        order(streams()),
        n(int64_t(order.size())),
        h_row(up16(a.P)),
        c_row(up16(a.H)),
        s_row(up16(a.V)),
        h_data(2 * a.L * n * h_row),
        c_data(a.L * n * c_row),
        y_data(n * c_row),
        s_data(n * s_row),
        plan(make_plan()),
        drawers(size_t(plan.threads), Drawer(a.drawing, a.V)),
        barrier(plan.threads) {}

  void run() {
    if (n == 0) return;
    for (int64_t slot = 0; slot < n; ++slot) exchange<true>(slot, 0);
    run_team(plan, barrier, [this](int i) { thread(i); });
  }

 private:
  std::vector<int64_t> streams() const {
    std::vector<int64_t> found;
    for (int64_t b = 0; b < a.B; ++b)
      if (!a.ended[b]) found.push_back(b);
    return found;
  }

  // Splitting streams needs whole tiles for every thread and weights that each thread's cache holds (2 x 128 does).
  // Splitting units costs a barrier a layer: a thread is worth it from some 30,000 products a step on.
  Plan make_plan() const {
    int64_t products = a.V * a.P, most = a.threads < 1 ? 1 : a.threads;
    for (int64_t l = 0; l < a.L; ++l) products += 4 * a.H * ((l ? a.P : 0) + a.P) + (a.layers[l].w_hr ? a.H * a.P : 0);
    if (n >= most * kTile && products * int64_t(sizeof(W)) <= (2 << 20)) return {int(most), true};
    const int64_t useful = std::min({most, products * n >> 15, c_row / kLaneBlock});
    return useful > 1 ? Plan{int(useful), false} : Plan{1, true};
  }

  float* hidden(int64_t l, int side, int64_t slot) const {
    return h_data.get() + ((side * a.L + l) * n + slot) * h_row;
  }
  float* cell(int64_t l, int64_t slot) const { return c_data.get() + (l * n + slot) * c_row; }

  void wait() {
    if (!plan.split_rows) barrier.wait();
  }

  void thread(int i) {
    Range slots = plan.split_rows ? share(n, i, plan.threads) : Range{0, n};
    const Part part = plan.split_rows ? Part{0, 1} : Part{i, plan.threads};
    int side = 0;
    for (int64_t row = a.fed; row < a.known - 1 + a.T && slots.from < slots.to; ++row) {
      for (int64_t l = 0; l < a.L; ++l) layer(l, row, side, slots, part);
      side ^= 1;
      if (row + 1 < a.known) continue;
      score(side, slots, part);
      draw(row + 1, slots, part, drawers[size_t(i)]);
      retire(side, slots, part);
    }
    if (part.index > 0) return;
    for (int64_t slot = slots.from; slot < slots.to; ++slot) exchange<false>(slot, side);
  }

  void layer(int64_t l, int64_t row, int side, Range slots, Part part) {
    const Range blocks = part.of_blocks(c_row / kLaneBlock);
    for (int64_t block = blocks.from; block < blocks.to; ++block)
      tiles(slots, [&](int64_t slot, int rows) { cells(l, row, side, block, slot, rows); });
    wait();
    if (!a.layers[l].w_hr) return;
    product(a.layers[l].w_hr, a.H, y_data.get(), c_row, nullptr, hidden(l, side ^ 1, 0), h_row, slots, part);
    wait();
  }

  template <class F>
  void tiles(Range slots, F&& tile) {
    const int64_t count = slots.to - slots.from, pieces = (count + kTile - 1) / kTile;
    for (int64_t i = 0; i < pieces; ++i) {
      const Range rows = share(count, int(i), int(pieces));
      tile(slots.from + rows.from, int(rows.to - rows.from));
    }
  }

  // 16 units of up to kTile streams: from the table's row or the bias, what the layer reads and its own h to the new
  // state
  void cells(int64_t l, int64_t row, int side, int64_t block, int64_t slot, int rows) {
    alignas(64) float z[kTile * kWideBlock];
    const DecodeLayer& w = a.layers[l];
    for (int r = 0; r < rows; ++r) {
      const int64_t id = l ? 0 : a.ids[row * a.B + order[size_t(slot + r)]];
      std::memcpy(z + r * kWideBlock, w.start + (id * c_row + block * kLaneBlock) * 4, kWideBlock * sizeof(float));
    }
    const int64_t I = l ? a.P : 0;
    const W* weights = static_cast<const W*>(w.w) + block * kWideBlock * (I + a.P);
    if (l) times_block<W>(rows, weights, kWideBlock, hidden(l - 1, side ^ 1, slot), h_row, I, z, kWideBlock);
    weights += kWideBlock * I;
    times_block<W>(rows, weights, kWideBlock, hidden(l, side, slot), h_row, a.P, z, kWideBlock);
    for (int r = 0; r < rows; ++r)
      for (int64_t u = 0; u < kLaneBlock; u += V::width) {
        const float* at = z + r * kWideBlock + u;
        V gate[4] = {V::load(at), V::load(at + kLaneBlock), V::load(at + 2 * kLaneBlock), V::load(at + 3 * kLaneBlock)};
        float* c_at = cell(l, slot + r) + block * kLaneBlock + u;
        V c, h;
        fastlstm::LstmCell::forward<Math>(gate, V::load(c_at), c, h);
        c.store(c_at);
        h.store((w.w_hr ? y_data.get() + (slot + r) * c_row : hidden(l, side ^ 1, slot + r)) + block * kLaneBlock + u);
      }
  }

  // out[slot][:] = start + v[slot] @ w, w in wide blocks
  void product(const void* w, int64_t K, const float* v, int64_t v_row, const float* start, float* out, int64_t out_row,
               Range slots, Part part) {
    const Range blocks = part.of_blocks((out_row + kWideBlock - 1) / kWideBlock);
    for (int64_t block = blocks.from; block < blocks.to; ++block) {
      const int64_t at = block * kWideBlock, columns = std::min(out_row - at, kWideBlock);
      tiles(slots, [&](int64_t slot, int rows) {
        for (int r = 0; r < rows; ++r) {
          float* to = out + (slot + r) * out_row + at;
          start ? std::memcpy(to, start + at, size_t(columns) * sizeof(float))
                : std::memset(to, 0, size_t(columns) * sizeof(float));
        }
        times_block<W>(rows, static_cast<const W*>(w) + at * K, columns, v + slot * v_row, v_row, K,
                       out + slot * out_row + at, out_row);
      });
    }
  }

  void score(int side, Range slots, Part part) {
    product(a.w_out, a.P, hidden(a.L - 1, side, 0), h_row, a.b_out, s_data.get(), s_row, slots, part);
    wait();
  }

  // Writes row `row` of the ids for the streams of this part.
  void draw(int64_t row, Range slots, Part part, Drawer& drawer) {
    const Range mine = part.of_blocks(slots.to - slots.from);
    for (int64_t slot = slots.from + mine.from; slot < slots.from + mine.to; ++slot) {
      const int64_t b = order[size_t(slot)], step = row - a.known;
      const float* scores = s_data.get() + slot * s_row;
      const int32_t* follows = a.follows ? a.follows + a.states[b] * a.V : nullptr;
      const int64_t id = drawer.draw(scores, follows, a.drawing.position + uint64_t(step), uint64_t(b));
      a.ids[row * a.B + b] = id;
      a.ended[b] = id < 0 || stops(row, b);
      if (id < 0) continue;
      if (follows) a.states[b] = follows[id];
      if (a.log_probs) a.log_probs[step * a.B + b] = drawer.log_probability(scores, id);
    }
    wait();
  }

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

  // Takes streams that ended out of the work.
  void retire(int side, Range& slots, Part part) {
    int64_t count = 0;
    for (int64_t slot = slots.from; slot < slots.to; ++slot) count += a.ended[order[size_t(slot)]];
    if (count == 0) return;
    wait();
    if (part.index == 0)
      for (int64_t slot = slots.from, to = slots.to; slot < to;) {
        if (!a.ended[order[size_t(slot)]]) {
          ++slot;
          continue;
        }
        exchange<false>(slot, side);
        move(--to, slot, side);
      }
    slots.to -= count;
    wait();
  }

  void move(int64_t from, int64_t to, int side) {
    if (from == to) return;
    order[size_t(to)] = order[size_t(from)];
    for (int64_t l = 0; l < a.L; ++l) {
      std::memcpy(hidden(l, side, to), hidden(l, side, from), size_t(h_row) * sizeof(float));
      std::memcpy(cell(l, to), cell(l, from), size_t(c_row) * sizeof(float));
    }
  }

  // The caller's state of a stream into its slot (in), or back
  template <bool in>
  void exchange(int64_t slot, int side) {
    const int64_t b = order[size_t(slot)];
    const auto copy = [](float* theirs, float* ours, int64_t count) {
      std::memcpy(in ? ours : theirs, in ? theirs : ours, size_t(count) * sizeof(float));
    };
    for (int64_t l = 0; l < a.L; ++l) {
      copy(a.h + (l * a.B + b) * a.P, hidden(l, side, slot), a.P);
      copy(a.c + (l * a.B + b) * a.H, cell(l, slot), a.H);
      if (in) std::memset(cell(l, slot) + a.H, 0, size_t(c_row - a.H) * sizeof(float));
    }
  }

  const Decode& a;
  std::vector<int64_t> order;  // slot → stream
  const int64_t n, h_row, c_row, s_row;
  Buffer<float> h_data, c_data, y_data, s_data;
  Plan plan;
  std::vector<Drawer> drawers;
  Barrier barrier;
};

}  // namespace FASTLSTM_ISA
