// The input side of a row: of x_gates, or with ids of the table.
#pragma once
#include "memory.cuh"
#include "rows.cuh"

namespace fastlstm::cuda {

// An id outside the table reads a row of NaN and sets the status word for the host. The launch continues: a
// trap would take the process's whole context with it.
template <class T>
__device__ __forceinline__ const T* input_row(const ForwardArgs& p, int64_t row) {
  if (!p.ids) return static_cast<const T*>(p.x_gates) + row * 4 * p.s.H;
  const int64_t id = p.ids[row];
  if (id >= 0 && id < p.V) return static_cast<const T*>(p.table) + id * 4 * p.s.H;
  store_status(p.status, kBadId);
  return static_cast<const T*>(p.absent);
}

}  // namespace fastlstm::cuda
