// clang-format off
// Microbenchmarks: what loads, hand-overs, products and launches cost on an H100, in clocks. The cost model guesses
// these (csrc/cuda/cost_constants.h), and kernels that are not written yet depend on them.
//
//   rows                                 what they tell                                         what follows
//   clusters                             clusters that fit at once, by size and shared memory   whether they can be used
//   l2_load_clocks                       one strong load from L2, nearest to farthest SM        l2_clocks
//   strong_loads                         bytes a clock of strong loads, by loads in flight      l2_excess
//   hand_over_clocks                     from a store to where another block has loaded it      grid_wait_us
//   gather l2, gather dsmem              all blocks give all blocks their part, no math         L2 or clusters
//   dsmem_load_clocks                    one load from another block's shared memory            gather dsmem, explained
//   dsmem_hand_over_clocks               hand_over_clocks inside a cluster                      gather dsmem, explained
//   mma_clocks, mma_latency              tensor cores through mma.sync                          product_excess
//   wgmma_n                              tensor cores through wgmma, by width                   whether wgmma pays
//   barrier_clocks, cell_clocks          a block barrier; gates to h of one unit                barrier_clocks
//   launch, memset_us                    launches from the host; presetting a buffer            launch_us
// `make gpu-day` builds it; `ubench` writes one JSON object a line and takes a second on an H200. Kernels that wait give
// up after a fifth of a second (a row `lost`). A section that breaks the device's context is left behind: the program
// starts itself anew at the next. `ubench N` begins at section N.
// clang-format on
#include <cuda_runtime.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr long long kTimeoutClocks = 340'000'000;  // clocks: 0.2 s at 1.7 GHz
constexpr uint32_t kUnset = 0xffffffffu;
constexpr size_t kBufferBytes = size_t(256) << 20;
constexpr int kAlone = 120 << 10;  // bytes of shared memory with which a block has an SM to itself

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ uint4 load_strong(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_strong_word(const void* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

__device__ __forceinline__ void store_strong_word(void* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

__device__ __forceinline__ void store_strong(void* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %1, %1, %1};" ::"l"(to), "r"(v) : "memory");
}

__device__ __forceinline__ uint32_t sm_id() {
  uint32_t v;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(v));
  return v;
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t v;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// Where an address of this block's shared memory lies in another block of the cluster.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(v) : "r"(address), "r"(rank));
  return v;
}

__device__ __forceinline__ bool unset(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)) == kUnset; }

__device__ __forceinline__ bool timed_out(long long start) { return clock64() - start > kTimeoutClocks; }

// Keeps a value, and with it all that it is computed from, ahead of what follows.
__device__ __forceinline__ void settle(float v) { asm volatile("" ::"f"(v) : "memory"); }

// ---- one strong load after the other, each giving the address of the next; one warp an SM
__global__ void load_latency(const uint32_t* at, int loads, long long* out) {
  uint32_t where = 0;
  const long long start = clock64();
  for (int i = 0; i < loads; ++i) where = load_strong_word(at + where * 32);
  out[blockIdx.x] = clock64() - start + (where == kUnset);
}

// ---- batches of `Flight` independent 16-byte loads a thread; the next batch waits for this one. `at` holds zeros.
template <int Flight>
__global__ void __launch_bounds__(512, 1) strong_loads(const uint32_t* at, int words, int rounds, long long* out) {
  uint32_t sum = 0;
  __syncthreads();
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r) {
    uint4 v[Flight];
#pragma unroll
    for (int i = 0; i < Flight; ++i)
      v[i] = load_strong(at + (((r * Flight + i) * blockDim.x + threadIdx.x + sum) * 4 & (words - 1)));
#pragma unroll
    for (int i = 0; i < Flight; ++i)
      sum |= v[i].x | v[i].y | v[i].z | v[i].w;  // of two words, ptxas would load only those
  }
  __syncthreads();
  if (!threadIdx.x) out[blockIdx.x] = clock64() - start + (sum == kUnset);
}

// ---- a number handed to and fro between block 0 and block `other`; half a round trip is one hand-over
__global__ void ping_pong(uint32_t* a, uint32_t* b, int rounds, int other, long long* out, int* timeout_flag) {
  if (threadIdx.x || (blockIdx.x != 0 && int(blockIdx.x) != other)) return;
  const bool first = blockIdx.x == 0;
  const uint32_t* answer = first ? b : a;
  const long long start = clock64();
  for (int i = 1; i <= rounds; ++i) {
    if (first) store_strong_word(a, i);
    for (int polls = 1; int(load_strong_word(answer)) < i; ++polls)
      if (polls % 256 == 0 && timed_out(start)) {
        *timeout_flag = 1;
        return;
      }
    if (!first) store_strong_word(b, i);
  }
  if (first)
    out[0] = clock64() - start, out[1] = sm_id();
  else
    out[2] = sm_id();
}

// ---- the same between block 0 and block `other` of a cluster, through their shared memories
__global__ void cluster_ping_pong(int rounds, int other, long long* out, int* timeout_flag) {
  __shared__ uint32_t word;
  word = 0;
  cluster_barrier();
  const int rank = int(cluster_rank());
  if (!threadIdx.x && (rank == 0 || rank == other)) {
    const bool first = rank == 0;
    const uint32_t own_word = shared_address(&word), peer_word = address_in(own_word, first ? other : 0);
    const long long start = clock64();
    bool gave_up = false;
    for (int i = 1; i <= rounds && !gave_up; ++i) {
      if (first) asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(peer_word), "r"(i) : "memory");
      int seen = 0;
      for (int polls = 1; seen < i && !gave_up; ++polls) {
        asm volatile("ld.relaxed.cluster.shared::cta.u32 %0, [%1];" : "=r"(seen) : "r"(own_word) : "memory");
        gave_up = polls % 256 == 0 && timed_out(start);
      }
      if (!first) asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(peer_word), "r"(i) : "memory");
    }
    if (gave_up) *timeout_flag = 1;
    if (first) out[0] = clock64() - start;
  }
  __syncwarp();
  cluster_barrier();  // nobody leaves while its shared memory may be written
}

// ---- block 0 of a cluster loads from the shared memory of block `other`, each load giving the address of the next
__global__ void cluster_load_latency(int loads, int other, long long* out) {
  __shared__ uint32_t next[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) next[i] = (i * 1237 + 1) % 1024 * 4;
  __syncthreads();
  cluster_barrier();
  if (!threadIdx.x && cluster_rank() == 0) {
    const uint32_t base = address_in(shared_address(next), other);
    uint32_t where = 0;
    const long long start = clock64();
    for (int i = 0; i < loads; ++i)
      asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(where) : "r"(base + where) : "memory");
    out[0] = clock64() - start + (where == kUnset);
  }
  __syncwarp();
  cluster_barrier();
}

// ---- all-gather through L2, the data being its own flag: each block stores its part of `words`, all load all of it,
// from memory preset to all ones and fresh at every step. `Flight`: 16-byte loads that a thread has in flight. It is a
// step of `persistent` without its math.
template <int Flight>
__global__ void __launch_bounds__(512, 1)
    gather_l2(uint32_t* buffer, int words, int steps, long long* out, int* timeout_flag) {
  const int vectors = words / 4, part = (vectors + gridDim.x - 1) / gridDim.x, stride = blockDim.x * 4;
  const int begin = min(int(blockIdx.x) * part, vectors) * 4, end = min(int(blockIdx.x + 1) * part, vectors) * 4;
  const long long start = clock64();
  uint32_t sum = blockIdx.x;
  for (int s = 0; s < steps; ++s) {
    uint32_t* at = buffer + size_t(s) * words;
    for (int w = begin + threadIdx.x * 4; w < end; w += stride) store_strong(at + w, (sum & 0xffff) | 1u);
    for (int first = threadIdx.x * 4; first < words; first += stride * Flight) {
      uint4 v[Flight];
      bool waits = true;
      for (int polls = 1; waits; ++polls) {
#pragma unroll
        for (int i = 0; i < Flight; ++i) {
          const int w = first + i * stride;
          v[i] = load_strong(at + (w < words ? w : first));
        }
        waits = false;
#pragma unroll
        for (int i = 0; i < Flight; ++i) waits |= unset(v[i]);
        if (waits && polls % 64 == 0 && timed_out(start)) {
          *timeout_flag = 1;
          return;
        }
      }
#pragma unroll
      for (int i = 0; i < Flight; ++i) sum += v[i].x ^ v[i].w;
    }
    __syncthreads();
  }
  if (!threadIdx.x) out[blockIdx.x] = clock64() - start + (sum == kUnset);
}

// ---- all-gather inside a cluster: st.async into the shared memory of every block, which counts the bytes in an
// mbarrier
__global__ void __launch_bounds__(512, 1)
    gather_dsmem(int words, int steps, int size, long long* out, int* timeout_flag) {
  extern __shared__ __align__(128) uint32_t buffers[];  // two of `words`
  __shared__ __align__(8) uint64_t full[2];
  const int words_per_block = words / size, pieces = words_per_block / 4;
  const uint32_t rank = cluster_rank();
  const auto expect = [&](int p) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[p])),
                 "r"(words * 4)
                 : "memory");
  };
  if (!threadIdx.x) {
    for (int p = 0; p < 2; ++p)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[p])) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    expect(0), expect(1);
  }
  __syncthreads();
  cluster_barrier();
  const long long start = clock64();
  uint32_t sum = rank;
  bool gave_up = false;
  for (int s = 0; s < steps && !gave_up; ++s) {
    const int p = s & 1;
    const uint32_t parity = (s >> 1) & 1;
    for (int i = threadIdx.x; i < pieces * size; i += blockDim.x) {  // every piece of 16 bytes to every block
      const int to = i % size, piece = i / size;
      const uint32_t where = address_in(shared_address(buffers + p * words + rank * words_per_block + piece * 4), to);
      const uint32_t counter = address_in(shared_address(&full[p]), to);
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %1, %1, %1}, [%2];" ::"r"(where),
          "r"(sum), "r"(counter)
          : "memory");
    }
    uint32_t arrived = 0;
    for (int polls = 1; !arrived && !gave_up; ++polls) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(arrived)
          : "r"(shared_address(&full[p])), "r"(parity)
          : "memory");
      gave_up = !arrived && timed_out(start);  // a try waits for a while itself
    }
    const uint4 v = *reinterpret_cast<const uint4*>(buffers + p * words + threadIdx.x * 4 % words);
    sum += (v.x ^ v.w) & 0xff;
    gave_up = __syncthreads_or(gave_up);
    // Armed for the step after next, which no block sends before it has this block's part of the next.
    if (!threadIdx.x) expect(p);
    __syncthreads();
  }
  if (gave_up) *timeout_flag = 1;
  cluster_barrier();
  if (!threadIdx.x) out[blockIdx.x] = clock64() - start + (sum == kUnset);
}

// ---- mma.sync m16n8 of K 16 (bfloat16) or 8 (TF32), `Chains` products a warp that do not wait for each other
template <int Chains, bool Tf32>
__global__ void mma_rate(int rounds, long long* out, float* sink) {
  float d[Chains][4] = {};
  const uint32_t a = threadIdx.x * 0x3f803f81u, b = threadIdx.x * 0x3f813f80u;
  __syncthreads();
  const long long start = clock64();
  for (int i = 0; i < rounds; ++i)
#pragma unroll
    for (int c = 0; c < Chains; ++c)
      if constexpr (Tf32)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a), "r"(b));
      else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a), "r"(b));
  for (int c = 0; c < Chains; ++c) settle(d[c][0]);
  __syncthreads();
  if (!threadIdx.x) out[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int c = 0; c < Chains; ++c) sum += d[c][0] + d[c][3];
  sink[threadIdx.x] = sum;
}

// ---- wgmma m64nNk16: A in registers, B in shared memory as 8 x 16 byte blocks without swizzle, 16 in flight (a K of
// 256)
// clang-format off
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA(n, sums, a, b, ...) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, {" a "}, " b ", 1, 1, 1, 0;" \
               : __VA_ARGS__ : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(tile))
template <int N>
__device__ __forceinline__ void wgmma(float* d, const uint32_t* weights, uint64_t tile) {
  if constexpr (N == 8)
    WGMMA(8, "%0, %1, %2, %3", "%4, %5, %6, %7", "%8", FOUR(0));
  else if constexpr (N == 16)
    WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9, %10, %11", "%12", FOUR(0), FOUR(4));
  else
    WGMMA(32, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15", "%16, %17, %18, %19", "%20", FOUR(0),
          FOUR(4), FOUR(8), FOUR(12));
}
// clang-format on

template <int N>
__global__ void __launch_bounds__(512, 1) wgmma_rate(int rounds, long long* out, float* sink) {
  __shared__ __align__(1024) uint16_t b[N * 16];
  for (int i = threadIdx.x; i < N * 16; i += blockDim.x) b[i] = 0x3f80;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // what was stored, for the tensor cores' reads
  __syncthreads();
  // start, bytes from one block of K to the next (128), from one block of N to the next (256), all in units of 16 bytes
  const uint64_t tile =
      uint64_t((shared_address(b) & 0x3ffff) >> 4) | uint64_t(128 / 16) << 16 | uint64_t(256 / 16) << 32;
  float d[N / 2] = {};
  const uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  const long long start = clock64();
  for (int i = 0; i < rounds; i += 16) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int j = 0; j < 16; ++j) wgmma<N>(d, a, tile);
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  if (threadIdx.x % 128 == 0) out[threadIdx.x / 128] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < N / 2; ++i) sum += d[i];
  sink[threadIdx.x] = sum;
}

// ---- a block barrier; the cell of one unit, each waiting for the one before
__global__ void barrier_and_cell(int rounds, long long* out, float* sink) {
  long long start = clock64();
  for (int i = 0; i < rounds; ++i) __syncthreads();
  if (!threadIdx.x) out[0] = clock64() - start;
  const auto sigmoid = [](float x) {
    float e, y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-1.442695f * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + e));
    return y;
  };
  float z = threadIdx.x * 1e-3f, c = 0;
  settle(z);
  start = clock64();
  for (int i = 0; i < rounds; ++i) {
    const float in = sigmoid(z), forget = sigmoid(z + 0.1f), g = 2 * sigmoid(2 * z) - 1, o = sigmoid(z - 0.1f);
    c = forget * c + in * g;
    z = o * (2 * sigmoid(2 * c) - 1);
  }
  settle(z);
  if (!threadIdx.x) out[1] = clock64() - start;
  sink[threadIdx.x] = z;
}

__global__ void nothing(int* timeout_flag) {
  if (blockIdx.x > 1u << 30) *timeout_flag = 1;
}

// ---- host

struct CudaFailure {};

void check_cuda(const char* what, cudaError_t code) {
  if (code == cudaSuccess) return;
  printf("{\"error\":\"%s\",\"at\":\"%s\"}\n", cudaGetErrorString(code), what);
  cudaGetLastError();
  throw CudaFailure();
}
#define CHECK_CUDA(call) check_cuda(#call, call)

int sms;
long long* out;     // host memory that kernels write
int* timeout_flag;  // so is this: whether a kernel gave up
float* sink;
uint32_t* buffer;

void open() {
  cudaDeviceProp properties;
  int khz = 0;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  CHECK_CUDA(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
  sms = properties.multiProcessorCount;
  printf("{\"gpu\":\"%s\",\"sms\":%d,\"l2\":%d,\"optin\":%zu,\"mhz\":%d}\n", properties.name, sms,
         properties.l2CacheSize, properties.sharedMemPerBlockOptin, khz / 1000);
  CHECK_CUDA(cudaHostAlloc(&out, 4096 * sizeof(long long), cudaHostAllocMapped));
  CHECK_CUDA(cudaHostAlloc(&timeout_flag, sizeof(int), cudaHostAllocMapped));
  CHECK_CUDA(cudaMalloc(&sink, 1 << 16));
  CHECK_CUDA(cudaMalloc(&buffer, kBufferBytes));
  *timeout_flag = 0;
}

// Waits for a kernel; false where it gave up, which is said.
bool done(const char* what) {
  CHECK_CUDA(cudaDeviceSynchronize());
  if (!*timeout_flag) return true;
  printf("{\"lost\":\"%s\"}\n", what);
  *timeout_flag = 0;
  return false;
}

struct Launch {
  int grid, block, shared = 0;
  int cluster = 0;           // blocks of a cluster; 0: none
  bool cooperative = false;  // all blocks at once
};

// What a kernel must be told before such a launch.
template <class Kernel>
cudaError_t allow(Kernel kernel, const Launch& how) {
  const auto code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared);
  if (code != cudaSuccess || how.cluster <= 8) return code;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <class... Parameters, class... Args>
cudaError_t launch_allowed(void (*kernel)(Parameters...), const Launch& how, Args... args) {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid, config.blockDim = how.block, config.dynamicSmemBytes = how.shared;
  config.attrs = &attribute, config.numAttrs = how.cluster || how.cooperative;
  if (how.cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = how.cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...);
}

template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Args... args) {
  const auto code = allow(kernel, how);
  return code == cudaSuccess ? launch_allowed(kernel, how, args...) : code;
}

long long median(int n) {
  std::vector<long long> values(out, out + n);
  std::sort(values.begin(), values.end());
  return values[n / 2];
}

// Clusters of gather_dsmem that fit at once; 0 or less with a code where the device will not say.
int fitting(int cluster, int shared, cudaError_t* code) {
  cudaFuncSetAttribute(gather_dsmem, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaFuncSetAttribute(gather_dsmem, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = cluster, config.blockDim = 512, config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = 1;
  int n = 0;
  *code = cudaOccupancyMaxActiveClusters(&n, gather_dsmem, &config);
  cudaGetLastError();
  return n;
}

void clusters() {
  for (const int cluster : {2, 4, 8, 16})
    for (const int kib : {16, 100, 200, 224}) {
      cudaError_t code;
      const int n = fitting(cluster, kib << 10, &code);
      printf("{\"clusters\":%d,\"size\":%d,\"kib\":%d,\"code\":%d}\n", n, cluster, kib, int(code));
    }
}

void latency() {
  constexpr int kLines = 4096, kLoads = 2048;
  std::vector<uint32_t> chain(kLines * 32);
  for (int i = 0; i < kLines; ++i) chain[i * 32] = (i * 1237 + 1) % kLines;
  CHECK_CUDA(cudaMemcpy(buffer, chain.data(), chain.size() * 4, cudaMemcpyHostToDevice));
  for (int k = 0; k < 2; ++k) {  // the first brings the lines into L2
    load_latency<<<sms, 32>>>(buffer, kLoads, out);
    done("load_latency");
  }
  std::vector<long long> clocks(out, out + sms);
  std::sort(clocks.begin(), clocks.end());
  printf("{\"l2_load_clocks\":{\"least\":%.0f,\"median\":%.0f,\"most\":%.0f}}\n", double(clocks[0]) / kLoads,
         double(clocks[sms / 2]) / kLoads, double(clocks[sms - 1]) / kLoads);
}

template <int Flight>
void throughput_of(int blocks, int threads) {
  constexpr int kRounds = 256, kWords = 16384;  // 64 KiB, which all blocks load, as they do an exchange
  for (int k = 0; k < 2; ++k) {
    CHECK_CUDA(launch(strong_loads<Flight>, {blocks, threads, kAlone}, buffer, kWords, kRounds, out));
    done("strong_loads");
  }
  const double clocks = double(median(blocks)) / kRounds;
  printf("{\"strong_loads\":%d,\"blocks\":%d,\"threads\":%d,\"clocks\":%.0f,\"bytes_per_clock\":%.1f}\n", Flight,
         blocks, threads, clocks, Flight * threads * 16 / clocks);
}

void throughput() {
  CHECK_CUDA(cudaMemset(buffer, 0, 1 << 20));
  for (const int blocks : {1, sms})
    for (const int threads : {32, 128, 256, 512}) {
      throughput_of<1>(blocks, threads);
      throughput_of<2>(blocks, threads);
      throughput_of<4>(blocks, threads);
      throughput_of<8>(blocks, threads);
    }
}

void hand_over() {
  constexpr int kRounds = 2000;
  for (const int other : {1, 2, 7, 33, 66, 100, sms - 1}) {
    CHECK_CUDA(cudaMemset(buffer, 0, 1 << 20));
    CHECK_CUDA(launch(ping_pong, {sms, 32, 0, 0, true}, buffer, buffer + 4096, kRounds, other, out, timeout_flag));
    if (done("ping_pong"))
      printf("{\"hand_over_clocks\":%.0f,\"sm\":[%lld,%lld]}\n", double(out[0]) / 2 / kRounds, out[1], out[2]);
  }
}

void through_l2() {
  for (const int blocks : {32, 64, 96, 128})
    for (const int kib : {2, 4, 8, 16, 32, 64})
      for (const int threads : {256, 512}) {
        const int words = kib * 256, steps = 512, vectors = words / 4;
        if (blocks > std::min(sms, vectors)) continue;
        const auto kernel = threads >= vectors       ? gather_l2<1>
                            : threads * 2 >= vectors ? gather_l2<2>
                            : threads * 4 >= vectors ? gather_l2<4>
                                                     : gather_l2<8>;
        bool fine = true;
        for (int k = 0; k < 2 && fine; ++k) {
          CHECK_CUDA(cudaMemset(buffer, 0xff, size_t(words) * 4 * steps));
          CHECK_CUDA(launch(kernel, {blocks, threads, kAlone, 0, true}, buffer, words, steps, out, timeout_flag));
          fine = done("gather l2");
        }
        if (fine)
          printf("{\"gather\":\"l2\",\"blocks\":%d,\"kib\":%d,\"threads\":%d,\"clocks\":%.0f}\n", blocks, kib, threads,
                 double(median(blocks)) / steps);
      }
}

void through_clusters() {
  for (const int size : {2, 4, 8, 16}) {
    for (const int other : {0, 1, size / 2, size - 1}) {
      constexpr int kLoads = 1024, kRounds = 2000;
      const cudaError_t code = launch(cluster_load_latency, {size, 32, 0, size}, kLoads, other, out);
      if (code != cudaSuccess) {
        printf("{\"dsmem_load_clocks\":null,\"size\":%d,\"code\":%d}\n", size, int(code));
        cudaGetLastError();
        break;
      }
      if (done("cluster_load_latency"))
        printf("{\"dsmem_load_clocks\":%.0f,\"size\":%d,\"rank\":%d}\n", double(out[0]) / kLoads, size, other);
      if (other == 0) continue;
      CHECK_CUDA(launch(cluster_ping_pong, {size, 32, 0, size}, kRounds, other, out, timeout_flag));
      if (done("cluster_ping_pong"))
        printf("{\"dsmem_hand_over_clocks\":%.0f,\"size\":%d,\"rank\":%d}\n", double(out[0]) / 2 / kRounds, size,
               other);
    }
    cudaError_t code;
    const int most = fitting(size, kAlone, &code);
    for (const int kib : {1, 2, 4, 8, 16, 32})
      for (const int clusters : {1, most / 2, most}) {
        const int words = kib * 256, steps = 512;
        if (words / size < 4 || clusters < 1 || (clusters == 1 && most < 2)) continue;
        const int shared = std::max(kAlone, 2 * words * 4);
        CHECK_CUDA(launch(gather_dsmem, {size * clusters, 512, shared, size}, words, steps, size, out, timeout_flag));
        if (done("gather dsmem"))
          printf("{\"gather\":\"dsmem\",\"size\":%d,\"clusters\":%d,\"kib\":%d,\"clocks\":%.0f}\n", size, clusters, kib,
                 double(median(size * clusters)) / steps);
      }
  }
}

template <bool Tf32>
void products_of(const char* math) {
  constexpr int kRounds = 1000;
  mma_rate<1, Tf32><<<1, 32>>>(kRounds, out, sink);
  if (done("mma_rate")) printf("{\"mma_latency\":%.1f,\"math\":\"%s\"}\n", double(out[0]) / kRounds, math);
  for (const int warps : {4, 8, 16}) {
    mma_rate<4, Tf32><<<1, 32 * warps>>>(kRounds, out, sink);
    if (done("mma_rate"))
      printf("{\"mma_clocks\":%.2f,\"warps\":%d,\"math\":\"%s\"}\n", double(out[0]) / (kRounds * 4 * warps), warps,
             math);
  }
}

template <int N>
void wgmma_of(int groups) {
  constexpr int kRounds = 512;
  wgmma_rate<N><<<1, 128 * groups>>>(kRounds, out, sink);
  if (done("wgmma_rate"))
    printf("{\"wgmma_n\":%d,\"groups\":%d,\"clocks\":%.1f}\n", N, groups, double(out[0]) / (kRounds * groups));
}

void products() {
  products_of<false>("bf16");
  products_of<true>("tf32");
}

void wide_products() {
  for (const int groups : {1, 2, 4}) wgmma_of<8>(groups), wgmma_of<16>(groups), wgmma_of<32>(groups);
}

void barriers() {
  constexpr int kRounds = 1000;
  for (const int threads : {128, 256, 512}) {
    barrier_and_cell<<<1, threads>>>(kRounds, out, sink);
    if (done("barrier_and_cell"))
      printf("{\"threads\":%d,\"barrier_clocks\":%.1f,\"cell_clocks\":%.1f}\n", threads, double(out[0]) / kRounds,
             double(out[1]) / kRounds);
  }
}

double microseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::micro>(now).count();
}

void launches() {
  struct LaunchKind {
    const char* name;
    Launch how;
  };
  const int even = sms / 8 * 8 / 2;  // clusters need not fit all at once
  for (const LaunchKind& kind :
       {LaunchKind{"plain", {sms, 256}}, LaunchKind{"cooperative", {sms, 256, 0, 0, true}},
        LaunchKind{"cluster", {even, 256, 0, 8}}, LaunchKind{"100 KiB", {sms, 256, 100 << 10}}}) {
    constexpr int kTimes = 100;
    double submitted = 0, all = 0;
    CHECK_CUDA(allow(nothing, kind.how));
    for (int k = 0; k < 3; ++k) {  // the last counts
      const double start = microseconds();
      for (int i = 0; i < kTimes; ++i) CHECK_CUDA(launch_allowed(nothing, kind.how, timeout_flag));
      submitted = microseconds() - start;
      done("nothing");
      all = microseconds() - start;
    }
    printf("{\"launch\":\"%s\",\"us\":%.2f,\"submit_us\":%.2f}\n", kind.name, all / kTimes, submitted / kTimes);
  }
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  for (const int kib : {64, 1024, 16384}) {
    constexpr int kTimes = 100;
    float ms = 0;
    double submitted = 0;
    for (int k = 0; k < 2; ++k) {
      CHECK_CUDA(cudaEventRecord(begin));
      const double start = microseconds();
      for (int i = 0; i < kTimes; ++i) CHECK_CUDA(cudaMemsetAsync(buffer, 0xff, size_t(kib) << 10));
      submitted = microseconds() - start;
      CHECK_CUDA(cudaEventRecord(end));
      CHECK_CUDA(cudaEventSynchronize(end));
      CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    }
    printf("{\"memset_us\":%.2f,\"kib\":%d,\"submit_us\":%.2f}\n", ms * 1000 / kTimes, kib, submitted / kTimes);
  }
}

struct Section {
  const char* name;
  void (*run)();
};
constexpr Section kSections[] = {{"clusters", clusters},     {"latency", latency},
                                 {"throughput", throughput}, {"hand_over", hand_over},
                                 {"through_l2", through_l2}, {"through_clusters", through_clusters},
                                 {"products", products},     {"wide_products", wide_products},
                                 {"barriers", barriers},     {"launches", launches}};
constexpr int kCount = int(sizeof(kSections) / sizeof(kSections[0]));
constexpr unsigned kSeconds = 5;  // that a section may take
volatile sig_atomic_t current = 0;

// The same program from the next section on, with a context of its own.
void start_anew() {
  static char number[8];
  const int next = current + 1;
  number[0] = char('0' + next / 10), number[1] = char('0' + next % 10), number[2] = 0;
  static char name[] = "ubench";
  char* arguments[] = {name, number, nullptr};
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execv("/proc/self/exe", arguments);
  _exit(3);
}

}  // namespace

int main(int count, char** arguments) {
  setvbuf(stdout, nullptr, _IOLBF, 1 << 16);
  signal(SIGALRM, [](int) { start_anew(); });
  int k = count > 1 ? atoi(arguments[1]) : 0;
  if (k >= kCount) return 0;
  current = k;
  alarm(25);  // the first context on a machine may take long
  try {
    open();
  } catch (CudaFailure) {
    return 1;
  }
  for (; k < kCount; ++k) {
    current = k;
    alarm(kSeconds);
    const double start = microseconds();
    try {
      kSections[k].run();
    } catch (CudaFailure) {
    }
    const cudaError_t code = cudaDeviceSynchronize();
    printf("{\"section\":\"%s\",\"seconds\":%.2f,\"code\":%d}\n", kSections[k].name, (microseconds() - start) * 1e-6,
           int(code));
    if (code != cudaSuccess) start_anew();
    *timeout_flag = 0;
  }
  return 0;
}
