// `cooperative`, forward: z = x_gates + h' W_hhᵀ and the cell (forward.cuh), with W_hh spread over blocks that are all
// resident at once and exchange h through global memory, each word its own flag (exchange.cuh). For W_hh that does not
// fit one block but fits all of them. A block reads all of h of its sequences from L2 in a step. A step takes 2.3 to
// 3.4 µs on an H200 up to H 1024 and B 16: the exchange a third of a microsecond, the load of h a fifth, the rest is
// latency of dependent instructions. Persistent RNN kernels: Diamos et al. 2016.
#include "api.h"
#include "dispatch.h"
#include "forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(false), 1)
    cooperative_forward_kernel(const __grid_constant__ KernelParams<ForwardArgs> p) {
  const ThreadCoords thread(p.args.t);
  ForwardRun<T, GridExchange>(p, thread, GridExchange(p.layout, thread, p.args.status)).run();
}

}  // namespace

int cooperative_forward(Type type, const ForwardArgs& p, int64_t first, int64_t rows, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const int64_t row_bytes = int64_t(p.exchange_width) * int(sizeof(T));
    if (const int code = mark_not_written(p.exchange, row_bytes, first, rows, stream)) return code;
    const Layout l = forward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kForwardPieces, false>, false);
    return launch_recurrent("cooperative_forward", cooperative_forward_kernel<T>, p, l, rows_aligned(p, sizeof(T)),
                            true, stream);
  });
}

}  // namespace fastlstm::cuda
