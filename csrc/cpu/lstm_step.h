// One time step of all layers with packed weights: the engine behind lstm_step (below) and the sampling loop.
//
// With few rows, reading the weights is all the work. They are packed once (weight_blocks.h), so that a step reads each
// block from one end to the other, and may be bfloat16, which halves the bytes; products and sums are float32. Threads
// either own rows, or own blocks of units and synchronise after every layer.
#pragma once
#include "../cell.h"
#include "math.h"
#include "weight_blocks.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::StepArgs;
using fastlstm::cpu::StepLayer;

// The cell on n units whose pre-activations are z[g * gate_stride + u]. Updates c and returns h.
FASTLSTM_INLINE Vec<float> step_cell(const float* z, int64_t gate_stride, float* c_state, int64_t n) {
  using V = Vec<float>;
  V gate[4], c, h;
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) gate[g] = V::load(z + g * gate_stride, n);
  fastlstm::LstmCell::forward<Math>(gate, V::load(c_state, n), c, h);
  c.store(c_state, n);
  return h;
}

// Packed weights of a thread up to this size stay in its second-level cache from one step to the next.
constexpr int64_t kStepL2Bytes = int64_t(512) << 10;

// The state of n rows. H and P are rounded up to 16; numbers past H and P are zero or not read.
struct StepState {
  float* h_data;              // (2, L, n, P): one side is read, the other is written
  float* c_data;              // (L, n, H)
  float* h_unprojected_data;  // (n, H) o tanh(c) before the projection; only with projection
  int64_t L, n, H, P;
  float* h(int side, int64_t l, int64_t row) const { return h_data + ((side * L + l) * n + row) * P; }
  float* c(int64_t l, int64_t row) const { return c_data + (l * n + row) * H; }
  float* h_unprojected(int64_t row) const { return h_unprojected_data + row * H; }
};

// Calls tile(row, n) for `rows` in pieces of up to kTile, of nearly the same size.
template <class F>
FASTLSTM_INLINE void step_tiles(Range rows, F&& tile) {
  const int64_t count = rows.to - rows.from, pieces = (count + kTile - 1) / kTile;
  for (int64_t i = 0; i < pieces; ++i) {
    const Range piece = split(count, int(i), int(pieces));
    tile(rows.from + piece.from, int(piece.to - piece.from));
  }
}

// out[row][:] = start + v[row] @ w for `rows`; w in wide blocks, width: columns of out; a null start is zero.
template <class W>
void wide_product(const void* w, int64_t K, const float* v, int64_t v_row, const float* start, float* out,
                  int64_t width, Range rows, ThreadRank thread, bool prefetch_weights) {
  const Range blocks = thread.split((width + kWideBlock - 1) / kWideBlock);
  for (int64_t block = blocks.from; block < blocks.to; ++block) {
    const int64_t at = block * kWideBlock, columns = width - at < kWideBlock ? width - at : kWideBlock;
    step_tiles(rows, [&](int64_t row, int n) {
      float* to = out + row * width + at;
      for (int r = 0; r < n; ++r)
        start ? std::memcpy(to + r * width, start + at, size_t(columns) * sizeof(float))
              : std::memset(to + r * width, 0, size_t(columns) * sizeof(float));
      const W* block_weights = static_cast<const W*>(w) + at * K;
      const float* rows_of_v = v + row * v_row;
      columns == kWideBlock
          ? product_block<W, true>(n, block_weights, columns, rows_of_v, v_row, K, to, width, prefetch_weights)
          : product_block<W, false>(n, block_weights, columns, rows_of_v, v_row, K, to, width, prefetch_weights);
    });
  }
}

template <class W>
class StepEngine {
  using V = Vec<float>;

 public:
  static constexpr int64_t kWeightBytes = sizeof(W);

  // H, P: the sizes of the layers, not rounded up
  StepEngine(const StepLayer* layers, int64_t H, int64_t P, const StepState& state, Partition threads)
      : state(state),
        partition(threads),
        barrier(partition.threads),
        layers_(layers),
        H_(H),
        P_(P),
        prefetch_weights_(weights(layers, state.L, H, P) * int64_t(sizeof(W)) / partition.threads > kStepL2Bytes) {}

  // Numbers in the weights of all layers
  static int64_t weights(const StepLayer* layers, int64_t L, int64_t H, int64_t P) {
    int64_t n = 0;
    for (int64_t l = 0; l < L; ++l) n += 4 * H * (layers[l].I + P) + (layers[l].w_hr ? H * P : 0);
    return n;
  }

  // thread(i) on every thread of the partition
  template <class Body>
  void run(Body&& thread) {
    parallel_region(partition, barrier, thread);
  }
  void sync() {
    if (!partition.by_rows) barrier.wait();
  }

  // Layer l for `rows`: reads side `side` of its h, writes the other. Layer 0 reads x (rows x_row apart, I numbers).
  // start(row): (blocks, 4, 16) numbers that the sums begin with in layer 0, of the bias or of the token table.
  template <class Start>
  void layer(int64_t l, int side, const float* x, int64_t x_row, Range rows, ThreadRank thread, Start start) {
    if (l > 0) x = state.h(side ^ 1, l - 1, 0), x_row = state.P;
    const Range blocks = thread.split(state.H / kUnitBlock);
    for (int64_t block = blocks.from; block < blocks.to; ++block)
      step_tiles(rows, [&](int64_t row, int n) {
        alignas(64) float z[kTile * kWideBlock];
        for (int r = 0; r < n; ++r) {
          const float* from = (l == 0 ? start(row + r) : layers_[l].start) + block * kWideBlock;
          std::memcpy(z + r * kWideBlock, from, kWideBlock * sizeof(float));
        }
        cells(l, side, block, row, n, x + row * x_row, x_row, z);
      });
    sync();
    const void* w_hr = layers_[l].w_hr;
    if (!w_hr) return;
    product(w_hr, H_, state.h_unprojected_data, state.H, nullptr, state.h(side ^ 1, l, 0), state.P, rows, thread);
    sync();
  }

  // See wide_product.
  void product(const void* w, int64_t K, const float* v, int64_t v_row, const float* start, float* out, int64_t width,
               Range rows, ThreadRank thread) {
    wide_product<W>(w, K, v, v_row, start, out, width, rows, thread, prefetch_weights_);
  }

  const StepState state;
  Partition partition;
  Barrier barrier;

 private:
  // One block of units of n rows: z += x @ W_ih^T + h @ W_hh^T, then the cell. x: the first row's.
  void cells(int64_t l, int side, int64_t block, int64_t row, int n, const float* x, int64_t x_row, float* z) {
    const StepLayer& layer = layers_[l];
    const W* w = static_cast<const W*>(layer.w) + block * kWideBlock * (layer.I + P_);
    if (layer.I > 0) product_block<W, true>(n, w, kWideBlock, x, x_row, layer.I, z, kWideBlock, prefetch_weights_);
    w += kWideBlock * layer.I;
    product_block<W, true>(n, w, kWideBlock, state.h(side, l, row), state.P, P_, z, kWideBlock, prefetch_weights_);
    for (int r = 0; r < n; ++r) {
      float* h = (layer.w_hr ? state.h_unprojected(row + r) : state.h(side ^ 1, l, row + r)) + block * kUnitBlock;
      float* c = state.c(l, row + r) + block * kUnitBlock;
#pragma GCC unroll 4
      for (int64_t u = 0; u < kUnitBlock; u += V::width)
        step_cell(z + r * kWideBlock + u, kUnitBlock, c + u, V::width).store(h + u);
    }
  }

  const StepLayer* layers_;
  int64_t H_, P_;
  bool prefetch_weights_;
};

// lstm_step: one step for B rows whose state the caller holds (fastlstm.LSTM.stream).
template <class Engine, class Layer>
void lstm_step(const StepArgs<Layer>& a) {
  const int64_t H = round_up_16(a.H), P = round_up_16(a.P);
  // A thread is worth its barriers from about 128 KiB of weights a layer on.
  const int64_t useful = 4 * a.H * (a.P + a.layers[a.L - 1].I) * Engine::kWeightBytes >> 17;
  const int64_t threads = useful < a.threads ? useful : a.threads;
  const Partition partition = threads > 1 ? Partition{int(threads), false} : Partition{1, true};
  Engine engine(a.layers, a.H, a.P, {a.h, a.c, a.h_unprojected, a.L, a.B, H, P}, partition);
  engine.run([&](int i) {
    const ThreadRank thread = engine.partition.unit_rank(i);
    for (int64_t l = 0; l < a.L; ++l)
      engine.layer(l, a.side, a.x, a.layers[0].I, {0, a.B}, thread, [&](int64_t) { return a.layers[0].start; });
    const Range rows = thread.split(a.B);
    for (int64_t b = rows.from; b < rows.to; ++b)
      std::memcpy(a.out + b * a.P, engine.state.h(a.side ^ 1, a.L - 1, b), size_t(a.P) * sizeof(float));
  });
}

}  // namespace FASTLSTM_ISA
