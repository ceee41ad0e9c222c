#pragma once

#include "prelude.cuh"

// One lane of a converged warp (PTX ISA, "elect.sync"; sm_90). The assembler knows that what it guards runs once, so copies issued under it
// need no loop over lanes.
namespace varmoe::ptx {

VARMOE_DEVICE bool elect_one() {
  u32 elected;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}\n" : "=r"(elected));
  return elected != 0;
}

}  // namespace varmoe::ptx
