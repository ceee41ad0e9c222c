#pragma once

#include "epilogue/store_rows.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"

// Stores fragments of a weight's gradient, as two-byte elements or fp32, instead of what is there or added to it.
namespace varmoe::epilogue {

/// Four neighbouring 8-column blocks of one row, of which lane q of each quad holds columns 2q and 2q + 1 in v[2·block…]. `row`:
/// address of the first block's first column; `columns` that exist from there on (a multiple of 8; may be ≤ 0); `valid`: the row exists. Called
/// by whole warps.
template <Element kElement, bool kFp32>
VARMOE_DEVICE void store_gradient(char* row, float (&v)[8], i32 columns, bool valid, bool accumulate) {
  const i32 q = static_cast<i32>(threadIdx.x & 3);
  if (accumulate) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      if (!valid || b * 8 >= columns) continue;
      if constexpr (kFp32) {
        u32 lo, hi;
        ptx::load8(row + (b * 8 + 2 * q) * 4, lo, hi);
        v[2 * b] += __uint_as_float(lo);
        v[2 * b + 1] += __uint_as_float(hi);
      } else {
        float lo, hi;
        ptx::unpack2<kElement>(lo, hi, ptx::load4(row + (b * 8 + 2 * q) * 2));
        v[2 * b] += lo;
        v[2 * b + 1] += hi;
      }
    }
  }
  if constexpr (kFp32) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      if (valid && b * 8 < columns) ptx::store8(row + (b * 8 + 2 * q) * 4, __float_as_uint(v[2 * b]), __float_as_uint(v[2 * b + 1]));
    }
  } else {
    u32 w[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) w[b] = ptx::pack2<kElement>(v[2 * b], v[2 * b + 1]);
    transpose_quad(w);
    if (valid && q * 8 < columns) ptx::store16(row + q * 16, Vec16{{w[0], w[1], w[2], w[3]}});
  }
}

}  // namespace varmoe::epilogue
