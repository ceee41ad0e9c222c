#pragma once

#include <cstdint>

#include "model/device_profile.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// Which layers one launch can do (kernels_src/moe/whole_layer.cuh), and with what. Not those with biases or weights on the input.
namespace varmoe::model {

/// abi::kMaxLayerBlocks, which plan asserts.
inline constexpr std::int32_t kMaxOneLaunchBlocks = 256;
inline constexpr std::int32_t kMaxOneLaunchTokens = 16;
inline constexpr std::int32_t kFewestOneLaunchTeams = 1, kMostOneLaunchTeams = 2;

/// Dynamic shared memory of the whole-layer kernel; the emitted source asserts that this agrees.
std::int64_t one_launch_smem_bytes(const LayerSpec& spec, const OneLaunchConfig& config);

/// Threads of its block: the teams, and a warp that deals with other blocks.
constexpr std::int32_t one_launch_threads(const OneLaunchConfig& config) {
  return 32 * (4 * config.teams + 1);
}

/// invalid_config naming field, value and choices; unsupported for a layer that the kernel does not take.
/// max_tokens = 0 is always sound.
Status check_one_launch(const LayerSpec& spec, const OneLaunchConfig& config);
/// The same, within the limits of a device.
Status check_one_launch(const LayerSpec& spec, const OneLaunchConfig& config, const DeviceProfile& device);

/// What serves a token bucket on a device: most teams that fit; max_tokens 0 where the kernels
/// one by one are at least as fast.
OneLaunchConfig predict_one_launch(const LayerSpec& spec, std::int64_t bucket, const DeviceProfile& device);

}  // namespace varmoe::model
