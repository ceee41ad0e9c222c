#pragma once

#include <cstdint>

#include "varmoe/kernel_config.hpp"

/// Configs of Hopper's schedules, with the fields that a schedule fixes.
namespace varmoe::test {

inline GemmConfig wgmma(std::int32_t block_m, std::int32_t block_n, std::int32_t stages) {
  return {.schedule = Schedule::wgmma,
          .block_m = block_m,
          .block_n = block_n,
          .stages = stages,
          .warps_m = 1,
          .warps_n = 8};
}
inline GemmConfig pingpong(std::int32_t block_m, std::int32_t block_n, std::int32_t stages) {
  return {.schedule = Schedule::wgmma_pingpong,
          .block_m = block_m,
          .block_n = block_n,
          .stages = stages,
          .warps_m = 2,
          .warps_n = 4};
}

}  // namespace varmoe::test
