#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/config_space.hpp"
#include "model/device_profile.hpp"
#include "varmoe/backward_config.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::tuner {

/// How many of a GEMM's candidates a search tries, best predicted first.
struct CandidateLimits {
  std::size_t most = 48;  ///< 0: all there are
  /// Of each schedule at least this many (as far as there are), wherever the cost model ranks them: it
  /// compares the configs of one schedule better than the schedules.
  std::size_t per_schedule = 8;
  /// Those predicted more than this many times slower than the best are left out, but for the per_schedule
  /// first.
  double slower = 2.5;
};

/// Candidates of one GEMM for a token bucket, by predicted time (the order of model::gemm_candidates among
/// equals). Each passes check_gemm_config.
std::vector<GemmConfig> ranked_candidates(const LayerSpec& spec, model::GemmStage stage, std::int64_t bucket,
                                          const model::DeviceProfile& device, const CandidateLimits& limits);

/// The same of a weight's gradient: by predicted cost, deeper pipelines first among equals. Each passes
/// check_gradient_config.
std::vector<GradientConfig> ranked_gradients(const LayerSpec& spec, model::GemmStage stage,
                                             const model::DeviceProfile& device,
                                             const CandidateLimits& limits);

/// The config with one field of sort, gather or combine changed, or the whole layer in one launch: what of
/// these kernels is worth a try for a layer with these GEMMs and this bucket. Grouped by kernel; each passes
/// check_layer_config where `config` does.
struct BlockVariants {
  std::vector<LayerConfig> sort, gather, combine, one_launch;
};
BlockVariants block_variants(const LayerSpec& spec, std::int64_t bucket, const LayerConfig& config);

}  // namespace varmoe::tuner
