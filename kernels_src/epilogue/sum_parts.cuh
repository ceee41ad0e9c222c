#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"
#include "ptx/warpgroup.cuh"

// Sums of one output tile that several blocks made of parts of its rows: each leaves its own in a slot of fp32, and whichever comes last
// adds all of them up, in their order, so that the result does not depend on which it was. A slot is read as it was written, by the same
// threads of another block: units of eight values a thread, in whatever order the kernel holds them.
namespace varmoe::epilogue {

/// Floats from a thread's place in one unit to the next half of it, and to the next unit.
template <int kThreads>
inline constexpr int kHalfUnit = kThreads * 4;

template <int kThreads>
VARMOE_DEVICE void store_part(float* slot, int unit, u32 thread, const float (&v)[8]) {
  float* const to = slot + 2 * unit * kHalfUnit<kThreads> + thread * 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    ptx::store16(to + h * kHalfUnit<kThreads>, Vec16{{__float_as_uint(v[4 * h]), __float_as_uint(v[4 * h + 1]), __float_as_uint(v[4 * h + 2]),
                                                      __float_as_uint(v[4 * h + 3])}});
  }
}

/// After the whole slot was written: whether all other parts are. `arrivals`: of this tile alone, zero before its first part. By kThreads
/// threads that meet at a named barrier.
template <int kThreads>
VARMOE_DEVICE bool is_last_part(i32* arrivals, i32 parts, u32 thread, u32 barrier) {
  ptx::fence_device();
  ptx::named_barrier(barrier, kThreads);
  bool last = false;
  if (thread == 0) last = atomicAdd(arrivals, 1) == parts - 1;
  last = ptx::named_barrier_any(barrier, kThreads, last);
  ptx::fence_device();
  return last;
}

/// Of kUnits units from `unit` on. `first`: part 0's slot; those of the others follow, `slot_floats` apart.
template <int kUnits, int kThreads>
VARMOE_DEVICE void add_parts(float (&sum)[kUnits][8], const float* first, i64 slot_floats, i32 parts, int unit, u32 thread) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[u][i] = 0;
  }
  const float* from = first + 2 * unit * kHalfUnit<kThreads> + thread * 4;
#pragma unroll 1
  for (i32 q = 0; q < parts; ++q, from += slot_floats) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Vec16 v = ptx::load16_from_l2(from + (2 * u + h) * kHalfUnit<kThreads>);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[u][4 * h + i] += __uint_as_float(v.v[i]);
      }
    }
  }
}

}  // namespace varmoe::epilogue
