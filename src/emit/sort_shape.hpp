#pragma once

#include <cstdint>

/// Shape of the sort kernels (kernels_src/moe/sort.cuh).
namespace varmoe::emit {

/// Dynamic shared memory of a sort kernel: struct Sort::Shared.
constexpr std::int32_t sort_smem_bytes(std::int64_t experts, std::int32_t block_threads) {
  return static_cast<std::int32_t>((block_threads / 32 * experts + 8 * experts + 4) * 4);
}

/// `wanted` threads, halved until the counts fit into what every supported GPU gives a block.
constexpr std::int32_t sort_block_threads(std::int64_t experts, std::int32_t wanted) {
  constexpr std::int32_t kSmallestLimit = 99 * 1024;  // sm_86, sm_89, sm_120
  while (wanted > 32 && sort_smem_bytes(experts, wanted) > kSmallestLimit) wanted /= 2;
  return wanted / 32 * 32;
}

}  // namespace varmoe::emit
