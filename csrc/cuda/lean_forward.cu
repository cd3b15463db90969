// `lean`, forward: cooperative_forward.cu's task for the types of the tensor cores and even rows, with a third of the
// instructions (lean_forward.cuh). Persistent RNN kernels: Diamos et al. 2016.
#include "api.h"
#include "dispatch.h"
#include "lean_forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T, int Spans, int Groups, int Tiles, bool Dense>
__global__ void __launch_bounds__(kLeanThreads, 1) lean_forward_kernel(const __grid_constant__ ForwardArgs p) {
#if FASTLSTM_ARCH == 0 || FASTLSTM_ARCH >= 800
  LeanForward<T, Spans, Groups, Tiles, Dense, false>(p, int(blockIdx.x)).run();
#endif
}

template <class T, int Spans, int Groups, int Tiles>
int launch_shape(const ForwardArgs& p, void* stream) {
  if (!all_aligned(p.w_hh, p.h0, p.h, p.zeros)) return kInvalidValue;
  const bool dense = !p.s.offsets && !p.s.reset && !p.ids;
  const auto kernel =
      dense ? lean_forward_kernel<T, Spans, Groups, Tiles, true> : lean_forward_kernel<T, Spans, Groups, Tiles, false>;
  const LaunchShape shape{uint32_t(p.t.unit_blocks * p.t.row_blocks), kLeanThreads,
                          size_t(lean_forward_bytes(Spans, Groups, Tiles, p.t.row_tiles, false)), true};
  return launch("lean_forward", kernel, shape, stream, p);
}

}  // namespace

int lean_forward(Type type, const ForwardArgs& p, int64_t first, int64_t rows, void* stream) {
  return with_tensor_core_type(type, [&](auto sample) {
    using T = decltype(sample);
    if (const int code = mark_not_written(p.h, int64_t(p.s.H) * int(sizeof(T)), first, rows, stream)) return code;
    const int chosen = lean_spans(p.t, p.s.H, sizeof(T), false);
#define FASTLSTM_TRY(Spans, Groups, Tiles)                           \
  if (chosen == Spans && p.t.groups == Groups && p.t.phase == Tiles) \
    return launch_shape<T, Spans, Groups, Tiles>(p, stream);
    FASTLSTM_LEAN_FORWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
    return kInvalidValue;
  });
}

}  // namespace fastlstm::cuda
