// `lean`, backward: cooperative_backward.cu's task for the types of the tensor cores and even rows, with fewer
// instructions (lean_backward.cuh).
#include "api.h"
#include "dispatch.h"
#include "lean_backward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T, int Spans, int Splits, bool Dense>
__global__ void __launch_bounds__(kLeanThreads, 1) lean_backward_kernel(const __grid_constant__ BackwardArgs p) {
#if FASTLSTM_ARCH == 0 || FASTLSTM_ARCH >= 800
  LeanBackward<T, Spans, Splits, Dense, false>(p, int(blockIdx.x)).run();
#endif
}

template <class T, int Spans, int Splits>
int launch_shape(const BackwardArgs& p, void* stream) {
  if (!all_aligned(p.w_hh_t, p.exchange)) return kInvalidValue;
  const bool dense = !p.s.offsets && !p.s.reset;
  const auto kernel =
      dense ? lean_backward_kernel<T, Spans, Splits, true> : lean_backward_kernel<T, Spans, Splits, false>;
  const LaunchShape shape{uint32_t(p.t.unit_blocks * p.t.row_blocks), kLeanThreads,
                          size_t(lean_backward_bytes(Spans, Splits, p.t.row_tiles, false)), true};
  return launch("lean_backward", kernel, shape, stream, p);
}

}  // namespace

int lean_backward(Type type, const BackwardArgs& p, int64_t first, int64_t rows, void* stream) {
  return with_tensor_core_type(type, [&](auto sample) {
    using T = decltype(sample);
    if (const int code = mark_not_written(p, int64_t(p.s.H) * 4 * int(sizeof(T)), first, rows, stream)) return code;
    const int chosen = lean_spans(p.t, p.s.H, sizeof(T), true);
#define FASTLSTM_TRY(Spans, Splits) \
  if (chosen == Spans && p.t.gate_splits == Splits) return launch_shape<T, Spans, Splits>(p, stream);
    FASTLSTM_LEAN_BACKWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
    return kInvalidValue;
  });
}

}  // namespace fastlstm::cuda
