// Sizes of packed weights (Pack in csrc/kernels.h), and a layer of them whose tensors are held.
#pragma once
#include <vector>

#include "../kernels.h"
#include "arguments.h"

constexpr int64_t round_up(int64_t n) {
  return (n + fastlstm::cpu::kUnitBlock - 1) / fastlstm::cpu::kUnitBlock * fastlstm::cpu::kUnitBlock;
}

// Numbers in `count` packed groups of `gates` matrices, each (units, columns); -1 if too many
inline int64_t packed_numbers(int64_t count, int64_t gates, int64_t units, int64_t columns) {
  return boundary::product({count, gates, round_up(units), columns});
}

// StepLayer of csrc/kernels.h as Python makes it: it holds the tensors, so their memory stays.
struct PackedLayer {
  fastlstm::cpu::StepLayer layer;
  int64_t start_numbers, w_numbers, w_hr_numbers;
  boundary::Type type;
  py::object held[3];
};

// The arguments of a step of all layers, which were checked. projected: they have projections.
template <class Layer>
fastlstm::cpu::StepArgs<Layer> step_arguments(Arguments& a, const std::vector<Layer>& layers, int64_t B, int64_t H,
                                              int64_t P, bool projected, int threads) {
  const int64_t L = int64_t(layers.size()), rows = a.product({L, B});
  return {
      .out = a.array<float>("out", B, P),
      .h = a.array<float>("h", 2 * rows, round_up(P)),
      .c = a.array<float>("c", rows, round_up(H)),
      .h_unprojected = projected ? a.array<float>("h_unprojected", B, round_up(H)) : a.absent<float>("h_unprojected"),
      .x = a.array<const float>("x", B, layers[0].I),
      .layers = layers.data(),
      .L = L,
      .B = B,
      .H = H,
      .P = P,
      .side = int(a.index("side", 2)),
      .threads = threads};
}

// The layers of a call, each checked against its sizes. V: ids of a token model, whose first layer has a table; else 0.
std::vector<fastlstm::cpu::StepLayer> checked_layers(Arguments& a, const Objects<PackedLayer>& layers, int64_t H,
                                                     int64_t P, int64_t V, bool bfloat16);

// The Int8Layers of a call ("layers"), each checked against its sizes. V: as above; kByTable: the first layer's input
// side is given by the call.
inline constexpr int64_t kByTable = -1;
std::vector<fastlstm::cpu::Int8Layer> checked_int8_layers(Arguments& a, int64_t H, int64_t P, int64_t V);
