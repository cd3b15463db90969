// What the files of bindings share: the kernels in use, and how many threads may run.
#pragma once
#include "../kernels.h"

const fastlstm::cpu::Kernels& kernels();               // of the instruction set in use
const fastlstm::cpu::BfloatKernels* bfloat_kernels();  // the same, or null: it does not multiply bfloat16
void empty_workspaces(int threads);                    // gives back the scratch memory of every set, of so many threads
int usable_threads(int64_t threads);                   // 1 after a fork
const fastlstm::cpu::Int8Kernels& int8_kernels();      // the int8 kernels in use
