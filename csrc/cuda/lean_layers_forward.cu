// `lean`, forward, of several layers or both directions of one in one launch: a layer runs on its own blocks and goes a
// step behind the layer below, whose h it multiplies on the chip (lean_forward.cuh). L layers take T + L - 1 steps
// instead of T * L, and no product of the input comes between them.
#include "api.h"
#include "dispatch.h"
#include "lean_forward.cuh"

namespace fastlstm::cuda {
namespace {

template <class T, int Spans, int Groups, int Tiles, bool Dense>
__global__ void __launch_bounds__(kLeanThreads, 1) lean_layers_forward_kernel(const __grid_constant__ LayersArgs all) {
#if FASTLSTM_ARCH == 0 || FASTLSTM_ARCH >= 800
  const ForwardArgs& p = all.layers[int(blockIdx.x) / all.blocks];
  const int block = int(blockIdx.x) % all.blocks;
  if (p.below)
    LeanForward<T, Spans, Groups, Tiles, Dense, true>(p, block).run();
  else
    LeanForward<T, Spans, Groups, Tiles, Dense, false>(p, block).run();
#endif
}

template <class T, int Spans, int Groups, int Tiles>
int launch_shape(const LayersArgs& all, void* stream) {
  bool dense = true, below = false;
  for (int i = 0; i < all.count; ++i) {
    const ForwardArgs& p = all.layers[i];
    if (!all_aligned(p.w_hh, p.h0, p.h, p.zeros, p.w_ih, p.below)) return kInvalidValue;
    dense = dense && !p.s.offsets && !p.s.reset && !p.ids;
    below = below || p.below;
  }
  const auto kernel = dense ? lean_layers_forward_kernel<T, Spans, Groups, Tiles, true>
                            : lean_layers_forward_kernel<T, Spans, Groups, Tiles, false>;
  const size_t bytes = lean_forward_bytes(Spans, Groups, Tiles, all.layers[0].t.row_tiles, below);
  return launch("lean_layers_forward", kernel, {uint32_t(all.count * all.blocks), kLeanThreads, bytes, true}, stream,
                all);
}

}  // namespace

int lean_layers_forward(Type type, const LayersArgs& all, const int64_t* first, const int64_t* rows, void* stream) {
  return with_tensor_core_type(type, [&](auto sample) {
    using T = decltype(sample);
    const Tiling& t = all.layers[0].t;
    const int64_t row_bytes = int64_t(all.layers[0].s.H) * int(sizeof(T));
    for (int i = 0; i < all.count; ++i)
      if (const int code = mark_not_written(all.layers[i].h, row_bytes, first[i], rows[i], stream)) return code;
    const int chosen = lean_spans(t, all.layers[0].s.H, sizeof(T), false);
#define FASTLSTM_TRY(Spans, Groups, Tiles)                       \
  if (chosen == Spans && t.groups == Groups && t.phase == Tiles) \
    return launch_shape<T, Spans, Groups, Tiles>(all, stream);
    FASTLSTM_LEAN_LAYERS(FASTLSTM_TRY)
#undef FASTLSTM_TRY
    return kInvalidValue;
  });
}

}  // namespace fastlstm::cuda
