// Compiled once per instruction set that multiplies int8 in its own way (CMakeLists.txt; FASTLSTM_TILES for AMX).
#include "../kernels.h"
#include "int8_lstm.h"

namespace FASTLSTM_ISA {

static constexpr auto kName = FASTLSTM_ISA_NAME;

}  // namespace FASTLSTM_ISA

namespace fastlstm::cpu {

#define FASTLSTM_JOIN2(a, b) a##b
#define FASTLSTM_JOIN(a, b) FASTLSTM_JOIN2(a, b)
extern const Int8Kernels FASTLSTM_JOIN(kernels_, FASTLSTM_ISA) = {
    ::FASTLSTM_ISA::kName,
    ::FASTLSTM_ISA::int8_forward,
    ::FASTLSTM_ISA::int8_step,
};

}  // namespace fastlstm::cpu
