#pragma once

#include <string>

#include "varmoe/tuning.hpp"

/// Records as people read them.
namespace varmoe::tools {

/// "wgmma 160x256, 4 stages, cluster 2": what people compare.
std::string brief(const GemmConfig& config);
/// "up to 8 tokens", or "-" where the kernels run one by one.
std::string one_launch_text(const LayerConfig& config);
/// "128 experts of 768, top-8, hidden 2048, silu_mul, bf16".
std::string layer_text(const TuningKey& key);

}  // namespace varmoe::tools
