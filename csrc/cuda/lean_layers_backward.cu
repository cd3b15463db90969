// `lean`, backward, of several layers or both directions of one in one launch: a layer runs on its own blocks and goes
// a step behind the layer above, whose gradients it multiplies on the chip (lean_backward.cuh).
#include "api.h"
#include "dispatch.h"
#include "lean_backward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T, int Spans, bool Dense>
__global__ void __launch_bounds__(kLeanThreads, 1)
    lean_layers_backward_kernel(const __grid_constant__ LayersBackwardArgs all) {
#if FASTLSTM_ARCH == 0 || FASTLSTM_ARCH >= 800
  const BackwardArgs& p = all.layers[int(blockIdx.x) / all.blocks];
  const int block = int(blockIdx.x) % all.blocks;
  if (p.above)
    LeanBackward<T, Spans, 1, Dense, true>(p, block).run();
  else
    LeanBackward<T, Spans, 1, Dense, false>(p, block).run();
#endif
}

template <class T, int Spans>
int launch_shape(const LayersBackwardArgs& all, void* stream) {
  bool dense = true, above = false;
  for (int i = 0; i < all.count; ++i) {
    const BackwardArgs& p = all.layers[i];
    if (!all_aligned(p.w_hh_t, p.exchange, p.w_above_t)) return kInvalidValue;
    dense = dense && !p.s.offsets && !p.s.reset;
    above = above || p.above;
  }
  const auto kernel =
      dense ? lean_layers_backward_kernel<T, Spans, true> : lean_layers_backward_kernel<T, Spans, false>;
  const size_t bytes = lean_backward_bytes(Spans, 1, all.layers[0].t.row_tiles, above);
  return launch("lean_layers_backward", kernel, {uint32_t(all.count * all.blocks), kLeanThreads, bytes, true}, stream,
                all);
}

}  // namespace

int lean_layers_backward(Type type, const LayersBackwardArgs& all, const int64_t* first, const int64_t* rows,
                         void* stream) {
  return with_tensor_core_type(type, [&](auto sample) {
    using T = decltype(sample);
    const int H = all.layers[0].s.H;
    for (int i = 0; i < all.count; ++i)
      if (const int code = mark_not_written(all.layers[i], int64_t(H) * 4 * int(sizeof(T)), first[i], rows[i], stream))
        return code;
    const int chosen = lean_spans(all.layers[0].t, H, sizeof(T), true);
#define FASTLSTM_TRY(Spans) \
  if (chosen == Spans && all.layers[0].t.gate_splits == 1) return launch_shape<T, Spans>(all, stream);
    FASTLSTM_LEAN_LAYERS_BACKWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
    return kInvalidValue;
  });
}

}  // namespace fastlstm::cuda
