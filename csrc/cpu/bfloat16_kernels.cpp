// Compiled once per instruction set that multiplies bfloat16 (CMakeLists.txt; FASTLSTM_TILES for AMX).
#include "../kernels.h"
#include "bfloat16_products.h"
#include "lstm_backward.h"
#include "lstm_forward.h"

namespace FASTLSTM_ISA {

template <class W>
static void forward(const Shape& shape, const fastlstm::cpu::Forward<float, bfloat16, W>& args) {
  ForwardPass<BfloatProducts<W>>(shape, args).run();
}

template <class W>
static void backward(const Shape& shape, const fastlstm::cpu::Backward<float, bfloat16, W>& args) {
  BackwardPass<BfloatProducts<W>>(shape, args).run();
}

static void empty_workspaces(int threads) {
  parallel_for(threads, threads, [](int64_t) { Workspace::clear(); });
}

static constexpr auto kName = FASTLSTM_ISA_NAME;

}  // namespace FASTLSTM_ISA

namespace fastlstm::cpu {

#define FASTLSTM_JOIN2(a, b) a##b
#define FASTLSTM_JOIN(a, b) FASTLSTM_JOIN2(a, b)
extern const BfloatKernels FASTLSTM_JOIN(bfloat_kernels_, FASTLSTM_ISA) = {
    ::FASTLSTM_ISA::kName,          ::FASTLSTM_ISA::empty_workspaces,   ::FASTLSTM_ISA::forward<uint16_t>,
    ::FASTLSTM_ISA::forward<float>, ::FASTLSTM_ISA::backward<uint16_t>, ::FASTLSTM_ISA::backward<float>,
};

}  // namespace fastlstm::cpu
