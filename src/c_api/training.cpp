#include <string>
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

/// saved_bytes and workspace_bytes.
template <class Size>
int size_of(const varmoe_training_layer* layer, std::size_t* bytes, Size&& size) noexcept {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!layer) return fail_null("layer");
  return guarded([&] {
    auto needed = size(layer->layer);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

}  // namespace

extern "C" {

int varmoe_training_layer_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                                 const varmoe_training_options* options, varmoe_training_layer** layer) {
  if (!layer) return fail_null("layer");
  *layer = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto cpp_spec = to_cpp(spec);
    if (!cpp_spec) return fail(cpp_spec.error());
    auto cpp_options = to_cpp(options);
    if (!cpp_options) return fail(cpp_options.error());
    auto created = engine->engine.create_training_layer(*cpp_spec, *cpp_options);
    if (!created) return fail(created.error());
    *layer = new varmoe_training_layer{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_training_layer_destroy(varmoe_training_layer* layer) {
  delete layer;
}

int varmoe_training_layer_prepare(varmoe_training_layer* layer, const varmoe_prepare_options* options,
                                  varmoe_report** report) {
  if (report) *report = nullptr;
  if (!layer) return fail_null("layer");
  return prepare(layer->layer, options, report);
}

int varmoe_training_layer_bind(varmoe_training_layer* layer, const varmoe_weights* weights) {
  if (!layer) return fail_null("layer");
  return guarded([&] {
    auto converted = to_cpp(weights, layer->layer.spec());
    if (!converted) return fail(converted.error());
    return code_of(layer->layer.bind(*converted));
  });
}

int varmoe_training_layer_bind_gradients(varmoe_training_layer* layer, const varmoe_weights* gradients) {
  if (!layer) return fail_null("layer");
  return guarded([&] {
    auto converted = to_cpp(gradients, layer->layer.spec(), layer->layer.options().gradient_type);
    if (!converted)
      return fail(converted.error().code(), "gradients: " + std::string(converted.error().message()));
    return code_of(layer->layer.bind_gradients(*converted));
  });
}

int varmoe_training_layer_saved_bytes(const varmoe_training_layer* layer, int64_t tokens, size_t* bytes) {
  return size_of(layer, bytes, [&](const TrainingLayer& l) { return l.saved_bytes(tokens); });
}

int varmoe_training_layer_workspace_bytes(const varmoe_training_layer* layer, int64_t tokens, size_t* bytes) {
  return size_of(layer, bytes, [&](const TrainingLayer& l) { return l.workspace_bytes(tokens); });
}

int varmoe_training_layer_forward(varmoe_training_layer* layer, const varmoe_forward_args* args, void* saved,
                                  size_t saved_bytes) {
  if (!layer) return fail_null("layer");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(layer->layer.forward(*converted, saved, saved_bytes));
  });
}

int varmoe_training_layer_backward(varmoe_training_layer* layer, const varmoe_backward_args* args) {
  if (!layer) return fail_null("layer");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    return code_of(layer->layer.backward(*converted));
  });
}
}
