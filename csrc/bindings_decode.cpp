// The decoder's part of fastlstm._C (fastlstm/decode.py): packing of weights, the sampling loop, its noise.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "bindings.h"

namespace py = pybind11;
using namespace fastlstm::cpu;

namespace {

// pointers: out, x, h; sizes: gates, units, I, P
void pack(const std::array<uintptr_t, 3>& p, const std::array<int64_t, 4>& sizes, bool half, int threads) {
  py::gil_scoped_release release;
  const auto [gates, units, I, P] = sizes;
  const Pack args{at<void>(p[0]), at<float>(p[1]), at<float>(p[2]), gates, units, I, P, usable(threads)};
  half ? kernels().pack_bf16(args) : kernels().pack_f32(args);
}

// pointers: ids, log_probs, h, c, ended, states, w_out, b_out, follows, stops, stop_ends; layers: start, w, w_hr of
// each sizes: stop_count, B, H, P, V, known, T, fed, drawn; drawing: temperature, top_k, top_p, seed, position
void decode(const std::array<uintptr_t, 11>& p, const std::vector<std::array<uintptr_t, 3>>& layers,
            const std::array<int64_t, 9>& sizes, const std::tuple<double, int64_t, double, uint64_t, uint64_t>& drawing,
            bool half, int threads) {
  py::gil_scoped_release release;
  std::vector<DecodeLayer> each;
  for (const auto& layer : layers) each.push_back({at<float>(layer[0]), at<void>(layer[1]), at<void>(layer[2])});
  const auto [stop_count, B, H, P, V, known, T, fed, drawn] = sizes;
  const auto [temperature, top_k, top_p, seed, position] = drawing;
  const Decode args{at<int64_t>(p[0]),
                    at<float>(p[1]),
                    at<float>(p[2]),
                    at<float>(p[3]),
                    at<uint8_t>(p[4]),
                    at<int32_t>(p[5]),
                    each.data(),
                    at<void>(p[6]),
                    at<float>(p[7]),
                    at<int32_t>(p[8]),
                    at<int64_t>(p[9]),
                    at<int64_t>(p[10]),
                    stop_count,
                    int64_t(each.size()),
                    B,
                    H,
                    P,
                    V,
                    known,
                    T,
                    fed,
                    drawn,
                    {temperature, top_k, top_p, seed, position},
                    usable(threads)};
  half ? kernels().decode_bf16(args) : kernels().decode_f32(args);
}

}  // namespace

void bind_decode(py::module_& m) {
  m.def("pack", &pack);
  m.def("decode", &decode);
  m.def("gumbel", [](uintptr_t noise, int64_t n, uint64_t seed, uint64_t position, uint64_t stream) {
    kernels().gumbel(at<double>(noise), n, seed, position, stream);
  });
}
