// Compiled once per instruction set that multiplies int8 in its own way (CMakeLists.txt; FASTLSTM_TILES for AMX).
#include "../kernels.h"
#include "instance.h"
#include "int8_lstm.h"
#include "int8_step.h"
#include "sampling.h"

namespace FASTLSTM_ISA {

static void int8_step(const fastlstm::cpu::StepArgs<Int8Layer>& args) { lstm_step<Int8Engine>(args); }

static void int8_sample(const SampleArgs<Int8Layer>& args) { SamplingLoop<Int8Engine, Int8Layer>(args).run(); }

}  // namespace FASTLSTM_ISA

namespace fastlstm::cpu {

extern const Int8Kernels FASTLSTM_TABLE(kernels_) = {
    ::FASTLSTM_ISA::kName,       ::FASTLSTM_ISA::int8_forward,     ::FASTLSTM_ISA::int8_step,
    ::FASTLSTM_ISA::int8_sample, ::FASTLSTM_ISA::empty_workspaces,
};

}  // namespace fastlstm::cpu
