// From run-time numbers to template instances and launches.
#pragma once
#include <type_traits>

#include "layout.h"
#include "types.cuh"

namespace fastlstm::cuda {

// Calls f with a value of the call's type.
template <class F>
int with_type(Type type, F f) {
  switch (type) {
    case Type::f32:
      return f(float{});
    case Type::tf32:
      return f(tf32_t{});
    case Type::f16:
      return f(half_t{});
    default:
      return f(bfloat_t{});
  }
}

// The same for the types that tensor cores multiply; kInvalidValue for float.
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue
template <class F>
int with_tensor_core_type(Type type, F f) {
  return with_type(type, [&](auto sample) {
    if constexpr (std::is_same<decltype(sample), float>::value)
      return kInvalidValue;
    else
      return f(sample);
  });
}

template <class T, int Pieces, bool Whole>
constexpr int kRegisterSpans = register_spans(std::is_same<T, float>::value, Pieces, Whole);

// Whether every pointer is a multiple of 16 bytes, as null is.
template <class... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) & 15) == 0;
}

// Fills `rows` rows from `first` on of what the blocks of a launch exchange with kNotWritten.
inline int mark_not_written(void* exchange, int64_t row_bytes, int64_t first, int64_t rows, void* stream) {
  return fill_bytes(static_cast<char*>(exchange) + first * row_bytes, 0xff, size_t(rows * row_bytes), stream);
}

// The same of a backward launch, and its partial sums of dh.
inline int mark_not_written(const BackwardArgs& p, int64_t row_bytes, int64_t first, int64_t rows, void* stream) {
  if (const int code = mark_not_written(p.exchange, row_bytes, first, rows, stream)) return code;
  if (p.t.gate_splits == 1) return 0;
  const size_t words = size_t(p.s.end - p.s.begin) * size_t(partial_words(p.t, p.s.B));
  return fill_bytes(p.partial, 0xff, 4 * words, stream);
}

// Launches a recurrent kernel; wide: 16-byte access works everywhere.
template <class Args>
int launch_recurrent(const char* name, void (*kernel)(KernelParams<Args>), const Args& p, const Layout& l, bool wide,
                     bool cooperative, void* stream) {
  const LaunchShape shape{uint32_t(p.t.unit_blocks * p.t.row_blocks), uint32_t(32 * l.warps), l.bytes, cooperative};
  return launch(name, kernel, shape, stream, KernelParams<Args>{p, l, wide});
}

}  // namespace fastlstm::cuda
