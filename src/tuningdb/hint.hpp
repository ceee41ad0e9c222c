#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "varmoe/layer_spec.hpp"

namespace varmoe::tuningdb {

/// What another library's tuning found for its own kernels: no measurement of ours, but a place for a search
/// to begin. What a file does not say is 0, empty or absent.
struct TuningHint {
  std::string source;       ///< "tuned_fmoe.csv: line 12"
  std::string device_name;  ///< as the file has it
  std::int32_t cu_num = 0;
  std::int64_t token = 0;  ///< as the file has it, not rounded to a bucket
  std::int64_t model_dim = 0, inter_dim = 0, expert = 0, topk = 0;
  std::optional<Activation> act_type;
  std::optional<DType> dtype;
  bool doweight_stage1 = false;

  std::int32_t block_m = 0, block_n = 0, block_k = 0;
  std::int32_t ksplit = 0;
  std::int32_t group_m = 0;  ///< row tiles per group of the raster
  std::int32_t warps = 0, stages = 0;
  double us = 0;
};

struct HintImport {
  std::vector<TuningHint> hints;
  std::vector<std::string> dropped;  ///< what was left out, a sentence each
};

}  // namespace varmoe::tuningdb
