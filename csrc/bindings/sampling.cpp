// sample: the sampling loop in one call, and its noise (fastlstm/sampling/kernel.py).
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "bindings.h"

using namespace fastlstm::cpu;

namespace {

SamplingOptions options_of(Arguments& a) {
  return {.temperature = a.real("temperature"),
          .top_k = a.integer("top_k"),
          .top_p = a.real("top_p"),
          .seed = a.unsigned_integer("seed"),
          .position = a.unsigned_integer("position")};
}

void sample(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const bool automaton = a.given("transitions"), stopping = a.integer("stop_count") > 0;
  const std::vector<StepLayer> layers = a.objects<StepLayer>("layers");
  const SampleArgs args{.ids = a.address<int64_t>("ids"),
                        .log_probs = a.optional_address<float>("log_probs"),
                        .h = a.address<float>("h"),
                        .c = a.address<float>("c"),
                        .ended = a.address<uint8_t>("ended"),
                        .states = a.address_if<int32_t>(automaton, "states"),
                        .layers = layers.data(),
                        .w_out = a.address<const void>("w_out"),
                        .b_out = a.address<const float>("b_out"),
                        .transitions = a.optional_address<const int32_t>("transitions"),
                        .stops = a.address_if<const int64_t>(stopping, "stops"),
                        .stop_ends = a.address_if<const int64_t>(stopping, "stop_ends"),
                        .stop_count = a.integer("stop_count"),
                        .L = int64_t(layers.size()),
                        .B = a.integer("B"),
                        .H = a.integer("H"),
                        .P = a.integer("P"),
                        .V = a.integer("V"),
                        .known = a.integer("known"),
                        .T = a.integer("T"),
                        .fed = a.integer("fed"),
                        .drawn = a.integer("drawn"),
                        .options = options_of(a),
                        .threads = usable_threads(a.integer("threads"))};
  a.finish();
  py::gil_scoped_release release;
  bfloat16 ? kernels().sample_bf16(args) : kernels().sample_f32(args);
}

// The noise of one draw, for the tests
void gumbel(uintptr_t noise, int64_t n, uint64_t seed, uint64_t position, uint64_t stream) {
  kernels().gumbel(reinterpret_cast<double*>(noise), n, seed, position, stream);
}

}  // namespace

void bind_sampling(py::module_& m) {
  define<&sample>(
      m, "sample",
      "Feeds and draws ids. Keywords: bfloat16 (else float weights), layers (a list of StepLayer), the other "
      "fields of SampleArgs and SamplingOptions in csrc/kernels.h.");
  m.def("gumbel", &gumbel);
}
