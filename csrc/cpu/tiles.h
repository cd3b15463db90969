// The tiles of AMX, as the products of bfloat16 and int8 share them: eight registers of up to 16 rows of 64 bytes.
//
// Tiles 0 ... 3 are sums, 4 and 5 left sides, all of one number of rows; 6 and 7 are 16 rows of a right side.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "simd.h"

namespace FASTLSTM_ISA {

// A thread holds one while it multiplies.
class TileScope {
 public:
  TileScope() { rows_of_thread() = 0; }  // whatever was configured before is not ours
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  // From here on, sums and left sides have so many rows, 1 to 16.
  static FASTLSTM_INLINE void set_rows(int64_t rows) {
    if (rows_of_thread() != rows) configure(int(rows));
  }

 private:
  static int& rows_of_thread() {
    static thread_local int rows = 0;
    return rows;
  }

  static void configure(int rows) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int i = 0; i < 8; ++i) {
      config.bytes_of_row[i] = 64;
      config.rows[i] = uint8_t(i < 6 ? rows : 16);
    }
    __asm__ volatile("" ::: "memory");  // GCC 12 knows of 8 bytes that _tile_loadconfig reads
    _tile_loadconfig(&config);
    rows_of_thread() = rows;
  }
};

// Rows in pieces of one size of up to 16; the last begins earlier where they do not divide evenly.
struct TilePieces {
  int64_t rows, count, size;
  explicit TilePieces(int64_t n) : rows(n), count((n + 15) / 16), size(count ? (n + count - 1) / count : 0) {
    if (size) TileScope::set_rows(size);
  }
  int64_t first(int64_t i) const { return i + 1 < count ? i * size : rows - size; }
};

FASTLSTM_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

}  // namespace FASTLSTM_ISA
