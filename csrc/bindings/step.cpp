// Packing of weights, and lstm_step: one time step of all layers (fastlstm/modules/stream.py).
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "bindings.h"

using namespace fastlstm::cpu;

namespace {

StepLayer step_layer(uintptr_t start, uintptr_t w, uintptr_t w_hr, int64_t I) {
  return {.start = reinterpret_cast<const float*>(start),
          .w = reinterpret_cast<const void*>(w),
          .w_hr = reinterpret_cast<const void*>(w_hr),
          .I = I};
}

void pack(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const bool has_x = a.integer("I") > 0;
  const Pack args{.out = a.address<void>("out"),
                  .w_x = a.address_if<const float>(has_x, "w_x"),
                  .w_h = a.address<const float>("w_h"),
                  .count = a.integer("count"),
                  .gates = a.integer("gates"),
                  .units = a.integer("units"),
                  .I = a.integer("I"),
                  .P = a.integer("P"),
                  .threads = usable_threads(a.integer("threads"))};
  a.finish();
  py::gil_scoped_release release;
  bfloat16 ? kernels().pack_bf16(args) : kernels().pack_f32(args);
}

void lstm_step(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const std::vector<StepLayer> layers = a.objects<StepLayer>("layers");
  bool projected = false;
  for (const StepLayer& layer : layers) projected |= layer.w_hr != nullptr;
  const StepArgs args{.out = a.address<float>("out"),
                      .h = a.address<float>("h"),
                      .c = a.address<float>("c"),
                      .h_unprojected = a.address_if<float>(projected, "h_unprojected"),
                      .x = a.address<const float>("x"),
                      .layers = layers.data(),
                      .L = int64_t(layers.size()),
                      .B = a.integer("B"),
                      .H = a.integer("H"),
                      .P = a.integer("P"),
                      .side = int(a.integer("side")),
                      .threads = usable_threads(a.integer("threads"))};
  a.finish();
  py::gil_scoped_release release;
  bfloat16 ? kernels().step_bf16(args) : kernels().step_f32(args);
}

}  // namespace

void bind_step(py::module_& m) {
  using py::arg;
  py::class_<StepLayer>(m, "StepLayer", py::module_local(),
                        "Addresses of a layer's packed weights: StepLayer in csrc/kernels.h.")
      .def(py::init(&step_layer), py::kw_only(), arg("start"), arg("w"), arg("w_hr"), arg("I"));
  define<&pack>(m, "pack", "Packs weights. Keywords: bfloat16 (else float), the fields of Pack in csrc/kernels.h.");
  define<&lstm_step>(
      m, "lstm_step",
      "One time step of all layers. Keywords: bfloat16 (else float weights), layers (a list of StepLayer), "
      "the other fields of StepArgs in csrc/kernels.h.");
}
