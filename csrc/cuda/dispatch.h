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

// Fills h of a launch of `lean`, which its blocks exchange, with kNotWritten: `rows` rows from `first` on.
inline int mark_not_written(const ForwardArgs& p, int type_bytes, int64_t first, int64_t rows, void* stream) {
  const int64_t row_bytes = int64_t(p.s.H) * type_bytes;
  return fill_bytes(static_cast<char*>(p.h) + first * row_bytes, 0xff, size_t(rows * row_bytes), stream);
}

// Fills what the blocks of a backward launch exchange with kNotWritten: `rows` rows from `first` on, partial sums of
// dh.
inline int mark_not_written(const BackwardArgs& p, int64_t row_bytes, int64_t first, int64_t rows, void* stream) {
  char* from = static_cast<char*>(p.exchange) + first * row_bytes;
  if (const int code = fill_bytes(from, 0xff, size_t(rows * row_bytes), stream)) return code;
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
