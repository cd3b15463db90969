// What the files of bindings share: the kernels in use, how many threads may run, addresses as pointers.
#pragma once
#include "kernels.h"

const fastlstm::cpu::Kernels& kernels();
int usable(int threads);

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
