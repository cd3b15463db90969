// The matrix products of one warp and the layout of their fragments.
//
// The summed dimension is cut into spans of 16 words (32-bit): 32 numbers in half types, 16 in float. In every row of
// both operands, lane q = lane % 4 of a quad reads words 4q … 4q + 3 of a span. Any order of the summed dimension is
// right as long as both operands share it, so a fragment is one 16-byte access in torch's own layout.
//
//   forward    z += h' W_hhᵀ: 8 units x 4 gates (rows of W_hh) times 8 sequences. The lane has the four gates of unit
//              lane / 4 and ends with the sums of sequences 2q and 2q + 1: the cell needs no exchange between lanes.
//   backward   dh += d_gates W_hh: 16 columns of W_hh times 8 sequences. The lane has columns lane / 4 and lane / 4 + 8
//              and ends with the sums of sequences 2q and 2q + 1.
//
// On tensor cores W_hh is the A operand (16 rows: two gates of 8 units, or 16 columns) and the sequences are n = 8, so
// a tile of 8 sequences fills the instruction. The scalar version for float splits a span over the quad and reduces
// over the quad at the end. Bound: tensor cores or FFMA with many sequences, the latency of dependent products with
// few.
#pragma once
#include "types.cuh"

namespace fastlstm::cuda {

template <class T>
constexpr int kPerWord = 4 / int(sizeof(T));
template <class T>
constexpr int kSpan = 16 * kPerWord<T>;  // numbers in a span
constexpr int kSpanWords = 16;

// An operand word as it is multiplied: TF32 rounds to nearest (the hardware would truncate).
template <class T>
__device__ __forceinline__ uint32_t operand(uint32_t word) {
  return word;
}
template <>
__device__ __forceinline__ uint32_t operand<tf32_t>(uint32_t word) {
#if FASTLSTM_ARCH >= 800
  PTX_VALUE("cvt.rna.tf32.f32 %0, %1;", (OUT_R(word)), (IN_F(__builtin_bit_cast(float, word))));
#endif
  return word;
}
template <class T>
__device__ __forceinline__ uint4 operand(const uint4& v) {
  return {operand<T>(v.x), operand<T>(v.y), operand<T>(v.z), operand<T>(v.w)};
}

// d += A B with A 16 rows x 8 words (a0, a2: row lane / 4; a1, a3: that + 8), B 8 words x 8 columns.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1);
#define FASTLSTM_MMA(shape, type)                                                   \
  PTX_VALUE("mma.sync.aligned." shape ".row.col.f32." type "." type                 \
            ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};", \
            (RW_F(d[0]), RW_F(d[1]), RW_F(d[2]), RW_F(d[3])),                       \
            (IN_R(a0), IN_R(a1), IN_R(a2), IN_R(a3), IN_R(b0), IN_R(b1)))
template <>
__device__ __forceinline__ void mma<half_t>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
#if FASTLSTM_ARCH >= 800
  FASTLSTM_MMA("m16n8k16", "f16");
#else  // sm_75: half as deep
  PTX_VALUE("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};",
            (RW_F(d[0]), RW_F(d[1]), RW_F(d[2]), RW_F(d[3])), (IN_R(a0), IN_R(a1), IN_R(b0)));
  PTX_VALUE("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};",
            (RW_F(d[0]), RW_F(d[1]), RW_F(d[2]), RW_F(d[3])), (IN_R(a2), IN_R(a3), IN_R(b1)));
#endif
}
template <>
__device__ __forceinline__ void mma<bfloat_t>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                              uint32_t b0, uint32_t b1) {
#if FASTLSTM_ARCH >= 800
  FASTLSTM_MMA("m16n8k16", "bf16");
#else  // sm_75 has none; the planner does not come here
  PTX("trap;", (), ());
#endif
}
template <>
__device__ __forceinline__ void mma<tf32_t>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
#if FASTLSTM_ARCH >= 800
  FASTLSTM_MMA("m16n8k8", "tf32");
#else
  PTX("trap;", (), ());
#endif
}
#undef FASTLSTM_MMA

__device__ __forceinline__ float dot(const uint4& a, const uint4& b, float sum) {
  const auto f = [](uint32_t word) { return __builtin_bit_cast(float, word); };
  sum += f(a.x) * f(b.x);
  sum += f(a.y) * f(b.y);
  sum += f(a.z) * f(b.z);
  return sum + f(a.w) * f(b.w);
}

// Sums v over the four lanes of a quad; lane q keeps the sums of entries 2q and 2q + 1.
__device__ __forceinline__ void sum_quad(const float (&v)[8], int q, float& first, float& second) {
  float half[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float keep = q & 2 ? v[i + 4] : v[i], send = q & 2 ? v[i] : v[i + 4];
    half[i] = keep + __shfl_xor_sync(0xffffffffu, send, 2);
  }
  first = (q & 1 ? half[2] : half[0]) + __shfl_xor_sync(0xffffffffu, q & 1 ? half[0] : half[2], 1);
  second = (q & 1 ? half[3] : half[1]) + __shfl_xor_sync(0xffffffffu, q & 1 ? half[1] : half[3], 1);
}

// Two rows of the A operand in the order of mma's registers, a lane's four words of a product side by side: from
// registers and from shared memory they are multiplied without moves.
__device__ __forceinline__ void interleave(uint4& a, uint4& b) {
  // MUTATE: interleave
  const uint4 first = {a.x, b.x, a.y, b.y}, second = {a.z, b.z, a.w, b.w};
  a = first, b = second;
}
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  mma<T>(d, a.x, a.y, a.z, a.w, b0, b1);
}

// `arrange` prepares a lane's pieces of a span of W_hh once; `add` takes them so.
// w: rows i, f, g, o of a unit. `tile`: word 0 of the span in row 0 of 8 sequences that lie `stride` words
// apart.
template <class T>
struct ForwardProduct {
  float d[2][4] = {};

  static __device__ __forceinline__ void arrange(uint4 (&w)[4]) { interleave(w[0], w[1]), interleave(w[2], w[3]); }
  __device__ __forceinline__ void add(const uint4 (&w)[4], const uint32_t* tile, int stride, int lane) {
    // MUTATE: operand-row
    const uint4 h = load_vector<uint4>(tile + (lane / 4) * stride + 4 * (lane % 4));
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      mma<T>(d[pair], w[2 * pair], h.x, h.y);
      mma<T>(d[pair], w[2 * pair + 1], h.z, h.w);
    }
  }
  // out[2 * gate + j]: sequence 2q + j
  __device__ __forceinline__ void finish(float (&out)[8], int) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = d[i / 4][i % 4];
  }
};

template <>
struct ForwardProduct<float> {
  float d[4][8] = {};

  static __device__ __forceinline__ void arrange(uint4 (&)[4]) {}
  __device__ __forceinline__ void add(const uint4 (&w)[4], const uint32_t* tile, int stride, int lane) {
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      const uint4 h = load_vector<uint4>(tile + row * stride + 4 * (lane % 4));
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) d[gate][row] = dot(w[gate], h, d[gate][row]);
    }
  }
  __device__ __forceinline__ void finish(float (&out)[8], int lane) const {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) sum_quad(d[gate], lane % 4, out[2 * gate], out[2 * gate + 1]);
  }
};

// w: columns lane / 4 and lane / 4 + 8. Two chains of sums, since one would wait for itself.
template <class T>
struct BackwardProduct {
  float d[2][4] = {};

  static __device__ __forceinline__ void arrange(uint4 (&w)[2]) { interleave(w[0], w[1]); }
  __device__ __forceinline__ void add(const uint4 (&w)[2], const uint32_t* tile, int stride, int lane) {
    const uint4 z = load_vector<uint4>(tile + (lane / 4) * stride + 4 * (lane % 4));
    mma<T>(d[0], w[0], z.x, z.y);
    mma<T>(d[1], w[1], z.z, z.w);
  }
  // out[2 * c + j]: column lane / 4 + 8c, sequence 2q + j
  __device__ __forceinline__ void finish(float (&out)[4], int) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = d[0][i] + d[1][i];
  }
};

template <>
struct BackwardProduct<float> {
  float d[2][8] = {};

  static __device__ __forceinline__ void arrange(uint4 (&)[2]) {}
  __device__ __forceinline__ void add(const uint4 (&w)[2], const uint32_t* tile, int stride, int lane) {
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      const uint4 z = load_vector<uint4>(tile + row * stride + 4 * (lane % 4));
      d[0][row] = dot(w[0], z, d[0][row]);
      d[1][row] = dot(w[1], z, d[1][row]);
    }
  }
  __device__ __forceinline__ void finish(float (&out)[4], int lane) const {
    sum_quad(d[0], lane % 4, out[0], out[1]);
    sum_quad(d[1], lane % 4, out[2], out[3]);
  }
};

}  // namespace fastlstm::cuda
