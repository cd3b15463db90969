// Packing of weights, and lstm_step: one time step of all layers (fastlstm/modules/stream.py).
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "entry_point.h"
#include "packed_layer.h"

using namespace fastlstm::cpu;

namespace {

// A tensor of packed weights
struct Packed {
  const void* data;
  int64_t numbers;
  boundary::Type type;
};

Packed packed(const char* name, const py::object& tensor) {
  boundary::View view;
  if (!boundary::look(tensor.ptr(), view) || !view.contiguous() || view.count() == 0 ||
      !(view.is(boundary::kFloat32) || view.is(boundary::kBfloat16)))
    throw std::runtime_error("StepLayer: " + std::string(name) + " is " + boundary::describe(tensor.ptr()) +
                             ", expected packed weights of float32 or bfloat16 on the CPU");
  return {view.data<void>(), view.count(), view.is(boundary::kFloat32) ? boundary::kFloat32 : boundary::kBfloat16};
}

PackedLayer packed_layer(const py::object& start, const py::object& w, const py::object& w_hr, int64_t I) {
  const Packed first = packed("start", start), weights = packed("w", w);
  const Packed projection = w_hr.is_none() ? Packed{nullptr, 0, weights.type} : packed("w_hr", w_hr);
  if (!(first.type == boundary::kFloat32) || !(projection.type == weights.type) || I < 0)
    throw std::runtime_error("StepLayer: start must be float32, w and w_hr of one type, and I 0 or more");
  return {{.start = static_cast<const float*>(first.data), .w = weights.data, .w_hr = projection.data, .I = I},
          first.numbers,
          weights.numbers,
          projection.numbers,
          weights.type,
          {start, w, w_hr}};
}

void pack(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const int64_t count = a.size("count", 1), gates = a.size("gates", 1), units = a.size("units", 1);
  const int64_t I = a.size("I"), P = a.size("P"), rows = a.product({count, gates, units});
  const int64_t numbers = a.product({count, gates, round_up(units), I + P});
  const Pack args{.out = a.array("out", bfloat16 ? boundary::kBfloat16 : boundary::kFloat32, numbers),
                  .w_x = I > 0 ? a.array<const float>("w_x", rows, I) : a.absent<const float>("w_x"),
                  .w_h = a.array<const float>("w_h", rows, P),
                  .count = count,
                  .gates = gates,
                  .units = units,
                  .I = I,
                  .P = P,
                  .threads = usable_threads(a.size("threads", 1))};
  a.finish();
  py::gil_scoped_release release;
  bfloat16 ? kernels().pack_bf16(args) : kernels().pack_f32(args);
}

void lstm_step(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const Objects<PackedLayer> given = a.objects<PackedLayer>("layers", "a list of StepLayer");
  const int64_t B = a.size("B", 1), H = a.size("H", 1), P = a.size("P", 1);
  const std::vector<StepLayer> layers = checked_layers(a, given, H, P, 0, bfloat16);
  bool projected = false;
  for (const StepLayer& layer : layers) projected |= layer.w_hr != nullptr;
  const StepArgs<> args = step_arguments(a, layers, B, H, P, projected, usable_threads(a.size("threads", 1)));
  a.finish();
  py::gil_scoped_release release;
  bfloat16 ? kernels().step_bf16(args) : kernels().step_f32(args);
}

}  // namespace

std::vector<StepLayer> checked_layers(Arguments& a, const Objects<PackedLayer>& layers, int64_t H, int64_t P, int64_t V,
                                      bool bfloat16) {
  std::vector<StepLayer> checked;
  checked.reserve(layers.size());
  if (layers.empty()) a.fail("needs at least one layer");
  const boundary::Type type = bfloat16 ? boundary::kBfloat16 : boundary::kFloat32;
  for (size_t k = 0; k < layers.size(); ++k) {
    const PackedLayer& given = *layers[k];
    const int64_t I = given.layer.I, starts = k == 0 && V > 0 ? V : 1;
    const bool width = k > 0 ? I == P : V > 0 ? I == 0 : I > 0;
    const bool projection = given.layer.w_hr ? given.w_hr_numbers == packed_numbers(1, 1, P, H) : P == H;
    if (!width || !projection || !(given.type == type) || given.start_numbers != packed_numbers(starts, 4, H, 1) ||
        given.w_numbers != packed_numbers(1, 4, H, I + P))
      throw std::runtime_error("layer " + std::to_string(k) + " was packed for other sizes than H = " +
                               std::to_string(H) + ", P = " + std::to_string(P) + ", or as another type");
    checked.push_back(given.layer);
  }
  return checked;
}

void bind_step(py::module_& m) {
  using py::arg;
  py::class_<PackedLayer>(m, "StepLayer", py::module_local(),
                          "A layer's packed weights, as tensors that it holds: StepLayer in csrc/kernels.h.")
      .def(py::init(&packed_layer), py::kw_only(), arg("start"), arg("w"), arg("w_hr"), arg("I"));
  define<&pack>(m, "pack", "Packs weights. Keywords: bfloat16 (else float), the fields of Pack in csrc/kernels.h.");
  define<&lstm_step>(
      m, "lstm_step",
      "One time step of all layers. Keywords: bfloat16 (else float weights), layers (a list of StepLayer), "
      "the other fields of StepArgs in csrc/kernels.h.");
}
