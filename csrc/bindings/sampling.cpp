// sample: the sampling loop in one call, and its noise (fastlstm/sampling/kernel.py).
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "entry_point.h"
#include "packed_layer.h"

using namespace fastlstm::cpu;

namespace {

SamplingOptions options_of(Arguments& a) {
  return {.temperature = a.real("temperature"),
          .top_k = a.size("top_k"),
          .top_p = a.real("top_p"),
          .seed = a.unsigned_integer("seed"),
          .position = a.unsigned_integer("position")};
}

// The ends of stop sequences: each has an id at least, and the last ends where `stops` does.
const int64_t* stop_ends_of(Arguments& a, int64_t count, int64_t ids) {
  const int64_t* ends = a.copied<int64_t>("stop_ends", count);
  for (int64_t k = 0; k < count; ++k)
    if (ends[k] <= (k ? ends[k - 1] : 0) || ends[k] > ids)
      throw py::index_error("stop_ends hold " + std::to_string(ends[k]) + ", expected rising numbers up to " +
                            std::to_string(ids));
  return ends;
}

// layers_of(a, H, P, V): the checked layers; type: of w_out
template <class Layer, class LayersOf>
void run_sampling(Arguments& a, boundary::Type type, LayersOf layers_of, void (*kernel)(const SampleArgs<Layer>&)) {
  const bool automaton = a.given("transitions");
  const int64_t stop_count = a.size("stop_count"), known = a.size("known", 1), drawn = a.size("T");
  const int64_t fed = a.index("fed", known), B = a.size("B"), H = a.size("H", 1), P = a.size("P", 1),
                V = a.size("V", 1);
  const std::vector<Layer> layers = layers_of(a, H, P, V);
  const int64_t L = int64_t(layers.size());
  const int64_t states = automaton ? a.rows_of<const int32_t>("transitions", V) : 0;
  const int64_t stop_ids = stop_count ? a.count_of<const int64_t>("stops") : 0;
  const SampleArgs<Layer> args{
      .ids = a.array<int64_t>("ids", known + drawn, B),
      .log_probs = a.optional_array<float>("log_probs", drawn, B),
      .h = a.array<float>("h", a.product({L, B}), P),
      .c = a.array<float>("c", a.product({L, B}), H),
      .ended = a.array<uint8_t>("ended", B),
      .states = automaton ? a.array<int32_t>("states", B) : a.absent<int32_t>("states"),
      .layers = layers.data(),
      .w_out = a.array("w_out", type, packed_numbers(1, 1, V, P)),
      .b_out = a.array<const float>("b_out", round_up(V)),
      .transitions =
          automaton ? a.array<const int32_t>("transitions", states, V) : a.absent<const int32_t>("transitions"),
      .state_count = states,
      .stops = stop_count ? a.copied<int64_t>("stops", stop_ids) : a.absent<const int64_t>("stops"),
      .stop_ends = stop_count ? stop_ends_of(a, stop_count, stop_ids) : a.absent<const int64_t>("stop_ends"),
      .stop_count = stop_count,
      .L = L,
      .B = B,
      .H = H,
      .P = P,
      .V = V,
      .known = known,
      .T = drawn,
      .fed = fed,
      .drawn = a.size("drawn"),
      .options = options_of(a),
      .threads = usable_threads(a.size("threads", 1))};
  a.product({2 * L * B, round_up(H) + round_up(P) + round_up(V)});
  a.finish();
  for (int64_t k = fed * B; k < known * B; ++k)
    if (!args.ended[k % B] && uint64_t(args.ids[k]) >= uint64_t(V))  // of a stream that has ended they are -1
      throw py::index_error("ids hold " + std::to_string(args.ids[k]) + ", expected 0 to " + std::to_string(V - 1));
  py::gil_scoped_release release;
  kernel(args);
}

void sample(Arguments& a) {
  const bool bfloat16 = a.flag("bfloat16");
  const auto layers_of = [bfloat16](Arguments& arguments, int64_t H, int64_t P, int64_t V) {
    const auto given = arguments.objects<PackedLayer>("layers", "a list of StepLayer");
    return checked_layers(arguments, given, H, P, V, bfloat16);
  };
  run_sampling<StepLayer>(a, bfloat16 ? boundary::kBfloat16 : boundary::kFloat32, layers_of,
                          bfloat16 ? kernels().sample_bf16 : kernels().sample_f32);
}

void int8_sample(Arguments& a) {
  run_sampling<Int8Layer>(a, boundary::kFloat32, checked_int8_layers, int8_kernels().sample);
}

// The noise of one draw, for the tests
void gumbel(Arguments& a) {
  const int64_t n = a.size("n");
  double* noise = a.array<double>("noise", n);
  if (n % 8) a.bad_size("n", n, "a multiple of 8");
  const uint64_t seed = a.unsigned_integer("seed"), position = a.unsigned_integer("position");
  const uint64_t stream = a.unsigned_integer("stream");
  a.finish();
  kernels().gumbel(noise, n, seed, position, stream);
}

}  // namespace

void bind_sampling(py::module_& m) {
  define<&sample>(
      m, "sample",
      "Feeds and draws ids. Keywords: bfloat16 (else float weights), layers (a list of StepLayer), the other "
      "fields of SampleArgs and SamplingOptions in csrc/kernels.h.");
  define<&int8_sample>(m, "int8_sample", "The same with int8 weights: layers is a list of Int8Layer, w_out float.");
  define<&gumbel>(m, "gumbel",
                  "The noise of one draw, for the tests. Keywords: noise (float64), n, seed, position, stream.");
}
