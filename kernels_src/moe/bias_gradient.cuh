#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// Biases' gradients: sums over an expert's rows of dz (fc1), or of w·dout (fc2; unless kWeighted, of dout). A block an expert and 256 columns: its warps take every
// kWarps-th row, then add up in order. kSegments: rows are a caller's, and dout and weights lie by row.
namespace varmoe::moe {

template <class Gradient, int kThreads>
VARMOE_DEVICE void bias_gradient(const abi::BiasGradientParams& p) {
  constexpr int kWarps = kThreads / 32;
  constexpr i32 kColumns = 256;
  __shared__ float sums[kWarps][kColumns];
  ptx::follow_earlier_kernels();
  const i32 blocks = static_cast<i32>(gridDim.x) / p.experts;  // of columns
  const i32 expert = static_cast<i32>(blockIdx.x) / blocks;
  const i32 first = static_cast<i32>(blockIdx.x) % blocks * kColumns;
  const abi::GradientEntry& e = p.gradients[expert];
  // fc1: gate, then up from the next multiple of 64 columns on; or both alternating.
  const i32 whole = ceil_div(e.width, 64) * 64;
  const i32 columns = Gradient::kFc2 ? Gradient::kHidden : Gradient::kAlternating ? 2 * e.width : Gradient::kGated ? whole + e.width : e.width;
  if (first >= columns) return;
  const i32 lane = static_cast<i32>(threadIdx.x) % 32, warp = static_cast<i32>(threadIdx.x) / 32;
  const i32 column = first + lane * 8;
  float sum[8] = {};
  if (column < columns) {
    const i32 end = Gradient::kSegments ? p.expert_offsets[expert] + p.expert_offsets[p.experts + 1 + expert] : p.expert_offsets[expert + 1];
    for (i32 row = p.expert_offsets[expert] + warp; row < end; row += kWarps) {
      float weight = 1.0f;
      const char* from = static_cast<const char*>(p.rows) + (row * p.rows_stride + column) * 2;
      if constexpr (Gradient::kFc2 && Gradient::kSegments) {
        if (p.topk_weights != nullptr) weight = p.topk_weights[row];
        from = static_cast<const char*>(p.dout) + (row * p.dout_stride + column) * 2;
      } else if constexpr (Gradient::kFc2) {
        const u32 source = static_cast<u32>(p.row_source[row]);
        if constexpr (Gradient::kWeighted) weight = p.topk_weights[source];
        from = static_cast<const char*>(p.dout) + (static_cast<i64>(source / Gradient::kTopK) * p.dout_stride + column) * 2;
      }
      const Vec16 v = ptx::load16_streaming(from);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float lo, hi;
        ptx::unpack2<Gradient::kElement>(lo, hi, v.v[c]);
        sum[2 * c] += weight * lo;
        sum[2 * c + 1] += weight * hi;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) sums[warp][lane * 8 + c] = sum[c];
  __syncthreads();
  for (i32 c = static_cast<i32>(threadIdx.x); c < kColumns; c += kThreads) {
    const i32 at = first + c;
    if (at >= columns) continue;
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) total += sums[w][c];
    u64 base = e.down_bias;
    i64 index = at;
    if constexpr (!Gradient::kFc2) {
      bool up = true;
      if constexpr (Gradient::kAlternating) {
        up = at % 2 != 0;
        index = at / 2;
      } else if constexpr (Gradient::kGated) {
        up = at >= whole;
        if (!up && at >= e.width) continue;
        index = up ? at - whole : at;
      }
      base = up ? e.up_bias : e.gate_bias;
      index *= e.bias_stride;
    }
    if constexpr (Gradient::kFp32) {
      float* out = reinterpret_cast<float*>(base) + index;
      *out = p.accumulate != 0 ? *out + total : total;
    } else {
      char* out = reinterpret_cast<char*>(base) + index * 2;
      if (p.accumulate != 0) {
        float lo, hi;
        ptx::unpack2<Gradient::kElement>(lo, hi, ptx::load2(out));
        total += lo;
      }
      ptx::store2(out, ptx::pack2<Gradient::kElement>(total, 0.0f));
    }
  }
}

}  // namespace varmoe::moe
