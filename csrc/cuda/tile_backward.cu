// `tile`, backward: the counterpart of tile_forward.cu.
#include "api.h"
#include "backward.cuh"
#include "dispatch.h"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(true), 1)
    tile_backward_kernel(const __grid_constant__ Laid<BackwardArgs> p) {
  const Place me(p.args.t);
  BackwardRun<T, WithinBlock>(p, me, WithinBlock{p.layout, p.args.t}).run();
}

}  // namespace

int tile_backward(Type type, const BackwardArgs& p, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Layout l = backward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kBackwardPieces, true>, true);
    return launch_laid("tile_backward", tile_backward_kernel<T>, p, l, rows_aligned(p, sizeof(T)), false, stream);
  });
}

}  // namespace fastlstm::cuda
