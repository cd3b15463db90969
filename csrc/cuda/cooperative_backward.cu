// `cooperative`, backward: d_gates of the cell and dh' = d_gates W_hh (backward.cuh), the counterpart of
// cooperative_forward.cu. Blocks exchange d_gates and, with gate_splits, partial sums of dh.
#include "api.h"
#include "backward.cuh"
#include "dispatch.h"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(false), 1)
    cooperative_backward_kernel(const __grid_constant__ KernelParams<BackwardArgs> p) {
  const ThreadCoords thread(p.args.t);
  BackwardRun<T, GridExchange>(p, thread, GridExchange(p.layout, thread, p.args.status)).run();
}

}  // namespace

int cooperative_backward(Type type, const BackwardArgs& p, int64_t first, int64_t rows, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    if (const int code = mark_not_written(p, int64_t(p.exchange_width) * 4 * int(sizeof(T)), first, rows, stream))
      return code;
    const Layout l = backward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kBackwardPieces, false>, false);
    return launch_recurrent("cooperative_backward", cooperative_backward_kernel<T>, p, l, rows_aligned(p, sizeof(T)),
                            true, stream);
  });
}

}  // namespace fastlstm::cuda
