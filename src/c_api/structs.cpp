#include "c_api/structs.hpp"

#include <fmt/format.h>

#include "c_api/last_error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/router_spec.hpp"
#include "varmoe/training.hpp"

namespace varmoe::c_api {

Error bad_size(const char* type, std::size_t given, std::size_t least, std::size_t known) {
  return {ErrorCode::invalid_argument, fmt::format("{}: struct_size = {}: must be at least {} (this library "
                                                   "knows {}); set the struct up with its _init "
                                                   "function",
                                                   type, given, least, known)};
}

Error unknown_members(const char* type, std::size_t given, std::size_t known) {
  return {ErrorCode::unsupported, fmt::format("{}: struct_size = {} with members set beyond the {} bytes "
                                              "that this library ({}) knows: the caller "
                                              "was compiled for a newer one",
                                              type, given, known, varmoe_version())};
}

varmoe_engine_options default_engine_options() {
  varmoe_engine_options o{};
  o.struct_size = sizeof o;
  o.cache_mode = -1;
  o.jit = -1;
  o.tune = -1;
  o.cache_max_bytes = -1;
  return o;
}

varmoe_layer_spec default_layer_spec() {
  const ActivationParams params;
  varmoe_layer_spec s{};
  s.struct_size = sizeof s;
  s.alpha = params.alpha;
  s.limit = params.limit;
  return s;
}

varmoe_layer_options default_layer_options() {
  varmoe_layer_options o{};
  o.struct_size = sizeof o;
  return o;
}

varmoe_prepare_options default_prepare_options() {
  varmoe_prepare_options o{};
  o.struct_size = sizeof o;
  o.min_tokens = 1;
  o.max_tokens = 4096;
  return o;
}

varmoe_weights default_weights() {
  varmoe_weights w{};
  w.struct_size = sizeof w;
  return w;
}

varmoe_forward_args default_forward_args() {
  varmoe_forward_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_up_args default_up_args() {
  varmoe_up_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_training_options default_training_options() {
  const TrainingOptions defaults;
  varmoe_training_options o{};
  o.struct_size = sizeof o;
  o.save_preactivation = defaults.save_preactivation ? 1 : 0;
  o.gradient_type = static_cast<int32_t>(defaults.gradient_type);
  return o;
}

varmoe_backward_args default_backward_args() {
  varmoe_backward_args a{};
  a.struct_size = sizeof a;
  a.weight_gradients = BackwardArgs{}.weight_gradients ? 1 : 0;
  return a;
}

varmoe_router_spec default_router_spec() {
  const RouterSpec defaults;
  varmoe_router_spec s{};
  s.struct_size = sizeof s;
  s.scaling_factor = defaults.scaling_factor;
  s.num_groups = defaults.num_groups;
  s.top_groups = defaults.top_groups;
  s.weight_type = static_cast<int32_t>(defaults.weight_type);
  return s;
}

varmoe_route_args default_route_args() {
  varmoe_route_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_align_spec default_align_spec() {
  varmoe_align_spec s{};
  s.struct_size = sizeof s;
  s.block_size = AlignSpec{}.block_size;
  return s;
}

varmoe_align_args default_align_args() {
  varmoe_align_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_router_statistics_spec default_router_statistics_spec() {
  varmoe_router_statistics_spec s{};
  s.struct_size = sizeof s;
  return s;
}

varmoe_router_statistics_args default_router_statistics_args() {
  varmoe_router_statistics_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_router_gradient_spec default_router_gradient_spec() {
  varmoe_router_gradient_spec s{};
  s.struct_size = sizeof s;
  return s;
}

varmoe_router_gradient_args default_router_gradient_args() {
  varmoe_router_gradient_args a{};
  a.struct_size = sizeof a;
  return a;
}

varmoe_router_product_gradient_args default_router_product_gradient_args() {
  varmoe_router_product_gradient_args a{};
  a.struct_size = sizeof a;
  return a;
}

namespace {

template <class T>
int init(T* given, std::size_t size, const char* type, const T& values) noexcept {
  if (!given) return fail_null(type);
  return guarded([&] {
    Status status = write_struct(given, size, type, values);
    return status ? VARMOE_OK : fail(status.error());
  });
}

}  // namespace
}  // namespace varmoe::c_api

using namespace varmoe::c_api;

extern "C" {

int varmoe_engine_options_init(varmoe_engine_options* options, size_t struct_size) {
  return init(options, struct_size, "varmoe_engine_options", default_engine_options());
}
int varmoe_layer_spec_init(varmoe_layer_spec* spec, size_t struct_size) {
  return init(spec, struct_size, "varmoe_layer_spec", default_layer_spec());
}
int varmoe_layer_options_init(varmoe_layer_options* options, size_t struct_size) {
  return init(options, struct_size, "varmoe_layer_options", default_layer_options());
}
int varmoe_prepare_options_init(varmoe_prepare_options* options, size_t struct_size) {
  return init(options, struct_size, "varmoe_prepare_options", default_prepare_options());
}
int varmoe_weights_init(varmoe_weights* weights, size_t struct_size) {
  return init(weights, struct_size, "varmoe_weights", default_weights());
}
int varmoe_forward_args_init(varmoe_forward_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_forward_args", default_forward_args());
}
int varmoe_up_args_init(varmoe_up_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_up_args", default_up_args());
}
int varmoe_training_options_init(varmoe_training_options* options, size_t struct_size) {
  return init(options, struct_size, "varmoe_training_options", default_training_options());
}
int varmoe_backward_args_init(varmoe_backward_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_backward_args", default_backward_args());
}
int varmoe_counters_init(varmoe_counters* counters, size_t struct_size) {
  return init(counters, struct_size, "varmoe_counters", varmoe_counters{});
}
int varmoe_kernel_report_init(varmoe_kernel_report* report, size_t struct_size) {
  return init(report, struct_size, "varmoe_kernel_report", varmoe_kernel_report{});
}
int varmoe_router_spec_init(varmoe_router_spec* spec, size_t struct_size) {
  return init(spec, struct_size, "varmoe_router_spec", default_router_spec());
}
int varmoe_route_args_init(varmoe_route_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_route_args", default_route_args());
}
int varmoe_align_spec_init(varmoe_align_spec* spec, size_t struct_size) {
  return init(spec, struct_size, "varmoe_align_spec", default_align_spec());
}
int varmoe_align_args_init(varmoe_align_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_align_args", default_align_args());
}
int varmoe_router_statistics_spec_init(varmoe_router_statistics_spec* spec, size_t struct_size) {
  return init(spec, struct_size, "varmoe_router_statistics_spec", default_router_statistics_spec());
}
int varmoe_router_statistics_args_init(varmoe_router_statistics_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_router_statistics_args", default_router_statistics_args());
}
int varmoe_router_gradient_spec_init(varmoe_router_gradient_spec* spec, size_t struct_size) {
  return init(spec, struct_size, "varmoe_router_gradient_spec", default_router_gradient_spec());
}
int varmoe_router_gradient_args_init(varmoe_router_gradient_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_router_gradient_args", default_router_gradient_args());
}
int varmoe_router_product_gradient_args_init(varmoe_router_product_gradient_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_router_product_gradient_args",
              default_router_product_gradient_args());
}
}
