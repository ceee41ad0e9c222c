#include <utility>

#include "c_api/convert.hpp"
#include "c_api/handles.hpp"
#include "c_api/last_error.hpp"
#include "c_api/prepare.hpp"
#include "c_api/structs.hpp"

using namespace varmoe;
using namespace varmoe::c_api;

extern "C" {

int varmoe_layer_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                        const varmoe_layer_options* options, varmoe_layer** layer) {
  if (!layer) return fail_null("layer");
  *layer = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto cpp_spec = to_cpp(spec);
    if (!cpp_spec) return fail(cpp_spec.error());
    auto cpp_options = to_cpp(options);
    if (!cpp_options) return fail(cpp_options.error());
    auto created = engine->engine.create_layer(*cpp_spec, *cpp_options);
    if (!created) return fail(created.error());
    *layer = new varmoe_layer{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_layer_destroy(varmoe_layer* layer) {
  delete layer;
}

int varmoe_layer_prepare(varmoe_layer* layer, const varmoe_prepare_options* options, varmoe_report** report) {
  if (report) *report = nullptr;
  if (!layer) return fail_null("layer");
  return prepare(layer->layer, options, report);
}

void varmoe_report_destroy(varmoe_report* report) {
  delete report;
}

size_t varmoe_report_kernel_count(const varmoe_report* report) {
  return report ? report->report.kernels.size() : 0;
}

double varmoe_report_total_ms(const varmoe_report* report) {
  return report ? report->report.total_ms : 0.0;
}

int varmoe_report_kernel(const varmoe_report* report, size_t index, varmoe_kernel_report* kernel) {
  if (!report) return fail_null("report");
  if (!kernel) return fail_null("kernel");
  return guarded([&] {
    if (index >= report->report.kernels.size())
      return fail(ErrorCode::invalid_argument, "index = " + std::to_string(index) + ": the report has " +
                                                   std::to_string(report->report.kernels.size()) +
                                                   " kernels");
    const KernelReport& k = report->report.kernels[index];
    varmoe_kernel_report values{};
    values.stage = k.stage.c_str();
    values.name = k.name.c_str();
    values.key = k.key.c_str();
    values.config = k.config.c_str();
    values.origin = k.origin.c_str();
    values.error = k.error.c_str();
    values.token_buckets = k.token_buckets.data();
    values.token_bucket_count = k.token_buckets.size();
    values.config_source = static_cast<std::int32_t>(k.config_source);
    values.runtime_width = k.runtime_width ? 1 : 0;
    values.hit = k.hit ? 1 : 0;
    values.registers = k.registers;
    values.spill_bytes = k.spill_bytes;
    values.static_smem_bytes = k.static_smem_bytes;
    values.dynamic_smem_bytes = k.dynamic_smem_bytes;
    values.compile_ms = k.compile_ms;
    Status status = write_struct(kernel, kernel->struct_size, "varmoe_kernel_report", values);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int varmoe_layer_bind(varmoe_layer* layer, const varmoe_weights* weights) {
  if (!layer) return fail_null("layer");
  return guarded([&] {
    auto converted = to_cpp(weights, layer->layer.spec());
    if (!converted) return fail(converted.error());
    Status status = layer->layer.bind(*converted);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int varmoe_layer_workspace_bytes(const varmoe_layer* layer, int64_t tokens, size_t* bytes) {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!layer) return fail_null("layer");
  return guarded([&] {
    auto needed = layer->layer.workspace_bytes(tokens);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int varmoe_layer_forward(varmoe_layer* layer, const varmoe_forward_args* args) {
  if (!layer) return fail_null("layer");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    Status status = layer->layer.forward(*converted);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int varmoe_layer_up(varmoe_layer* layer, const varmoe_up_args* args) {
  if (!layer) return fail_null("layer");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = to_cpp(args);
    if (!converted) return fail(converted.error());
    Status status = layer->layer.up(*converted);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int64_t varmoe_packed_width(int64_t width) {
  return packed_width(width);
}

int varmoe_pack_fc1_bias(const varmoe_layer_spec* spec, int64_t width, const void* fc1_bias,
                         void* packed_fc1_bias) {
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    Status status = pack_fc1_bias(*converted, width, fc1_bias, packed_fc1_bias);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int varmoe_pack_expert(const varmoe_layer_spec* spec, int64_t width, const void* fc1, const void* fc2,
                       void* packed_fc1, void* packed_fc2) {
  return guarded([&] {
    auto converted = to_cpp(spec);
    if (!converted) return fail(converted.error());
    Status status = pack_expert(*converted, width, fc1, fc2, packed_fc1, packed_fc2);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}
}
