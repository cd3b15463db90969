// Launches the kernels of `per_step`.
#include "api.h"
#include "dispatch.h"
#include "per_step.cuh"

namespace fastlstm::cuda {
namespace {

// Calls f<T, S>() for a type and the type of its products; half types take products in float or in their own type.
template <class F>
int with_types(Type type, Type products, F f) {
  const bool wide = products == Type::f32;
  switch (type) {
    case Type::f16:
      return wide ? f(half_t{}, float{}) : f(half_t{}, half_t{});
    case Type::bf16:
      return wide ? f(bfloat_t{}, float{}) : f(bfloat_t{}, bfloat_t{});
    default:
      return f(float{}, float{});
  }
}

LaunchShape shape_for(int rows, int width, int per_thread) {
  const int64_t threads = int64_t(rows) * width / per_thread;
  return {uint32_t((threads + kPerStepThreads - 1) / kPerStepThreads), kPerStepThreads, 0, false};
}

}  // namespace

int per_step_forward(Type type, Type products, const ForwardArgs& p, int rows, void* stream) {
  const bool wide =
      p.s.H % 4 == 0 && all_aligned(p.h, p.c, p.gates, p.h_n, p.c_n, p.x_gates, p.table, p.hw, p.h_unprojected);
  return with_types(type, products, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto kernel = wide ? per_step_forward<T, S, 4> : per_step_forward<T, S, 1>;
    return launch("per_step_forward", kernel, shape_for(rows, p.s.H, wide ? 4 : 1), stream, p);
  });
}

int per_step_backward_sum(Type type, Type products, const BackwardArgs& p, int rows, void* stream) {
  const bool wide = p.P % 4 == 0 && all_aligned(p.dh, p.dh_state, p.dh_proj);
  return with_types(type, products, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto kernel = wide ? per_step_backward_sum<T, S, 4> : per_step_backward_sum<T, S, 1>;
    return launch("per_step_backward_sum", kernel, shape_for(rows, p.P, wide ? 4 : 1), stream, p);
  });
}

int per_step_backward(Type type, Type products, const BackwardArgs& p, int rows, void* stream) {
  const bool wide = p.s.H % 4 == 0 &&
                    all_aligned(p.d_gates, p.dh_state, p.dc_state, p.dh, p.dc, p.gates, p.c, p.c0, p.dh_unprojected);
  return with_types(type, products, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto kernel = wide ? per_step_backward<T, S, 4> : per_step_backward<T, S, 1>;
    return launch("per_step_backward", kernel, shape_for(rows, p.s.H, wide ? 4 : 1), stream, p);
  });
}

const char* describe_error(int code) { return error_text(code); }
int timeout_ms() { return kTimeoutMs; }

}  // namespace fastlstm::cuda
