// Compiled once per instruction set that multiplies bfloat16 (CMakeLists.txt; FASTLSTM_TILES for AMX).
#include "../kernels.h"
#include "bfloat16_products.h"
#include "instance.h"
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

}  // namespace FASTLSTM_ISA

namespace fastlstm::cpu {

extern const BfloatKernels FASTLSTM_TABLE(bfloat_kernels_) = {
    ::FASTLSTM_ISA::kName,          ::FASTLSTM_ISA::empty_workspaces,   ::FASTLSTM_ISA::forward<uint16_t>,
    ::FASTLSTM_ISA::forward<float>, ::FASTLSTM_ISA::backward<uint16_t>, ::FASTLSTM_ISA::backward<float>,
};

}  // namespace fastlstm::cpu
