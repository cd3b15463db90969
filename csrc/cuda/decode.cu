// The sampling loop (decode.cuh) in its instances: two types of weights, four numbers of streams a pass.
#include "api.h"
#include "decode.cuh"
#include "dispatch.h"

namespace fastlstm::cuda {
namespace {

template <class W, int Streams>
__global__ void __launch_bounds__(kDecodeThreads, 1) decode_kernel(const __grid_constant__ DecodeArgs p) {
  Decode<W, Streams>(p).run();
}

template <class W>
int launch_tile(const DecodeArgs& p, void* stream) {
  const LaunchShape shape{uint32_t(p.plan.blocks), kDecodeThreads, size_t(p.plan.bytes), true};
  switch (p.plan.tile) {
    case 1:
      return launch("decode", decode_kernel<W, 1>, shape, stream, p);
    case 2:
      return launch("decode", decode_kernel<W, 2>, shape, stream, p);
    case 4:
      return launch("decode", decode_kernel<W, 4>, shape, stream, p);
    default:
      return launch("decode", decode_kernel<W, 8>, shape, stream, p);
  }
}

}  // namespace

int decode(Type weights, const DecodeArgs& p, void* stream) {
  for (int l = 0; l <= p.L; ++l)
    if (!all_aligned(p.weights[l])) return kInvalidValue;
  if (weights == Type::f32) return launch_tile<float>(p, stream);
  return weights == Type::bf16 ? launch_tile<bfloat_t>(p, stream) : kInvalidValue;
}

}  // namespace fastlstm::cuda
