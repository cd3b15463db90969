// Weights in blocks, and a few rows times a block: the product of the decoder (decode.h).
//
// A block is up to 64 columns, for every k one after the other: block[k][columns]. In a layer it holds 16 units and
// their four gates, i, f, g, o; in an output layer 64 columns, the last block a smaller multiple of 16. One row reads a
// block from one end to the other, at the speed of the cache it lies in; many rows share what was read. Every sum runs
// over k in order in one register whatever the number of rows, so a row's result does not depend on its neighbours.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd.h"
#include "team.h"

namespace FASTLSTM_ISA {

inline constexpr int64_t kLaneBlock = 16, kWideBlock = 64;
inline int64_t up16(int64_t n) { return (n + kLaneBlock - 1) / kLaneBlock * kLaneBlock; }

FASTLSTM_INLINE Vec<float> load_block(const float* p) { return Vec<float>::load(p); }
FASTLSTM_INLINE Vec<float> load_block(const uint16_t* p) {
  typedef uint16_t Half __attribute__((vector_size(FASTLSTM_VECTOR_BYTES / 2)));
  Half half;
  std::memcpy(&half, p, sizeof(half));
  return Vec<float>((Vec<float>::Raw)(__builtin_convertvector(half, Vec<float>::Int) << 16));
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

// Several rows read a block a few registers of columns at a time, with gaps, which the machine's own prefetch follows
// badly: lines are asked for this many bytes ahead (64 streams gain 20 %). One row reads on and on; there it only
// costs.
inline constexpr int64_t kAhead = 2048;

// z[r][:] += sum_k v[r][k] * w[k][:]   for `rows` rows and `vecs` registers of columns
template <class W, int rows, int vecs>
__attribute__((noinline)) void tile_of_block(const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K,
                                             float* z, int64_t z_row) {
  constexpr int width = Vec<float>::width;
  typename Vec<float>::Raw sum[rows][vecs];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int n = 0; n < vecs; ++n) sum[r][n] = Vec<float>::load(z + r * z_row + n * width).v;
#pragma GCC unroll 4
  for (int64_t k = 0; k < K; ++k, w += columns) {
    if constexpr (rows == 1) {
      const auto x = Vec<float>(v[k]).v;
#pragma GCC unroll 16
      for (int n = 0; n < vecs; ++n) sum[0][n] += x * load_block(w + n * width).v;
    } else {
#pragma GCC unroll 16
      for (int n = 0; n < vecs * width * int(sizeof(W)); n += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead + n, 0, 3);
      typename Vec<float>::Raw weight[vecs];
#pragma GCC unroll 16
      for (int n = 0; n < vecs; ++n) weight[n] = load_block(w + n * width).v;
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
template <class W, int rows, int vecs = columns_at_once(rows)>
void rows_times_block(const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K, float* z, int64_t z_row,
                      int64_t at = 0) {
  constexpr int step = vecs * Vec<float>::width;
  for (; at + step <= columns; at += step) tile_of_block<W, rows, vecs>(w + at, columns, v, v_row, K, z + at, z_row);
  if constexpr (vecs > 1)
    if (at < columns) rows_times_block<W, rows, vecs / 2>(w, columns, v, v_row, K, z, z_row, at);
}

// z[r][:columns] += v[r] @ block for up to kTile rows; rows of v and z lie v_row and z_row apart
template <class W>
void times_block(int rows, const W* w, int64_t columns, const float* v, int64_t v_row, int64_t K, float* z,
                 int64_t z_row) {
  switch (rows) {
    // clang-format off
#define FASTLSTM_ROWS(n) case n: return rows_times_block<W, n>(w, columns, v, v_row, K, z, z_row);
    FASTLSTM_ROWS(1) FASTLSTM_ROWS(2) FASTLSTM_ROWS(3) FASTLSTM_ROWS(4) FASTLSTM_ROWS(5) FASTLSTM_ROWS(6)
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

// Large pages for memory that is read from end to end in every step: fewer misses of the page table's cache.
inline void ask_for_large_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, from = (uintptr_t(p) + page - 1) / page * page,
                  to = (uintptr_t(p) + bytes) / page * page;
  if (bytes >= (1 << 22) && to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

using fastlstm::cpu::Pack;

inline void store_weights(float* to, const float (&w)[4]) { std::memcpy(to, w, sizeof(w)); }
inline void store_weights(uint16_t* to, const float (&w)[4]) {
  for (int i = 0; i < 4; ++i) store_weight(to + i, w[i]);
}

// to[k][columns] of one gate's lanes from rows of w, 16 k at a time, so that what is written stays in the cache; four
// rows and four k are turned round in registers (half the time of one weight after another)
template <class W>
void pack_rows(W* to, int64_t columns, const float* w, int64_t width, int64_t lanes, int64_t real) {
  typedef float Four __attribute__((vector_size(16)));
  for (int64_t k0 = 0; k0 < width; k0 += 16) {
    const int64_t k1 = k0 + 16 < width ? k0 + 16 : width;
    for (int64_t j = 0; j < lanes; j += 4) {
      int64_t k = k0;
      for (; k + 4 <= k1 && j + 4 <= real; k += 4) {
        Four row[4];
        for (int i = 0; i < 4; ++i) std::memcpy(&row[i], w + (j + i) * width + k, sizeof(Four));
        for (int i = 0; i < 4; ++i) {
          const float column[4] = {row[0][i], row[1][i], row[2][i], row[3][i]};
          store_weights(to + (k + i) * columns + j, column);
        }
      }
      for (; k < k1; ++k)
        for (int64_t i = j; i < j + 4; ++i) store_weight(to + k * columns + i, i < real ? w[i * width + k] : 0.0f);
    }
  }
}

template <class W>
void pack_block(const Pack& a, int64_t block) {
  const int64_t u0 = block * (a.gates > 1 ? kLaneBlock : kWideBlock), left = up16(a.units) - u0;
  const int64_t lanes = a.gates > 1 ? kLaneBlock : left < kWideBlock ? left : kWideBlock;
  const int64_t columns = a.gates * lanes, real = a.units - u0 < lanes ? a.units - u0 : lanes;
  for (int64_t g = 0; g < a.gates; ++g) {
    W* to = static_cast<W*>(a.out) + a.gates * u0 * (a.I + a.P) + g * lanes;
    const int64_t row = g * a.units + u0;
    pack_rows(to, columns, a.x + row * a.I, a.I, lanes, real);
    pack_rows(to + a.I * columns, columns, a.h + row * a.P, a.P, lanes, real);
  }
}

template <class W>
void pack(const Pack& a) {
  const int64_t lanes = a.gates > 1 ? kLaneBlock : kWideBlock, blocks = (a.units + lanes - 1) / lanes;
  ask_for_large_pages(a.out, a.gates * up16(a.units) * (a.I + a.P) * int64_t(sizeof(W)));
  const int threads = a.threads > 1 && blocks > 1 && !omp_in_parallel() ? a.threads : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) pack_block<W>(a, block);
}

}  // namespace FASTLSTM_ISA
