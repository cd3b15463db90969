#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#if !defined(__x86_64__)
#error "the host simulation switches stacks in x86-64 assembly"
#endif

// Saves what a call must preserve, changes stacks, restores. rdi: where to save the stack pointer; rsi: the one to
// load.
asm(R"(
.text
.globl hostsim_switch
.hidden hostsim_switch
.type hostsim_switch, @function
hostsim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hostsim_switch, .-hostsim_switch
)");

namespace hostsim {

namespace {
// Address space that traps, at an address or (null) anywhere.
void* reserve(void* at, size_t bytes) {
  const int fixed = at ? MAP_FIXED : 0;
  void* memory = mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("host simulation: no address space for the stacks of its threads");
  return memory;
}
}  // namespace

StackPool::StackPool() : base_(static_cast<char*>(reserve(nullptr, reserved))) {}

char* StackPool::take() {
  if (!free_.empty()) {
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  char* stack = base_ + used_;
  if (used_ + bytes > reserved || mprotect(stack + 4096, bytes - 4096, PROT_READ | PROT_WRITE))
    throw std::runtime_error("host simulation: no room for the stack of thread " + std::to_string(used_ / bytes) +
                             "; launch fewer threads, or raise vm.max_map_count");
  used_ += bytes;
  return stack;
}

void StackPool::trim() {
  if (used_ <= kept) return;
  reserve(base_, used_);
  used_ = 0;
  free_.clear();
}

void prepare(Fiber& fiber, void (*entry)()) {
  // At entry the stack pointer must be 8 below a multiple of 16, as after a call.
  auto top = reinterpret_cast<uintptr_t>(fiber.stack + StackPool::bytes) & ~uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top - 8);
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--frame = nullptr;
  fiber.stack_pointer = frame;
}

}  // namespace hostsim
