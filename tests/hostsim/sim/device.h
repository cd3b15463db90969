// CUDA as a kernel sees it, on the CPU. csrc/cuda/compat.cuh includes this file in place of cuda_runtime.h, so that g++
// compiles the shipped .cuh files as they are. Everything here is declared only: kernels are compiled with
// -fsanitize=thread and their memory accesses arrive in hooks.cpp, the simulation itself is compiled without it.
//
// What a run shows: indexing, tails, fragment layouts, barriers, uninitialised reads and races on the schedules run.
// What it cannot show: time, the memory model of a real GPU, schedules that did not run.
#pragma once
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint3 {
  uint32_t x, y, z;
};

namespace hostsim {

// Where in the source a wait stands; filled in by default arguments.
struct Site {
  const char* file;
  int line;
};
#define HOSTSIM_HERE __builtin_FILE(), __builtin_LINE()

uint3 thread_idx();
uint3 block_idx();
uint3 block_dim();
uint3 grid_dim();
void* dynamic_shared();                      // first byte of the block's dynamic shared memory
uint32_t shared_address(const void* where);  // what __cvta_generic_to_shared gives; a fault if it is not shared memory

void check_aligned(const void* where, size_t bytes);  // a vector access needs its own size as alignment

void barrier(const char* file, int line);
void warp_sync(uint32_t mask, const char* file, int line);
uint32_t shuffle(uint32_t mask, uint32_t value, int source_lane, const char* file, int line);
uint32_t ballot(uint32_t mask, bool value, const char* file, int line);

// One operand of inline PTX: constraint letter as in asm(), and the variable or the value.
struct Operand {
  char kind;     // h 16 bits, r 32 bits, f float, l 64 bits
  void* target;  // of an output; null for an input
  uint64_t value;
};

template <class T>
Operand written(char kind, T& variable) {
  return {kind, &variable, 0};
}
template <class T>
Operand updated(char kind, T& variable) {
  Operand operand{kind, &variable, 0};
  for (size_t i = 0; i < sizeof(T); ++i)
    operand.value |= uint64_t(reinterpret_cast<const unsigned char*>(&variable)[i]) << (8 * i);
  return operand;
}
template <class T>
Operand given(char kind, T value) {
  Operand operand = updated(kind, value);
  operand.target = nullptr;
  return operand;
}
template <class... Operands>
std::array<Operand, sizeof...(Operands)> operands(Operands... all) {
  return {all...};
}

// Runs one PTX instruction, text and operands as nvcc gets them.
void ptx(const char* text, const Operand* out, size_t outs, const Operand* in, size_t ins, const char* file, int line);

struct LaunchShape {
  uint32_t grid, block;
  size_t shared_bytes;
  bool cooperative;
};

// Queues (and, unless held, runs) a kernel whose only parameter is a trivially copyable struct. Returns 0, or an error
// code whose text last_error() gives.
int submit(const char* name, const LaunchShape& shape, void* stream,
           void (*entry)(const void* kernel, const void* args), const void* kernel, const void* args,
           size_t args_bytes);
int submit_fill(void* memory, int byte, size_t bytes, void* stream);
const char* last_error();

}  // namespace hostsim

#define threadIdx (::hostsim::thread_idx())
#define blockIdx (::hostsim::block_idx())
#define blockDim (::hostsim::block_dim())
#define gridDim (::hostsim::grid_dim())

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::hostsim::barrier(file, line);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::hostsim::warp_sync(mask, file, line);
}
inline uint32_t __ballot_sync(uint32_t mask, bool value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  return ::hostsim::ballot(mask, value, file, line);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return __builtin_bit_cast(T, ::hostsim::shuffle(mask, __builtin_bit_cast(uint32_t, value), lane, file, line));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  const int lane = int(threadIdx.x % 32) ^ lane_mask;
  return __builtin_bit_cast(T, ::hostsim::shuffle(mask, __builtin_bit_cast(uint32_t, value), lane, file, line));
}
