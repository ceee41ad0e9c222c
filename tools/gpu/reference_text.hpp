#pragma once

/// What the texts of reference kernels begin with: types, the layer's two formats, sums of a warp and of a
/// block, an expert's matrices as ReferenceExpert has them, and which expert a slot names.
namespace varmoe::tools {

inline constexpr const char* kReferenceCommon = R"(
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

__device__ u64 mix(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
__device__ u16 encode(float v, int fp16) {
  if (fp16) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
  }
  u32 bits = __float_as_uint(v);
  return static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
__device__ double decode(u16 bits, int fp16) {
  float v;
  if (fp16) {
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  } else {
    v = __uint_as_float(static_cast<u32>(bits) << 16);
  }
  return v;
}
__device__ double warp_sum(double v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
// For all threads.
__device__ double block_sum(double v) {
  __shared__ double parts[32];
  __syncthreads();
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = 0;
  for (u32 i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
  return sum;
}

struct Expert {
  const u16 *gate, *up, *down;
  i64 width, fc1_stride, fc2_stride;
  const u16 *gate_bias, *up_bias, *down_bias;
  i64 fc1_bias_stride;
};

// The expert of a token's slot; −1: none. Layer: top_k, num_experts, ids.
template <class Layer>
__device__ int expert_of(const Layer& p, i64 token, int slot) {
  if (slot >= p.top_k) return p.num_experts + slot - p.top_k;
  const int id = p.ids[token * p.top_k + slot];
  return id >= 0 && id < p.num_experts ? id : -1;
}
)";

}  // namespace varmoe::tools
