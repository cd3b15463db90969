// `persistent`, forward: W_hh spread over blocks that are all resident at once and hand h to each other through memory,
// the data being its own flag (exchange.cuh). The choice when W_hh does not fit one block but fits all of them. Per
// step a block reads all of h for its sequences from L2. A step takes 2.3 to 3.4 µs on an H200 up to H 1024 and B 16:
// the hand-over a third of a microsecond, the load of h a fifth, the rest is instructions that wait for each other.
#include "api.h"
#include "dispatch.h"
#include "forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * max_warps(false), 1)
    persistent_forward_kernel(const __grid_constant__ Laid<ForwardArgs> p) {
  const Place me(p.args.t);
  ForwardRun<T, BetweenBlocks>(p, me, BetweenBlocks(p.layout, me, p.args.status)).run();
}

}  // namespace

int persistent_forward(Type type, const ForwardArgs& p, int64_t first, int64_t rows, void* stream) {
  return with_type(type, [&](auto sample) {
    using T = decltype(sample);
    const int64_t row_bytes = int64_t(p.exchange_width) * int(sizeof(T));
    char* unset_from = static_cast<char*>(p.exchange) + first * row_bytes;
    if (const int code = fill_bytes(unset_from, 0xff, size_t(rows * row_bytes), stream)) return code;
    const Layout l = forward_layout(p.t, p.s.H, sizeof(T), kRegisterSpans<T, kForwardPieces, false>, false);
    return launch_laid("persistent_forward", persistent_forward_kernel<T>, p, l, rows_aligned(p, sizeof(T)), true,
                       stream);
  });
}

}  // namespace fastlstm::cuda
