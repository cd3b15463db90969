// `single_block`, backward: d_gates of the cell and dh' = d_gates W_hh (backward.cuh), the counterpart of
// single_block_forward.cu.
#include "api.h"
#include "backward.cuh"
#include "dispatch.h"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(true), 1)
    single_block_backward_kernel(const __grid_constant__ KernelParams<BackwardArgs> p) {
  const ThreadCoords thread(p.args.t);
  BackwardRun<T, BlockExchange>(p, thread, BlockExchange{p.layout, p.args.t}).run();
}

}  // namespace

int single_block_backward(Type type, const BackwardArgs& p, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Layout l = backward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kBackwardPieces, true>, true);
    return launch_recurrent("single_block_backward", single_block_backward_kernel<T>, p, l, rows_aligned(p, sizeof(T)),
                            false, stream);
  });
}

}  // namespace fastlstm::cuda
