// `single_block`, forward: z = x_gates + h' W_hhᵀ and the cell (forward.cuh), with all of W_hh in one block, a block
// per tile of sequences, no synchronisation between blocks. For small H. W_hh is read once per block; in a step each
// warp reads h from shared memory once.
#include "api.h"
#include "dispatch.h"
#include "forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(true), 1)
    single_block_forward_kernel(const __grid_constant__ KernelParams<ForwardArgs> p) {
  const ThreadCoords thread(p.args.t);
  ForwardRun<T, BlockExchange>(p, thread, BlockExchange{p.layout, p.args.t}).run();
}

}  // namespace

int single_block_forward(Type type, const ForwardArgs& p, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Layout l = forward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kForwardPieces, true>, true);
    return launch_recurrent("single_block_forward", single_block_forward_kernel<T>, p, l, rows_aligned(p, sizeof(T)),
                            false, stream);
  });
}

}  // namespace fastlstm::cuda
