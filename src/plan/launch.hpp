#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/launch.hpp"
#include "plan/plan.hpp"
#include "varmoe/error.hpp"

namespace varmoe::plan {

template <class T>
inline T* at(std::uint64_t base, std::size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

/// Enqueues a kernel of one block or more.
template <class Params>
Status launch_kernel(const RunContext& context, void* stream, const LoadedKernel& kernel, std::int64_t blocks,
                     Params& params) noexcept {
  void* arguments[] = {&params};
  return cuda::launch(*context.driver, kernel.function,
                      {static_cast<std::uint32_t>(std::max<std::int64_t>(blocks, 1))},
                      {static_cast<std::uint32_t>(kernel.block_threads)},
                      static_cast<std::uint32_t>(kernel.dynamic_smem_bytes), stream, arguments,
                      {.programmatic_dependent_launch = context.dependent_launch});
}

}  // namespace varmoe::plan
