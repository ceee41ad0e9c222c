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

int varmoe_router_gradient_create(varmoe_engine* engine, const varmoe_router_gradient_spec* spec,
                                  varmoe_router_gradient** gradient) {
  if (!gradient) return fail_null("gradient");
  *gradient = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    auto created = engine->engine.create_router_gradient(*converted);
    if (!created) return fail(created.error());
    *gradient = new varmoe_router_gradient{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_router_gradient_destroy(varmoe_router_gradient* gradient) {
  delete gradient;
}

int varmoe_router_gradient_prepare(varmoe_router_gradient* gradient, const varmoe_prepare_options* options,
                                   varmoe_report** report) {
  if (report) *report = nullptr;
  if (!gradient) return fail_null("gradient");
  return prepare(gradient->gradient, options, report);
}

int varmoe_router_gradient_workspace_bytes(const varmoe_router_gradient* gradient, int64_t tokens,
                                           size_t* bytes) {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!gradient) return fail_null("gradient");
  return guarded([&] {
    auto needed = gradient->gradient.workspace_bytes(tokens);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int varmoe_router_gradient_compute(varmoe_router_gradient* gradient,
                                   const varmoe_router_gradient_args* args) {
  if (!gradient) return fail_null("gradient");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(gradient->gradient.compute(*converted));
  });
}

int varmoe_router_gradient_product(varmoe_router_gradient* gradient,
                                   const varmoe_router_product_gradient_args* args) {
  if (!gradient) return fail_null("gradient");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(gradient->gradient.product(*converted));
  });
}
}
