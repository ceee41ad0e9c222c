#pragma once

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_gradient.hpp"
#include "varmoe/router_statistics.hpp"
#include "varmoe/training.hpp"
#include "varmoe/varmoe.h"
#include "varmoe/weights.hpp"

/// From the C structs to the C++ ones. Sizes, enumerators, pointers and counts are checked here; what the
/// values mean is the C++ API's business. Errors name struct and member.
namespace varmoe::c_api {

Result<EngineOptions> to_cpp(const varmoe_engine_options* options);
Result<LayerSpec> to_cpp(const varmoe_layer_spec* spec);
Result<LayerOptions> to_cpp(const varmoe_layer_options* options);
/// Without the callback, which the caller wires up.
Result<PrepareOptions> to_cpp(const varmoe_prepare_options& options);
Result<Weights> to_cpp(const varmoe_weights* weights, const LayerSpec& spec);
/// Of gradients, whose elements may have four bytes.
Result<Weights> to_cpp(const varmoe_weights* gradients, const LayerSpec& spec, GradientType type);
Result<ForwardArgs> to_cpp(const varmoe_forward_args* args);
Result<UpArgs> to_cpp(const varmoe_up_args* args);
Result<TrainingOptions> to_cpp(const varmoe_training_options* options);
Result<BackwardArgs> to_cpp(const varmoe_backward_args* args);
Result<RouterSpec> to_cpp(const varmoe_router_spec* spec);
Result<RouteArgs> to_cpp(const varmoe_route_args* args);
Result<AlignSpec> to_cpp(const varmoe_align_spec* spec);
Result<AlignArgs> to_cpp(const varmoe_align_args* args);
Result<RouterStatisticsSpec> to_cpp(const varmoe_router_statistics_spec* spec);
Result<RouterStatisticsArgs> to_cpp(const varmoe_router_statistics_args* args);
Result<RouterGradientSpec> to_cpp(const varmoe_router_gradient_spec* spec);
Result<RouterGradientArgs> to_cpp(const varmoe_router_gradient_args* args);
Result<RouterProductGradientArgs> to_cpp(const varmoe_router_product_gradient_args* args);

}  // namespace varmoe::c_api
