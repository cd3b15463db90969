// What the files of bindings share: the kernels in use, and how many threads may run.
#pragma once
#include "../kernels.h"

const fastlstm::cpu::Kernels& kernels();  // of the instruction set in use
int usable_threads(int64_t threads);      // 1 after a fork
