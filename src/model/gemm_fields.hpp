#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "varmoe/kernel_config.hpp"

/// The integer fields of a GemmConfig and the values each takes on its own; what they allow together is
/// config_space's.
namespace varmoe::model {

struct GemmField {
  const char* key;
  std::int32_t GemmConfig::*member;
  /// The values, or empty when min, max and multiple say it.
  std::span<const std::int32_t> choices;
  std::int32_t min = 0, max = 0, multiple = 1;

  bool takes(std::int64_t value) const;
  /// "one of 16, 32, 64" or "a multiple of 16 from 32 to 256".
  std::string allowed() const;
};

/// In the order of the text form: block_m, block_n, block_k, stages, warps_m, warps_n, ctas_per_sm, raster, row_step, cluster.
std::span<const GemmField> gemm_fields();

}  // namespace varmoe::model
