#pragma once

#include <vector>

#include "engine/kernel_builder.hpp"
#include "tools/common/layer_input.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router_spec.hpp"

/// The kernels of the routers that a model describes beside its layers.
namespace varmoe::tools {

/// Each router once, in a fixed order.
std::vector<RouterSpec> routers_of(const std::vector<InputLayer>& layers);

/// What a Router of this spec asks for, whatever the number of tokens.
Result<std::vector<engine::UnitRequest>> router_requests(const RouterSpec& router,
                                                         engine::KernelBuilder& builder);

}  // namespace varmoe::tools
