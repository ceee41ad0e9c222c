#pragma once

#include "prelude.cuh"

// 1 / x without the branches that a division has for operands near the ends of fp32's range.
namespace varmoe::ptx {

/// Rounded as a division rounds, for x from 1 to 2^125: the approximation of one ulp and a Newton step, as the compiler's own
/// division has it there.
VARMOE_DEVICE float reciprocal_of_normal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
  return __fmaf_rn(__fmaf_rn(-x, r, 1.0f), r, r);
}

}  // namespace varmoe::ptx
