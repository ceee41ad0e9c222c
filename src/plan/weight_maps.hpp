#pragma once

#include <cstddef>
#include <cstdint>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cuda {
class Driver;
}

namespace varmoe::plan {

/// Of expert e of all: the routed ones, then the shared ones.
inline const ExpertWeights& weights_of(const Weights& weights, std::int64_t e) {
  const auto at = static_cast<std::size_t>(e);
  return at < weights.experts.size() ? weights.experts[at] : weights.shared[at - weights.experts.size()];
}

/// Encodes every expert's tensor maps of fc1 and fc2 as kernels_src/moe/fc1_sm90.cuh and fc2_sm90.cuh read
/// them: boxes of 64 weight rows by 64 elements of K. `fc1` and `fc2`: abi::TensorMap[experts] each, any
/// alignment.
Status encode_weight_maps(const cuda::Driver& driver, const LayerSpec& spec, const Weights& weights,
                          std::byte* fc1, std::byte* fc2);

}  // namespace varmoe::plan
