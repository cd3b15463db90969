// `tile`, forward: the whole W_hh in one block, a block per tile of sequences, no synchronisation between blocks. The
// choice for small H. W_hh is read once per block; per step a block reads its h from shared memory once per warp.
#include "api.h"
#include "dispatch.h"
#include "forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(true), 1)
    tile_forward_kernel(const __grid_constant__ Laid<ForwardArgs> p) {
  const Place me(p.args.t);
  ForwardRun<T, WithinBlock>(p, me, WithinBlock{p.layout, p.args.t}).run();
}

}  // namespace

int tile_forward(Type type, const ForwardArgs& p, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Layout l = forward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kForwardPieces, true>, true);
    return launch_laid("tile_forward", tile_forward_kernel<T>, p, l, rows_aligned(p, sizeof(T)), false, stream);
  });
}

}  // namespace fastlstm::cuda
