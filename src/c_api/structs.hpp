#pragma once

#include <cstddef>
#include <cstring>

#include "varmoe/error.hpp"
#include "varmoe/varmoe.h"

/// Structs that carry their size: callers compiled against an older or newer varmoe.h.
namespace varmoe::c_api {

/// Size of a struct in version 0.1: the least that is accepted. A member added later must not change these.
template <class T>
inline constexpr std::size_t kFirstSize = 0;
#define VARMOE_FIRST_SIZE(type, last_member) \
  template <>                                \
  inline constexpr std::size_t kFirstSize<type> = offsetof(type, last_member) + sizeof(type::last_member)
VARMOE_FIRST_SIZE(varmoe_engine_options, log_user);
VARMOE_FIRST_SIZE(varmoe_layer_spec, limit);
VARMOE_FIRST_SIZE(varmoe_layer_options, reserved);
VARMOE_FIRST_SIZE(varmoe_prepare_options, progress_user);
VARMOE_FIRST_SIZE(varmoe_weights, num_experts);
VARMOE_FIRST_SIZE(varmoe_forward_args, stream);
VARMOE_FIRST_SIZE(varmoe_up_args, stream);
VARMOE_FIRST_SIZE(varmoe_blocks_options, weighted_down);
VARMOE_FIRST_SIZE(varmoe_rows_by_expert, routed_rows);
VARMOE_FIRST_SIZE(varmoe_gather_args, reserved);
VARMOE_FIRST_SIZE(varmoe_slot_rows_args, stream);
VARMOE_FIRST_SIZE(varmoe_grouped_up_args, stream);
VARMOE_FIRST_SIZE(varmoe_grouped_down_args, stream);
VARMOE_FIRST_SIZE(varmoe_grouped_down_backward_args, stream);
VARMOE_FIRST_SIZE(varmoe_grouped_up_backward_args, stream);
VARMOE_FIRST_SIZE(varmoe_combine_args, stream);
VARMOE_FIRST_SIZE(varmoe_combine_backward_args, stream);
VARMOE_FIRST_SIZE(varmoe_training_options, reserved);
VARMOE_FIRST_SIZE(varmoe_backward_args, stream);
VARMOE_FIRST_SIZE(varmoe_counters, configs_predicted);
VARMOE_FIRST_SIZE(varmoe_kernel_report, compile_ms);
VARMOE_FIRST_SIZE(varmoe_router_spec, weight_on_input);
VARMOE_FIRST_SIZE(varmoe_route_args, stream);
VARMOE_FIRST_SIZE(varmoe_align_spec, block_size);
VARMOE_FIRST_SIZE(varmoe_align_args, stream);
VARMOE_FIRST_SIZE(varmoe_router_statistics_spec, scoring);
VARMOE_FIRST_SIZE(varmoe_router_statistics_args, stream);
VARMOE_FIRST_SIZE(varmoe_router_gradient_spec, reserved);
VARMOE_FIRST_SIZE(varmoe_router_gradient_args, stream);
VARMOE_FIRST_SIZE(varmoe_router_product_gradient_args, stream);
#undef VARMOE_FIRST_SIZE

/// No version will grow a struct by more; a larger size is a struct that was never set up.
inline constexpr std::size_t kMostGrowth = 4096;

/// Error of a struct size that is out of range, or of unknown members that are set.
Error bad_size(const char* type, std::size_t given, std::size_t least, std::size_t known);
Error unknown_members(const char* type, std::size_t given, std::size_t known);

/// A whole struct of this library's version from the caller's: members that the caller does not know are
/// those of `defaults`.
template <class T>
Result<T> read_struct(const T* given, const char* type, T defaults) {
  const std::size_t size = given->struct_size;
  if (size < kFirstSize<T> || size > sizeof(T) + kMostGrowth)
    return bad_size(type, size, kFirstSize<T>, sizeof(T));
  for (std::size_t i = sizeof(T); i < size; ++i)
    if (reinterpret_cast<const unsigned char*>(given)[i] != 0) return unknown_members(type, size, sizeof(T));
  std::memcpy(&defaults, given, size < sizeof(T) ? size : sizeof(T));
  return defaults;
}

/// Writes as much as the caller's struct holds, zeros after what this library knows, and keeps the caller's
/// struct_size.
template <class T>
Status write_struct(T* given, std::size_t size, const char* type, const T& values) {
  if (size < kFirstSize<T> || size > sizeof(T) + kMostGrowth)
    return bad_size(type, size, kFirstSize<T>, sizeof(T));
  std::memset(static_cast<void*>(given), 0, size);
  std::memcpy(static_cast<void*>(given), &values, size < sizeof(T) ? size : sizeof(T));
  given->struct_size = size;
  return {};
}

/// Defaults, with struct_size = sizeof.
varmoe_engine_options default_engine_options();
varmoe_layer_spec default_layer_spec();
varmoe_layer_options default_layer_options();
varmoe_prepare_options default_prepare_options();
varmoe_weights default_weights();
varmoe_forward_args default_forward_args();
varmoe_up_args default_up_args();
varmoe_training_options default_training_options();
varmoe_backward_args default_backward_args();
varmoe_router_spec default_router_spec();
varmoe_route_args default_route_args();
varmoe_align_spec default_align_spec();
varmoe_align_args default_align_args();
varmoe_router_statistics_spec default_router_statistics_spec();
varmoe_router_statistics_args default_router_statistics_args();
varmoe_router_gradient_spec default_router_gradient_spec();
varmoe_router_gradient_args default_router_gradient_args();
varmoe_router_product_gradient_args default_router_product_gradient_args();

}  // namespace varmoe::c_api
