// `tile`, forward: the whole W_hh in one block, a block per tile of sequences, no synchronisation between blocks. The
// choice for small H. W_hh is read once per block; per step a block reads its h from shared memory once per warp.
#include "api.h"
#include "dispatch.h"
#include "forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) tile_forward_kernel(const __grid_constant__ Laid<ForwardArgs> p) {
  const Place me(p.args.t);
  ForwardRun<T, WithinBlock>(p, me, WithinBlock{p.layout, p.args.t}).run();
}

}  // namespace

int tile_forward(Type type, const ForwardArgs& p, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Layout l = forward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kForwardPieces>, true);
    const LaunchShape shape{uint32_t(p.t.unit_blocks * p.t.row_blocks), uint32_t(32 * l.warps), l.bytes, false};
    return launch("tile_forward", tile_forward_kernel<T>, shape, stream,
                  Laid<ForwardArgs>{p, l, rows_aligned(p, sizeof(T))});
  });
}

}  // namespace fastlstm::cuda
