// The one place where the two ways to compile a kernel differ: nvcc for a GPU, or g++ for the host simulation
// (tests/hostsim/sim). Kernels use what this file defines and know of neither.
//
//   PTX(text, (outputs), (inputs))         one instruction; ordered with memory, never removed
//   PTX_VALUE(text, (outputs), (inputs))   one instruction that only computes its outputs
//   OUT_R(x) RW_R(x) IN_R(x)               operands as in asm(): R 32 bits, F float, H 16 bits, L 64 bits, N constant
//   FASTLSTM_ARCH                          compute capability the code is compiled for, times ten (0 on the host side)
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(FASTLSTM_HOSTSIM)

#include "sim/device.h"

#if !defined(FASTLSTM_ARCH)
#define FASTLSTM_ARCH 900
#endif
#define PTX_LIST(...) __VA_ARGS__
#define PTX(text, outs, ins)                                                                                    \
  do {                                                                                                          \
    const auto ptx_outs = ::hostsim::operands(PTX_LIST outs);                                                   \
    const auto ptx_ins = ::hostsim::operands(PTX_LIST ins);                                                     \
    ::hostsim::ptx(text, ptx_outs.data(), ptx_outs.size(), ptx_ins.data(), ptx_ins.size(), __FILE__, __LINE__); \
  } while (0)
#define PTX_VALUE PTX
#define OUT_R(x) ::hostsim::written('r', x)
#define OUT_F(x) ::hostsim::written('f', x)
#define OUT_H(x) ::hostsim::written('h', x)
#define OUT_L(x) ::hostsim::written('l', x)
#define RW_F(x) ::hostsim::updated('f', x)
#define IN_R(x) ::hostsim::given('r', x)
#define IN_F(x) ::hostsim::given('f', x)
#define IN_H(x) ::hostsim::given('h', x)
#define IN_L(x) ::hostsim::given('l', x)
#define IN_N(x) ::hostsim::given('n', x)

namespace fastlstm::cuda {

using ::hostsim::LaunchShape;

__device__ inline unsigned char* shared_memory() { return static_cast<unsigned char*>(::hostsim::dynamic_shared()); }
__device__ inline uint32_t shared_address(const void* where) { return ::hostsim::shared_address(where); }

__device__ inline void recompute(int&) {}
template <class P>
__device__ inline void compute_here(P*&) {}

// Vector accesses: one instruction of 8 or 16 bytes, aligned to its size.
template <class V>
__device__ V load_vector(const void* from) {
  ::hostsim::check_aligned(from, sizeof(V));
  return *static_cast<const V*>(from);
}
template <class V>
__device__ void store_vector(void* to, const V& value) {
  ::hostsim::check_aligned(to, sizeof(V));
  *static_cast<V*>(to) = value;
}

template <class Args>
int launch(const char* name, void (*kernel)(Args), const LaunchShape& shape, void* stream, const Args& args) {
  const auto entry = [](const void* code, const void* values) {
    reinterpret_cast<void (*)(Args)>(const_cast<void*>(code))(*static_cast<const Args*>(values));
  };
  return ::hostsim::submit(name, shape, stream, entry, reinterpret_cast<const void*>(kernel), &args, sizeof args);
}
inline int fill_bytes(void* memory, int byte, size_t bytes, void* stream) {
  return ::hostsim::submit_fill(memory, byte, bytes, stream);
}
inline const char* error_text(int) { return ::hostsim::last_error(); }

}  // namespace fastlstm::cuda

#else

#include <cuda_runtime.h>

#if defined(__CUDA_ARCH__)
#define FASTLSTM_ARCH __CUDA_ARCH__
#else
#define FASTLSTM_ARCH 0
#endif
#define PTX_LIST(...) __VA_ARGS__
#define PTX(text, outs, ins) asm volatile(text : PTX_LIST outs : PTX_LIST ins : "memory")
#define PTX_VALUE(text, outs, ins) asm(text : PTX_LIST outs : PTX_LIST ins)
#define OUT_R(x) "=r"(x)
#define OUT_F(x) "=f"(x)
#define OUT_H(x) "=h"(x)
#define OUT_L(x) "=l"(x)
#define RW_F(x) "+f"(x)
#define IN_R(x) "r"(x)
#define IN_F(x) "f"(x)
#define IN_H(x) "h"(x)
#define IN_L(x) "l"(x)
#define IN_N(x) "n"(x)

namespace fastlstm::cuda {

struct LaunchShape {
  uint32_t grid, block;
  size_t shared_bytes;
  bool cooperative;
};

extern __shared__ __align__(16) unsigned char fastlstm_shared[];
__device__ __forceinline__ unsigned char* shared_memory() { return fastlstm_shared; }
__device__ __forceinline__ uint32_t shared_address(const void* where) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(where));
}

// Makes a value look new, so that what follows from it is computed where it is used instead of being kept in registers
// through a loop.
__device__ __forceinline__ void recompute(int& value) { asm volatile("" : "+r"(value)); }
// The opposite: has a pointer computed before what follows, although it is used later.
template <class P>
__device__ __forceinline__ void compute_here(P*& pointer) {
  asm volatile("" : "+l"(pointer));
}

template <class V>
__device__ __forceinline__ V load_vector(const void* from) {
  return *static_cast<const V*>(from);
}
template <class V>
__device__ __forceinline__ void store_vector(void* to, const V& value) {
  *static_cast<V*>(to) = value;
}

// Launches a kernel whose only parameter is `args`. `name` is for the simulation's messages. The shared memory a kernel
// may ask for is a property of the kernel on this device. It only grows: a launch that a CUDA graph holds may need what
// an earlier one asked for.
template <class Args>
int launch(const char* name, void (*kernel)(Args), const LaunchShape& shape, void* stream, const Args& args) {
  (void)name;
  if (shape.shared_bytes > (48 << 10)) {
    cudaFuncAttributes now{};
    if (const auto code = cudaFuncGetAttributes(&now, kernel); code != cudaSuccess) return int(code);
    if (now.maxDynamicSharedSizeBytes < int(shape.shared_bytes)) {
      const auto code =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes));
      if (code != cudaSuccess) return int(code);
    }
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid);
  config.blockDim = dim3(shape.block);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative ? 1 : 0;
  return int(cudaLaunchKernelEx(&config, kernel, Args(args)));
}
inline int fill_bytes(void* memory, int byte, size_t bytes, void* stream) {
  return int(cudaMemsetAsync(memory, byte, bytes, static_cast<cudaStream_t>(stream)));
}
inline const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace fastlstm::cuda

#endif
