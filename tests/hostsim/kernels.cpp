// Small kernels, right and wrong, that show what the simulation finds. Run through test_simulation.py.
#include <map>
#include <string>

#include "cuda/compat.cuh"

namespace {

using namespace fastlstm::cuda;

struct Args {
  uint32_t* a;
  uint32_t* b;
  int n;
};

__device__ uint32_t* shared() { return reinterpret_cast<uint32_t*>(shared_memory()); }
__device__ int thread() { return int(threadIdx.x); }
__device__ int global_thread() { return int(blockIdx.x * blockDim.x) + thread(); }

// Right: b[i] = a[n - 1 - i] through shared memory.
__global__ void reverse(Args p) {
  shared()[thread()] = p.a[thread()];
  __syncthreads();
  p.b[thread()] = shared()[p.n - 1 - thread()];
}
__global__ void reverse_without_barrier(Args p) {
  shared()[thread()] = p.a[thread()];
  p.b[thread()] = shared()[p.n - 1 - thread()];
}
__global__ void off_by_one(Args p) {
  if (thread() <= p.n) p.b[thread()] = p.a[thread()];
}
__global__ void shared_overrun(Args p) {
  shared()[thread() + 1] = 1;
  __syncthreads();
  p.b[thread()] = shared()[thread()];
}
__global__ void uninitialised(Args p) {
  if (thread() != 5) shared()[thread()] = 1;
  __syncthreads();
  p.b[thread()] = shared()[thread()];
}
__global__ void writes_input(Args p) { const_cast<uint32_t*>(p.a)[thread()] = 0; }
__global__ void write_after_read(Args p) {
  shared()[thread()] = 1;
  __syncthreads();
  const uint32_t other = shared()[(thread() + 1) % p.n];
  shared()[thread()] = other;
  p.b[thread()] = other;
}

// Barriers that not all threads reach, or at different places.
__global__ void half_barrier(Args p) {
  if (thread() < 32) __syncthreads();
  p.b[thread()] = 0;
}
__global__ void two_barriers(Args p) {
  if (thread() % 2)
    __syncthreads();
  else
    __syncthreads();
  p.b[thread()] = 0;
}
__global__ void partial_shuffle(Args p) {
  uint32_t v = p.a[thread()];
  if (thread() % 32 < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
  p.b[thread()] = v;
}
__global__ void butterfly(Args p) {
  uint32_t v = p.a[thread()];
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  p.b[thread()] = v;
}
__global__ void warp_neighbour(Args p) {
  shared()[thread()] = p.a[thread()];
  __syncwarp();
  p.b[thread()] = shared()[thread() ^ 1];
}
__global__ void warp_neighbour_without_sync(Args p) {
  shared()[thread()] = p.a[thread()];
  p.b[thread()] = shared()[thread() ^ 1];
}

__device__ uint32_t load_relaxed(const uint32_t* p) {
  uint32_t v;
  PTX("ld.relaxed.gpu.global.b32 %0, [%1];", (OUT_R(v)), (IN_L(p)));
  return v;
}
__device__ uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  PTX("ld.acquire.gpu.global.b32 %0, [%1];", (OUT_R(v)), (IN_L(p)));
  return v;
}
__device__ void store_relaxed(uint32_t* p, uint32_t v) {
  PTX("st.relaxed.gpu.global.b32 [%0], %1;", (), (IN_L(p), IN_R(v)));
}
__device__ void store_release(uint32_t* p, uint32_t v) {
  PTX("st.release.gpu.global.b32 [%0], %1;", (), (IN_L(p), IN_R(v)));
}

// Each block passes a token to the next one; the word itself is the flag (0: not there yet).
__global__ void relay(Args p) {
  if (thread()) return;
  uint32_t token = 1;
  if (blockIdx.x)
    while (!(token = load_relaxed(p.b + blockIdx.x - 1))) {
    }
  store_relaxed(p.b + blockIdx.x, token + 1);
}
__global__ void relay_with_plain_store(Args p) {
  if (thread()) return;
  uint32_t token = 1;
  if (blockIdx.x)
    while (!(token = load_relaxed(p.b + blockIdx.x - 1))) {
    }
  p.b[blockIdx.x] = token + 1;
}
__global__ void wait_for_nobody(Args p) {
  while (!load_relaxed(p.b)) {
  }
}
// Block 0 writes data, then a flag; block 1 waits for the flag and reads the data.
__global__ void message_released(Args p) {
  if (thread()) return;
  if (blockIdx.x == 0) {
    p.b[1] = 7;
    store_release(p.b, 1);
  } else {
    while (!load_acquire(p.b)) {
    }
    p.b[2] = p.b[1];
  }
}
__global__ void message_relaxed(Args p) {
  if (thread()) return;
  if (blockIdx.x == 0) {
    p.b[1] = 7;
    store_relaxed(p.b, 1);
  } else {
    while (!load_relaxed(p.b)) {
    }
    p.b[2] = p.b[1];
  }
}
__global__ void add_one(Args p) {
  if (global_thread() < p.n) p.b[global_thread()] += 1;
}

__device__ void copy_async(uint32_t* to, const uint32_t* from) {
  PTX("cp.async.ca.shared.global [%0], [%1], 4;", (), (IN_R(shared_address(to)), IN_L(from)));
  PTX("cp.async.commit_group;", (), ());
}
__global__ void copy_waited(Args p) {
  copy_async(shared() + thread(), p.a + thread());
  PTX("cp.async.wait_group 0;", (), ());
  p.b[thread()] = shared()[thread()];
}
__global__ void copy_not_waited(Args p) {
  copy_async(shared() + thread(), p.a + thread());
  PTX("cp.async.wait_group 1;", (), ());
  p.b[thread()] = shared()[thread()];
}
__global__ void unknown_instruction(Args p) {
  uint32_t v;
  PTX("popc.b32 %0, %1;", (OUT_R(v)), (IN_R(p.n)));
  p.b[0] = v;
}
__global__ void misaligned(Args p) {
  uint32_t x, y;
  PTX("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];", (OUT_R(x), OUT_R(y)), (IN_L(p.b + 1)));
}
__global__ void misaligned_vector(Args p) { store_vector(p.b, load_vector<uint4>(p.a + 1)); }
__global__ void copies_vectors(Args p) { store_vector(p.b + 4 * thread(), load_vector<uint4>(p.a + 4 * thread())); }

// a: per lane 4 words of A, 2 of B, 4 of C; b: per lane 4 words of D. n chooses the instruction.
__global__ void multiply(Args p) {
  const uint32_t* in = p.a + 10 * thread();
  float d[4];
  const auto c = [&](int i) { return __builtin_bit_cast(float, in[6 + i]); };
  const float c0 = c(0), c1 = c(1), c2 = c(2), c3 = c(3);
#define MMA16(type)                                                                                                \
  PTX("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                                       \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};",                                  \
      (OUT_F(d[0]), OUT_F(d[1]), OUT_F(d[2]), OUT_F(d[3])),                                                        \
      (IN_R(in[0]), IN_R(in[1]), IN_R(in[2]), IN_R(in[3]), IN_R(in[4]), IN_R(in[5]), IN_F(c0), IN_F(c1), IN_F(c2), \
       IN_F(c3)))
  if (p.n == 0) MMA16("f16");
  if (p.n == 1) MMA16("bf16");
  if (p.n == 2)
    PTX("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};",
        (OUT_F(d[0]), OUT_F(d[1]), OUT_F(d[2]), OUT_F(d[3])),
        (IN_R(in[0]), IN_R(in[1]), IN_R(in[4]), IN_F(c0), IN_F(c1), IN_F(c2), IN_F(c3)));
  if (p.n == 3)
    PTX("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};",
        (OUT_F(d[0]), OUT_F(d[1]), OUT_F(d[2]), OUT_F(d[3])),
        (IN_R(in[0]), IN_R(in[1]), IN_R(in[2]), IN_R(in[3]), IN_R(in[4]), IN_R(in[5]), IN_F(c0), IN_F(c1), IN_F(c2),
         IN_F(c3)));
  for (int i = 0; i < 4; ++i) p.b[4 * thread() + i] = __builtin_bit_cast(uint32_t, d[i]);
}

// a: four 8x8 matrices of 16-bit numbers; b: what ldmatrix gives each lane. n = 1: transposed.
__global__ void load_matrix(Args p) {
  for (int i = 0; i < 4; ++i) shared()[4 * thread() + i] = p.a[4 * thread() + i];
  __syncwarp();
  uint32_t v[4];
  const uint32_t row = shared_address(shared() + 4 * thread());
  if (p.n)
    PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
        (OUT_R(v[0]), OUT_R(v[1]), OUT_R(v[2]), OUT_R(v[3])), (IN_R(row)));
  else
    PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];",
        (OUT_R(v[0]), OUT_R(v[1]), OUT_R(v[2]), OUT_R(v[3])), (IN_R(row)));
  for (int i = 0; i < 4; ++i) p.b[4 * thread() + i] = v[i];
}

#define KERNEL(name) {#name, name}
const std::map<std::string, void (*)(Args)> kernels = {KERNEL(reverse),
                                                       KERNEL(reverse_without_barrier),
                                                       KERNEL(off_by_one),
                                                       KERNEL(shared_overrun),
                                                       KERNEL(uninitialised),
                                                       KERNEL(writes_input),
                                                       KERNEL(write_after_read),
                                                       KERNEL(half_barrier),
                                                       KERNEL(two_barriers),
                                                       KERNEL(partial_shuffle),
                                                       KERNEL(butterfly),
                                                       KERNEL(warp_neighbour),
                                                       KERNEL(warp_neighbour_without_sync),
                                                       KERNEL(relay),
                                                       KERNEL(relay_with_plain_store),
                                                       KERNEL(wait_for_nobody),
                                                       KERNEL(message_released),
                                                       KERNEL(message_relaxed),
                                                       KERNEL(add_one),
                                                       KERNEL(copy_waited),
                                                       KERNEL(copy_not_waited),
                                                       KERNEL(unknown_instruction),
                                                       KERNEL(misaligned),
                                                       KERNEL(misaligned_vector),
                                                       KERNEL(copies_vectors),
                                                       KERNEL(multiply),
                                                       KERNEL(load_matrix)};

}  // namespace

int run_kernel(const char* name, uint32_t grid, uint32_t block, size_t shared_bytes, bool cooperative, uintptr_t stream,
               uintptr_t a, uintptr_t b, int n) {
  const Args args{reinterpret_cast<uint32_t*>(a), reinterpret_cast<uint32_t*>(b), n};
  return launch(name, kernels.at(name), {grid, block, shared_bytes, cooperative}, reinterpret_cast<void*>(stream),
                args);
}
