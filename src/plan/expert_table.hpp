#pragma once

#include <cstddef>
#include <cstdint>

#include "abi.cuh"

namespace varmoe::plan {

/// Offsets in the device table of a layer with `experts` experts, shared ones included; see
/// make_expert_table.
struct ExpertTableLayout {
  std::size_t entries = 0;
  std::size_t order;        ///< i32[experts]
  std::size_t class_begin;  ///< i32[kMaxClasses + 1]
  std::size_t one_class;    ///< i32[2]: 0, experts
  std::size_t shared_gate;  ///< u64: address of w_g; 0 without a shared gate
  std::size_t fc1_maps;     ///< abi::TensorMap[experts]; zeroes without tensor maps
  std::size_t fc2_maps;
  std::size_t biases;  ///< abi::ExpertBias[experts]; zeroes of a layer without
  std::size_t bytes;

  explicit constexpr ExpertTableLayout(std::int64_t experts)
      : order(static_cast<std::size_t>(experts) * sizeof(abi::ExpertEntry)),
        class_begin(order + static_cast<std::size_t>(experts) * sizeof(i32)),
        one_class(class_begin + (abi::kMaxClasses + 1) * sizeof(i32)),
        shared_gate((one_class + 2 * sizeof(i32) + alignof(u64) - 1) / alignof(u64) * alignof(u64)),
        fc1_maps((shared_gate + sizeof(u64) + alignof(abi::TensorMap) - 1) / alignof(abi::TensorMap) *
                 alignof(abi::TensorMap)),
        fc2_maps(fc1_maps + static_cast<std::size_t>(experts) * sizeof(abi::TensorMap)),
        biases(fc2_maps + static_cast<std::size_t>(experts) * sizeof(abi::TensorMap)),
        bytes(biases + static_cast<std::size_t>(experts) * sizeof(abi::ExpertBias)) {}
};

}  // namespace varmoe::plan
