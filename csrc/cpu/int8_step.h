// Steps of all layers with int8 weights: what StepEngine (lstm_step.h) is for float, for Int8LSTM.stream and
// fastlstm.decode. Threads own rows, or own blocks of units and synchronise twice a layer (int8_lstm.h).
#pragma once
#include "int8_lstm.h"
#include "lstm_step.h"

namespace FASTLSTM_ISA {

class Int8Engine {
 public:
  static constexpr int64_t kWeightBytes = 1;

  Int8Engine(const Int8Layer* layers, int64_t H, int64_t P, const StepState& rows, Partition threads)
      : state(rows),
        partition(threads),
        barrier(partition.threads),
        layers_(layers),
        H_(H),
        P_(P),
        h_read_(rows.n, P),
        input_(rows.n, std::max(P, layers[0].ih.w ? layers[0].I : 0)),
        gates_(rows.n * rows.H * 4),
        unprojected_(layers[0].hr.w ? rows.n : 0, H) {}

  // Numbers in the weights of all layers
  static int64_t weights(const Int8Layer* layers, int64_t L, int64_t H, int64_t P) {
    int64_t n = 0;
    for (int64_t l = 0; l < L; ++l) n += Int8LayerWork(layers[l], H, P).bytes();
    return n;
  }

  template <class Body>
  void run(Body&& thread) {
    parallel_region(partition, barrier, [&](int i) {
      [[maybe_unused]] const Int8Product::Scope scope{};
      thread(i);
    });
  }
  void sync() {
    if (!partition.by_rows) barrier.wait();
  }

  // See StepEngine. Without x, start(row) is the whole input side of layer 0.
  template <class Start>
  void layer(int64_t l, int side, const float* x, int64_t x_row, Range rows, ThreadRank thread, Start start) {
    const Int8LayerWork work(layers_[l], H_, P_);
    if (l > 0) x = state.h(side ^ 1, l - 1, 0), x_row = state.P;
    const Range own = part_of(rows, thread), blocks = thread.split(work.blocks());
    const Int8RowsView h_read = h_read_.view(), in{input_.view().q, input_.view().scale, int8_depth(work.w.I)};
    for (int64_t row = own.from; row < own.to; ++row) {
      h_read.set(row, state.h(side, l, row), P_);
      if (x) in.set(row, x + row * x_row, work.w.I);
    }
    sync();
    if (x) work.input(in, rows, blocks, gates_.get());
    const auto gates = [&](int64_t row) { return x ? gates_.get() + row * work.gates_row() : start(row); };
    const auto c = [&](int64_t row) { return state.c(l, row); };
    const auto h = [&](int64_t row) { return state.h(side ^ 1, l, row); };
    const auto unprojected = [&](int64_t row) { return state.h_unprojected(row); };
    if (!work.w.hr.w) {
      work.cells(h_read, rows, blocks, gates, c, h);
      return sync();
    }
    work.cells(h_read, rows, blocks, gates, c, unprojected);
    sync();
    for (int64_t row = own.from; row < own.to; ++row) unprojected_.view().set(row, unprojected(row), H_);
    sync();
    work.project(unprojected_.view(), rows, thread.split(work.projection_blocks()), h);
    sync();
  }

  // The output layer, which is float: see wide_product.
  void product(const void* w, int64_t K, const float* v, int64_t v_row, const float* start, float* out, int64_t width,
               Range rows, ThreadRank thread) {
    wide_product<float>(w, K, v, v_row, start, out, width, rows, thread,
                        width * K * int64_t(sizeof(float)) / partition.unit_threads() > kStepL2Bytes);
  }

  const StepState state;
  Partition partition;
  Barrier barrier;

 private:
  const Int8Layer* layers_;
  int64_t H_, P_;
  Int8RowsBuffer h_read_, input_;
  Buffer<float> gates_;
  Int8RowsBuffer unprojected_;
};

}  // namespace FASTLSTM_ISA
