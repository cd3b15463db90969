// Weights in blocks, and the product of a few rows with a block: the kernel of single steps (lstm_step.h) and of the
// output layer (sampling.h).
//
// A block is up to 64 columns, one k after the other: block[k][columns]. In a layer it holds 16 units and their four
// gates, i, f, g, o; in a projection or output layer 64 columns, the last block a smaller multiple of 16. One row reads
// a block from one end to the other; several rows share what is read. Every sum runs over k in order, in one register,
// whatever the number of rows: the result of a row does not depend on the other rows.
#pragma once
#include "../kernels.h"
#include "threading.h"
#include "transpose.h"
#include "workspace.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::kUnitBlock;
using fastlstm::cpu::Pack;

inline constexpr int64_t kWideBlock = 64;
inline int64_t round_up_16(int64_t n) { return (n + 15) / 16 * 16; }

// A register of weights, stored as float or as the 16 bits of a bfloat16
FASTLSTM_INLINE Vec<float> load_as_float(const float* p) { return Vec<float>::load(p); }
FASTLSTM_INLINE Vec<float> load_as_float(const uint16_t* p) {
  // GCC's __builtin_convertvector would take four shuffles to widen half a register
#if FASTLSTM_VECTOR_BYTES == 64
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return Vec<float>(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
#elif FASTLSTM_VECTOR_BYTES == 32
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return Vec<float>(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
#else
  typedef uint16_t Half __attribute__((vector_size(FASTLSTM_VECTOR_BYTES / 2)));
  Half half;
  std::memcpy(&half, p, sizeof(half));
  return Vec<float>((Vec<float>::Raw)(__builtin_convertvector(half, Vec<float>::Int) << 16));
#endif
}

// Rows of a tile, and the registers of columns that a tile of so many rows takes at once.
inline constexpr int kTile = 6;
constexpr int columns_at_once(int rows) {
#if FASTLSTM_VECTOR_BYTES == 64
  return rows > 0 ? 4 : 0;
#else
  return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
#endif
}

// Bytes by which weights are prefetched. Several rows read a block a few registers of columns at a time, with gaps that
// the hardware prefetcher follows badly (64 streams gain 20 %). One row reads without gaps, and gains only where the
// weights come from the third-level cache or memory (bfloat16, 2 x 512, on an Intel Xeon: 15 %).
constexpr int64_t prefetch_distance(int rows) { return rows == 1 ? 4096 : 2048; }

// z[r][:] += sum_k v[r][k] * w[k][:]   for `rows` rows and `vecs` registers of columns of a block of `columns`.
// wide: columns is kWideBlock, and the stride of w a constant (one stream of 2 x 128 gains 5 %).
template <class W, int rows, int vecs, bool prefetch, bool wide>
__attribute__((noinline)) void tile_product_block(const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K,
                                                  float* z, int64_t z_row) {
  constexpr int width = Vec<float>::width;
  const int64_t stride = wide ? kWideBlock : columns;
  typename Vec<float>::Raw sum[rows][vecs];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int n = 0; n < vecs; ++n) sum[r][n] = Vec<float>::load(z + r * z_row + n * width).v;
#pragma GCC unroll 4
  for (int64_t k = 0; k < K; ++k, w += stride) {
    if constexpr (prefetch) {
#pragma GCC unroll 16
      for (int n = 0; n < vecs * width * int(sizeof(W)); n += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + prefetch_distance(rows) + n, 0, 3);
    }
    if constexpr (rows == 1) {
      const auto x = Vec<float>(v[k]).v;
#pragma GCC unroll 16
      for (int n = 0; n < vecs; ++n) sum[0][n] += x * load_as_float(w + n * width).v;
    } else {
      typename Vec<float>::Raw weight[vecs];
#pragma GCC unroll 16
      for (int n = 0; n < vecs; ++n) weight[n] = load_as_float(w + n * width).v;
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto x = Vec<float>(v[r * v_row + k]).v;
#pragma GCC unroll 16
        for (int n = 0; n < vecs; ++n) sum[r][n] += x * weight[n];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int n = 0; n < vecs; ++n) Vec<float>(sum[r][n]).store(z + r * z_row + n * width);
}

// The same for all columns of a block: as many registers at once as the rows leave free, then halves of that.
template <class W, int rows, bool prefetch, bool wide, int vecs = columns_at_once(rows)>
void rows_product_block(const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K, float* z, int64_t z_row,
                        int64_t at = 0) {
  constexpr int step = vecs * Vec<float>::width;
  for (; at + step <= columns; at += step)
    tile_product_block<W, rows, vecs, prefetch, wide>(w + at, columns, v, v_row, K, z + at, z_row);
  if constexpr (vecs > 1 && !wide)  // a wide block has no rest
    if (at < columns) rows_product_block<W, rows, prefetch, wide, vecs / 2>(w, columns, v, v_row, K, z, z_row, at);
}

// z[r][:columns] += v[r] @ block for up to kTile rows; rows of v and z are v_row and z_row apart. prefetch_weights: the
// weights are not in the second-level cache.
template <class W, bool wide>
void product_block(int rows, const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K, float* z,
                   int64_t z_row, bool prefetch_weights) {
  switch (rows) {
    case 1:
      return prefetch_weights ? rows_product_block<W, 1, true, wide>(w, columns, v, v_row, K, z, z_row)
                              : rows_product_block<W, 1, false, wide>(w, columns, v, v_row, K, z, z_row);
      // clang-format off
#define FASTLSTM_ROWS(n) case n: return rows_product_block<W, n, true, wide>(w, columns, v, v_row, K, z, z_row);
    FASTLSTM_ROWS(2) FASTLSTM_ROWS(3) FASTLSTM_ROWS(4) FASTLSTM_ROWS(5) FASTLSTM_ROWS(6)
#undef FASTLSTM_ROWS
      // clang-format on
  }
}

inline void store_weight(float* to, float w) { *to = w; }
// To the nearest bfloat16, ties to even; NaN stays NaN.
inline void store_weight(uint16_t* to, float w) {
  uint32_t bits;
  std::memcpy(&bits, &w, sizeof(bits));
  *to = w != w ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store_weights(float* to, Four<float> w) { std::memcpy(to, &w, sizeof(w)); }
inline void store_weights(uint16_t* to, Four<float> w) {
  for (int i = 0; i < 4; ++i) store_weight(to + i, w[i]);
}

// to[k * columns + u] = w[u * width + k] as W for u < real; zero for real <= u < lanes.
template <class W>
void pack_rows(W* to, int64_t columns, const float* w, int64_t width, int64_t lanes, int64_t real) {
  if (width == 1) {  // the rows of a token table, packed as so many matrices of one column
    int64_t i = 0;
    for (; i + 4 <= real; i += 4) store_weights(to + i, Four<float>{w[i], w[i + 1], w[i + 2], w[i + 3]});
    for (; i < lanes; ++i) store_weight(to + i, i < real ? w[i] : 0.0f);
    return;
  }
  for_transposed(w, width, real, width, lanes,
                 [&](int64_t k, int64_t u, Four<float> v) { store_weights(to + k * columns + u, v); });
}

// Block `block` of matrix number `matrix`
template <class W>
void pack_block(const Pack& a, int64_t matrix, int64_t block) {
  const int64_t u0 = block * (a.gates > 1 ? kUnitBlock : kWideBlock), left = round_up_16(a.units) - u0;
  const int64_t lanes = a.gates > 1 ? kUnitBlock : left < kWideBlock ? left : kWideBlock;
  const int64_t columns = a.gates * lanes, real = a.units - u0 < lanes ? a.units - u0 : lanes;
  W* out = static_cast<W*>(a.out) + a.gates * (matrix * round_up_16(a.units) + u0) * (a.I + a.P);
  for (int64_t g = 0; g < a.gates; ++g) {
    W* to = out + g * lanes;
    const int64_t row = (matrix * a.gates + g) * a.units + u0;
    if (a.I > 0) pack_rows(to, columns, a.w_x + row * a.I, a.I, lanes, real);
    pack_rows(to + a.I * columns, columns, a.w_h + row * a.P, a.P, lanes, real);
  }
}

template <class W>
void pack(const Pack& a) {
  const int64_t lanes = a.gates > 1 ? kUnitBlock : kWideBlock, blocks = (a.units + lanes - 1) / lanes;
  const int64_t size = a.count * a.gates * round_up_16(a.units) * (a.I + a.P) * int64_t(sizeof(W));
  advise_hugepages(a.out, size_t(size));
  const int threads = a.threads > 1 && a.count * blocks > 1 && !omp_in_parallel() ? a.threads : 1;
  parallel_for(a.count * blocks, threads, [&](int64_t i) { pack_block<W>(a, i / blocks, i % blocks); });
}

}  // namespace FASTLSTM_ISA
