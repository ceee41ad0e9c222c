#pragma once

#include "prelude.cuh"

// fp32 ↔ two-byte elements, round to nearest even.
namespace varmoe::ptx {

/// Two elements in one register: `lo` in the low half, as memory order wants.
template <Element kElement>
VARMOE_DEVICE u32 pack2(float lo, float hi) {
  u32 d;
  if constexpr (kElement == Element::bf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(d) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(d) : "f"(hi), "f"(lo));
  }
  return d;
}

template <Element kElement>
VARMOE_DEVICE void unpack2(float& lo, float& hi, u32 v) {
  if constexpr (kElement == Element::bf16) {
    lo = __uint_as_float(v << 16);
    hi = __uint_as_float(v & 0xffff0000u);
  } else {
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}\n" : "=f"(lo), "=f"(hi) : "r"(v));
  }
}

}  // namespace varmoe::ptx
