#pragma once

#include <cstdint>

#include "varmoe/kernel_config.hpp"

/// What the misbehaving worker does with a config: the config says so itself, by its block_threads of the
/// combine kernel, so that a restarted worker knows as much as the first one.
namespace varmoe::test {

/// A backward pass whose dh has this raster ends the worker.
inline constexpr std::int32_t kCrashingRaster = 37;

enum class Misbehaviour : std::int32_t {
  crash = 1,
  exit_quietly,
  hang,
  garbage,
  endless_line,
  nan,
  zero,
  none,  ///< 256 threads: the default
  negative,
  overflow,
  wrong_result,
  another_config,
  another_index,
  cut_line,
  grandchild,  ///< starts a process of its own, then hangs
  give_up,     ///< says that its measurer can no more
  report,      ///< fails with what the worker inherited: descriptors and signal mask
  turn_forever,
  twice,          ///< answers it two times
  compile_crash,  ///< before any config of its request is named
};

inline LayerConfig config_that(Misbehaviour what, LayerConfig base = {}) {
  base.combine.block_threads = 32 * static_cast<std::int32_t>(what);
  return base;
}
inline Misbehaviour misbehaviour_of(const LayerConfig& config) {
  return static_cast<Misbehaviour>(config.combine.block_threads / 32);
}

}  // namespace varmoe::test
