#pragma once

#include <bit>
#include <cstdint>

#include "abi.cuh"
#include "cuda/launch.hpp"
#include "moe/rank_key.cuh"
#include "plan/routing.hpp"

/// What launches of the routing operations have in common.
namespace varmoe::plan {

template <class Params>
Status launch(const RoutingContext& context, const LoadedKernel& kernel, const cuda::Dim3& blocks,
              Params& params, void* stream) noexcept {
  void* arguments[] = {&params};
  return cuda::launch(*context.driver, kernel.function, blocks,
                      {static_cast<std::uint32_t>(kernel.block_threads)},
                      static_cast<std::uint32_t>(kernel.dynamic_smem_bytes), stream, arguments,
                      {.programmatic_dependent_launch = context.dependent_launch});
}

template <class Params>
Status launch(const RoutingContext& context, const LoadedKernel& kernel, std::int64_t blocks, Params& params,
              void* stream) noexcept {
  return launch(context, kernel, cuda::Dim3{static_cast<std::uint32_t>(blocks)}, params, stream);
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Whether rows of `element` bytes from `base`, `stride` elements apart, let a lane load its experts at once.
inline i32 loads_wide(const void* base, std::int64_t stride, i32 element, std::int64_t experts) {
  const auto wide =
      static_cast<std::uint64_t>(element * moe::experts_per_load(static_cast<i32>(experts), element));
  return std::bit_cast<std::uintptr_t>(base) % wide == 0 &&
                 static_cast<std::uint64_t>(stride) * static_cast<std::uint64_t>(element) % wide == 0
             ? 1
             : 0;
}

}  // namespace varmoe::plan
