#pragma once

#include <cstdint>

#include "cuda/driver.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

struct Dim3 {
  std::uint32_t x = 1, y = 1, z = 1;
};

struct LaunchAttributes {
  /// The kernel may start before its predecessor on the stream has finished; it waits with
  /// griddepcontrol.wait.
  bool programmatic_dependent_launch = false;
  /// Blocks of a cluster along x; 1: none. Divides grid.x.
  std::int32_t cluster = 1;
};

/// Enqueues one kernel. `function` is a CUfunction, `params` the addresses of its arguments. No lock,
/// allocation or synchronisation of ours. With a null stream the device's context must be current (see
/// ContextScope).
Status launch(const Driver& driver, void* function, Dim3 grid, Dim3 block, std::uint32_t dynamic_smem,
              void* stream, void** params, const LaunchAttributes& attributes = {}) noexcept;

}  // namespace varmoe::cuda
