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

template <class T, int Pieces, bool Whole>
constexpr int kRegisterSpans = register_spans(std::is_same<T, float>::value, Pieces, Whole);

// Whether every pointer is a multiple of 16 bytes, as null is.
template <class... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) & 15) == 0;
}

// Launches a recurrent kernel; wide: 16-byte access works everywhere.
template <class Args>
int launch_recurrent(const char* name, void (*kernel)(KernelParams<Args>), const Args& p, const Layout& l, bool wide,
                     bool cooperative, void* stream) {
  const LaunchShape shape{uint32_t(p.t.unit_blocks * p.t.row_blocks), uint32_t(32 * l.warps), l.bytes, cooperative};
  return launch(name, kernel, shape, stream, KernelParams<Args>{p, l, wide});
}

}  // namespace fastlstm::cuda
