#include <utility>

#include "c_api/convert.hpp"
#include "c_api/handles.hpp"
#include "c_api/last_error.hpp"
#include "c_api/prepare.hpp"

using namespace varmoe;
using namespace varmoe::c_api;

namespace {

int code_of(const Status& status) {
  return status ? int{VARMOE_OK} : fail(status.error());
}

}  // namespace

extern "C" {

int varmoe_router_create(varmoe_engine* engine, const varmoe_router_spec* spec, varmoe_router** router) {
  if (!router) return fail_null("router");
  *router = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    auto created = engine->engine.create_router(*converted);
    if (!created) return fail(created.error());
    *router = new varmoe_router{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_router_destroy(varmoe_router* router) {
  delete router;
}

int varmoe_router_prepare(varmoe_router* router, const varmoe_prepare_options* options,
                          varmoe_report** report) {
  if (report) *report = nullptr;
  if (!router) return fail_null("router");
  return prepare(router->router, options, report);
}

int varmoe_router_workspace_bytes(const varmoe_router* router, int64_t tokens, size_t* bytes) {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!router) return fail_null("router");
  return guarded([&] {
    auto needed = router->router.workspace_bytes(tokens);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int varmoe_router_route(varmoe_router* router, const varmoe_route_args* args) {
  if (!router) return fail_null("router");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(router->router.route(*converted));
  });
}

int varmoe_route_and_forward(varmoe_router* router, const varmoe_route_args* route, varmoe_layer* layer,
                             const varmoe_forward_args* forward) {
  if (!router) return fail_null("router");
  if (!route) return fail_null("route");
  if (!layer) return fail_null("layer");
  if (!forward) return fail_null("forward");
  return guarded([&] {
    auto route_args = to_cpp(route);
    if (!route_args) return fail(route_args.error());
    auto forward_args = to_cpp(forward);
    if (!forward_args) return fail(forward_args.error());
    return code_of(route_and_forward(router->router, *route_args, layer->layer, *forward_args));
  });
}

int varmoe_block_aligner_create(varmoe_engine* engine, const varmoe_align_spec* spec,
                                varmoe_block_aligner** aligner) {
  if (!aligner) return fail_null("aligner");
  *aligner = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    auto created = engine->engine.create_block_aligner(*converted);
    if (!created) return fail(created.error());
    *aligner = new varmoe_block_aligner{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_block_aligner_destroy(varmoe_block_aligner* aligner) {
  delete aligner;
}

int varmoe_block_aligner_prepare(varmoe_block_aligner* aligner, const varmoe_prepare_options* options,
                                 varmoe_report** report) {
  if (report) *report = nullptr;
  if (!aligner) return fail_null("aligner");
  return prepare(aligner->aligner, options, report);
}

int varmoe_block_aligner_workspace_bytes(const varmoe_block_aligner* aligner, int64_t rows, size_t* bytes) {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!aligner) return fail_null("aligner");
  return guarded([&] {
    auto needed = aligner->aligner.workspace_bytes(rows);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int varmoe_block_aligner_align(varmoe_block_aligner* aligner, const varmoe_align_args* args) {
  if (!aligner) return fail_null("aligner");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(aligner->aligner.align(*converted));
  });
}

int varmoe_router_statistics_create(varmoe_engine* engine, const varmoe_router_statistics_spec* spec,
                                    varmoe_router_statistics** statistics) {
  if (!statistics) return fail_null("statistics");
  *statistics = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    auto created = engine->engine.create_router_statistics(*converted);
    if (!created) return fail(created.error());
    *statistics = new varmoe_router_statistics{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_router_statistics_destroy(varmoe_router_statistics* statistics) {
  delete statistics;
}

int varmoe_router_statistics_prepare(varmoe_router_statistics* statistics,
                                     const varmoe_prepare_options* options, varmoe_report** report) {
  if (report) *report = nullptr;
  if (!statistics) return fail_null("statistics");
  return prepare(statistics->statistics, options, report);
}

int varmoe_router_statistics_workspace_bytes(const varmoe_router_statistics* statistics, int64_t tokens,
                                             size_t* bytes) {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!statistics) return fail_null("statistics");
  return guarded([&] {
    auto needed = statistics->statistics.workspace_bytes(tokens);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int varmoe_router_statistics_compute(varmoe_router_statistics* statistics,
                                     const varmoe_router_statistics_args* args) {
  if (!statistics) return fail_null("statistics");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(statistics->statistics.compute(*converted));
  });
}

int64_t varmoe_sorted_ids_size(int64_t num_experts, int64_t block_size, int64_t rows) {
  const AlignSpec spec{num_experts, block_size};
  return spec.validate() && rows <= INT32_MAX ? sorted_ids_size(spec, rows) : 0;
}

int64_t varmoe_aligned_blocks(int64_t block_size, int64_t sorted_size) {
  const AlignSpec spec{1, block_size};
  return spec.validate() ? aligned_blocks(spec, sorted_size) : 0;
}
}
