// Asynchronous copies into shared memory, and the words that blocks exchange through global memory.
//
// Each exchanged word is its own flag: the buffer is filled with kNotWritten (all ones) before the launch, and a word
// that differs has been written. Words are read and written by relaxed accesses at gpu scope: nvcc neither keeps those
// in a register nor reads them through the read-only cache. A pointer to exchanged words is never const __restrict__.
// No order between words is needed or assumed.
#pragma once
#include "args.h"
#include "types.cuh"

namespace fastlstm::cuda {

constexpr uint32_t kNotWritten = 0xffffffffu;
constexpr uint64_t kTimeoutNs = uint64_t(kTimeoutMs) * 1'000'000;  // ns

// kNotWritten is the largest word. A maximum over all loads makes the compiler issue all of them before it uses one.
__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint32_t largest(uint32_t v) { return v; }
__device__ __forceinline__ uint32_t largest(const uint2& v) { return larger(v.x, v.y); }
// MUTATE: largest-of-four
__device__ __forceinline__ uint32_t largest(const uint4& v) { return larger(larger(v.x, v.y), larger(v.z, v.w)); }

template <class V>
__device__ __forceinline__ bool not_written(const V& v) {
  return largest(v) == kNotWritten;
}
template <class V, int N>
__device__ __forceinline__ uint32_t largest_of(const V (&v)[N]) {
  uint32_t most = 0;
#pragma unroll
  // MUTATE: test-every-load
  for (int i = 0; i < N; ++i) most = larger(most, largest(v[i]));
  return most;
}
template <class V, int N>
__device__ __forceinline__ bool any_not_written(const V (&v)[N]) {
  return largest_of(v) == kNotWritten;
}

template <class V>
__device__ __forceinline__ V load_relaxed(const uint32_t* from);
template <>
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* from) {
  uint32_t v;
  PTX("ld.relaxed.gpu.global.b32 %0, [%1];", (OUT_R(v)), (IN_L(from)));
  return v;
}
template <>
__device__ __forceinline__ uint2 load_relaxed(const uint32_t* from) {
  uint2 v;
  PTX("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];", (OUT_R(v.x), OUT_R(v.y)), (IN_L(from)));
  return v;
}
template <>
__device__ __forceinline__ uint4 load_relaxed(const uint32_t* from) {
  uint4 v;
  PTX("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];", (OUT_R(v.x), OUT_R(v.y), OUT_R(v.z), OUT_R(v.w)),
      (IN_L(from)));
  return v;
}

__device__ __forceinline__ void store_relaxed(uint32_t* to, uint32_t word) {
  // MUTATE: publish-word
  PTX("st.relaxed.gpu.global.b32 [%0], %1;", (), (IN_L(to), IN_R(word)));
}

__device__ __forceinline__ void store_relaxed(uint32_t* to, const uint4& v) {
  // MUTATE: publish-vector
  PTX("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};", (),
      (IN_L(to), IN_R(v.x), IN_R(v.y), IN_R(v.z), IN_R(v.w)));
}

// A word that the host may read while the kernel runs.
__device__ __forceinline__ void store_status(int* status, int why) {
  PTX("st.relaxed.sys.global.b32 [%0], %1;", (), (IN_L(status), IN_R(why)));
}

// The bits of a float, never kNotWritten: every NaN becomes the canonical NaN.
__device__ __forceinline__ uint32_t word_of(float x) { return x != x ? 0x7fc00000u : __builtin_bit_cast(uint32_t, x); }

// Words of type T, never kNotWritten: NaN becomes canonical. Half types need no change: from_float makes no all-ones
// NaN (types.cuh).
template <class T>
__device__ __forceinline__ uint4 canonical_nan(const uint4& v) {
  if constexpr (sizeof(T) == 2) return v;
  const auto word = [](uint32_t w) { return word_of(__builtin_bit_cast(float, w)); };
  return {word(v.x), word(v.y), word(v.z), word(v.w)};
}

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t t;
  PTX("mov.u64 %0, %%globaltimer;", (OUT_L(t)), ());
  return t;
}

// Timeout of a spin-wait. After kTimeoutNs it writes *status and sets `timed_out`, and the thread polls no more: words
// that were not written are read as NaN (all ones), so results are NaN and blocks that wait for this one end too.
struct SpinTimeout {
  uint64_t since = 0;
  uint32_t polls = 0;

  __device__ __forceinline__ bool keep_polling(int* status, bool& timed_out) {
    if (++polls % 1024) return true;
    const uint64_t now = nanoseconds();
    if (!since) since = now;
    if (now - since < kTimeoutNs) return true;
    store_status(status, kTimedOut);
    timed_out = true;
    return false;
  }
};

// 16 bytes from global to shared memory, both 16-byte aligned; complete after the wait for its group (sm_75: at once).
__device__ __forceinline__ void copy_async(void* to, const void* from) {
#if FASTLSTM_ARCH >= 800
  PTX("cp.async.cg.shared.global [%0], [%1], 16;", (), (IN_R(shared_address(to)), IN_L(from)));
#else
  store_vector(to, load_vector<uint4>(from));
#endif
}

__device__ __forceinline__ void commit_copies() {
#if FASTLSTM_ARCH >= 800
  PTX("cp.async.commit_group;", (), ());
#endif
}

// Waits until at most the latest `Left` groups are incomplete.
template <int Left>
__device__ __forceinline__ void wait_copies() {
#if FASTLSTM_ARCH >= 800
  PTX("cp.async.wait_group %0;", (), (IN_N(Left)));
#endif
}

}  // namespace fastlstm::cuda
