// From run-time numbers to template instances.
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

template <class T, int Pieces>
constexpr int kRegisterSpans = register_spans(std::is_same<T, float>::value, Pieces);

}  // namespace fastlstm::cuda
