// Fibers: a stack of their own and a switch that makes no system call (System V x86-64).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hostsim {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest byte
};

// Stacks are handed out and taken back, each above a page that traps an overflow. Such a stack is two mappings of the
// process, of which Linux grants 65,530 to all simulations in it and everything else; a process without one left cannot
// even start a thread (Python then waits for it forever). So `trim` gives them up after a run that needed many.
class StackPool {
 public:
  StackPool();
  static constexpr size_t bytes = 64 << 10;

  char* take();  // std::runtime_error where the process has no room for one
  void give(char* stack) { free_.push_back(stack); }
  void trim();  // when all have been given back
  // True for every address in any stack: such memory is private to its thread.
  bool holds(uintptr_t address) const { return address - uintptr_t(base_) < reserved; }

 private:
  static constexpr size_t reserved = size_t(1) << 30;  // address space, not memory: 16,384 threads at once
  static constexpr size_t kept = 256 * bytes;          // by trim: what small runs use again and again
  char* base_ = nullptr;
  size_t used_ = 0;
  std::vector<char*> free_;
};

// Prepares `fiber` so that the first switch to it calls entry(); entry must never return.
void prepare(Fiber& fiber, void (*entry)());

extern "C" void hostsim_switch(void** save, void* load);

}  // namespace hostsim
