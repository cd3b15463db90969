// Compiled once per instruction set (CMakeLists.txt sets FASTLSTM_ISA, FASTLSTM_ISA_NAME and the vector's bytes).
#include "../kernels.h"

#include "gemm.h"
#include "instance.h"
#include "lstm_backward.h"
#include "lstm_forward.h"
#include "lstm_small_call.h"
#include "lstm_step.h"
#include "sampling.h"

namespace FASTLSTM_ISA {

template <class R>
static void forward(const Shape& shape, const fastlstm::cpu::Forward<R>& args) {
  ForwardPass<RealProducts<R>>(shape, args).run();
}

template <class R>
static void backward(const Shape& shape, const fastlstm::cpu::Backward<R>& args) {
  BackwardPass<RealProducts<R>>(shape, args).run();
}

static void small_call(const SmallCall& args) { SmallCallPass(args).run(); }

template <class W>
static void step(const StepArgs<>& args) {
  lstm_step<StepEngine<W>>(args);
}

template <class W>
static void sample(const SampleArgs<>& args) {
  SamplingLoop<StepEngine<W>, StepLayer>(args).run();
}

// The gradient of a token table. Each thread owns columns, so every sum runs in the order of the rows.
template <class R>
static void sum_by_id(const fastlstm::cpu::SumById<R>& a) {
  const int threads = a.N * a.width < (1 << 16) || omp_in_parallel() ? 1 : a.threads;
  parallel_for(threads, threads, [&](int64_t part) {
    const Range columns = split(a.width, int(part), threads);
    for (int64_t n = 0; n < a.N; ++n) {
      R* to = a.out + a.ids[n] * a.width;
      const R* from = a.rows + n * a.width;
      for (int64_t k = columns.from; k < columns.to; ++k) to[k] += from[k];
    }
  });
}

template <class R>
static void unary(const R* x, R* y, int64_t n, int what) {
  for (int64_t k = 0; k < n; k += Vec<R>::width) {
    const Vec<R> v = Vec<R>::load(x + k, n - k);
    (what == 0 ? Math::sigmoid(v) : Math::tanh(v)).store(y + k, n - k);
  }
}

}  // namespace FASTLSTM_ISA

namespace fastlstm::cpu {

extern const Kernels FASTLSTM_TABLE(kernels_) = {
    ::FASTLSTM_ISA::kName,           ::FASTLSTM_ISA::forward<float>,   ::FASTLSTM_ISA::forward<double>,
    ::FASTLSTM_ISA::backward<float>, ::FASTLSTM_ISA::backward<double>, ::FASTLSTM_ISA::small_call,
    ::FASTLSTM_ISA::step<float>,     ::FASTLSTM_ISA::step<uint16_t>,   ::FASTLSTM_ISA::pack<float>,
    ::FASTLSTM_ISA::pack<uint16_t>,  ::FASTLSTM_ISA::sample<float>,    ::FASTLSTM_ISA::sample<uint16_t>,
    ::FASTLSTM_ISA::gumbel,          ::FASTLSTM_ISA::empty_workspaces, ::FASTLSTM_ISA::gemm<float>,
    ::FASTLSTM_ISA::gemm<double>,    ::FASTLSTM_ISA::sum_by_id<float>, ::FASTLSTM_ISA::sum_by_id<double>,
    ::FASTLSTM_ISA::unary<float>,    ::FASTLSTM_ISA::unary<double>,
};

}  // namespace fastlstm::cpu
