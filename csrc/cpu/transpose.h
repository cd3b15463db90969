// Squares of four rows and four columns, transposed in registers: how weights are packed, whose rows lie in memory as
// torch keeps them. A number at a time takes twice as long.
#pragma once
#include "simd.h"

namespace FASTLSTM_ISA {

template <class R>
struct FourLanes {
  typedef R Vec __attribute__((vector_size(4 * sizeof(R))));
};
template <class R>
using Four = typename FourLanes<R>::Vec;

// column[i] = from[i], from[stride + i], from[2 * stride + i], from[3 * stride + i]   for i < 4
template <class R>
FASTLSTM_INLINE void transpose_4(const R* from, int64_t stride, Four<R> (&column)[4]) {
  Four<R> row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * stride, sizeof(row[i]));
#if defined(__x86_64__)
  if constexpr (sizeof(R) == sizeof(float)) {
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    for (int i = 0; i < 4; ++i) column[i] = row[i];
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) column[i] = Four<R>{row[0][i], row[1][i], row[2][i], row[3][i]};
}

// put(k, u, v): the numbers v[i] = from[(u + i) * stride + k], i < 4, for k < depth and u = 0, 4, ... < width (a
// multiple of 4); zero for rows from n on. 16 columns at a time, so that the lines that `put` writes stay in the
// first-level cache.
template <class R, class Put>
FASTLSTM_INLINE void for_transposed(const R* from, int64_t stride, int64_t n, int64_t depth, int64_t width, Put put) {
  for (int64_t k0 = 0; k0 < depth; k0 += 16) {
    const int64_t k1 = k0 + 16 < depth ? k0 + 16 : depth;
    for (int64_t u = 0; u < width; u += 4) {
      const R* rows = from + u * stride;
      int64_t k = k0;
      for (; k + 4 <= k1 && u + 4 <= n; k += 4) {
        Four<R> column[4];
        transpose_4(rows + k, stride, column);
        for (int i = 0; i < 4; ++i) put(k + i, u, column[i]);
      }
      for (; k < k1; ++k) {
        Four<R> column;
        for (int i = 0; i < 4; ++i) column[i] = u + i < n ? rows[i * stride + k] : R(0);
        put(k, u, column);
      }
    }
  }
}

// to[k * width + u] = from[u * stride + k]; see for_transposed.
template <class R>
void transpose_rows(const R* from, int64_t stride, int64_t n, int64_t depth, int64_t width, R* to) {
  for_transposed(from, stride, n, depth, width,
                 [&](int64_t k, int64_t u, Four<R> v) { std::memcpy(to + k * width + u, &v, sizeof(v)); });
}

}  // namespace FASTLSTM_ISA
