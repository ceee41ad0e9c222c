#pragma once

#include <string>
#include <vector>

#include "varmoe/tuning.hpp"

/// Records as people read them.
namespace varmoe::tools {

/// "wgmma 160x256, 4 stages, cluster 2": what people compare.
std::string brief(const GemmConfig& config);
std::string brief(const GradientConfig& config);
/// One GEMM of a record: fc1 and fc2, or a backward pass's four products.
struct ProductText {
  const char* name;    ///< "fc1_gradient": as in the record
  std::string config;  ///< to_string
  std::string brief;
  double us = 0;
};
std::vector<ProductText> products_of(const TuningRecord& record);
/// "forward"; "backward, fp32 gradients".
std::string pass_text(const TuningKey& key);
/// "up to 8 tokens", or "-" where the kernels run one by one.
std::string one_launch_text(const LayerConfig& config);
/// "128 experts of 768, top-8, hidden 2048, silu_mul, bf16".
std::string layer_text(const TuningKey& key);
/// The same for a column of a table: many widths as "64 experts of 16 widths from 128 to 2048, …".
std::string brief(const TuningKey& key);

}  // namespace varmoe::tools
