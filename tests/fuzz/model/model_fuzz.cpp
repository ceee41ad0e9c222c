#include "fuzz/model/model_fuzz.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "fuzz/fields.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "model/model_config.hpp"
#include "model/strict_json.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::fuzz {
namespace {

const char* check_valid_spec(const LayerSpec& spec, std::int64_t tokens, const model::DeviceProfile& device) {
  std::int64_t experts = 0, width = 0;
  for (const WidthClass& c : width_classes(spec)) {
    if (c.width <= width || c.count < 1) return "width classes do not ascend";
    width = c.width;
    experts += c.count;
  }
  if (experts != spec.num_experts()) return "width classes lose experts";
  if (kernel_signature(spec).size() > 400) return "a kernel signature is long";
  if (tuning_signature(spec).empty()) return "no tuning signature";
  const LayerConfig config = model::predict_layer_config(spec, tokens, device);
  if (!model::check_layer_config(spec, config, device)) return "a predicted config is outside the space";
  const double seconds = model::predict_gemm_seconds(spec, model::GemmStage::fc1, config.fc1, tokens, device);
  if (!std::isfinite(seconds) || seconds <= 0) return "a predicted time is no time";
  if (!std::isfinite(model::layer_floor(spec, tokens, device).seconds)) return "a floor is not finite";
  const auto* base = reinterpret_cast<const void*>(std::uintptr_t{1} << 20);
  if (!Weights::blocks(spec, base, base)) return "weights of a valid spec are refused";
  return nullptr;
}

std::size_t values_of(const model::Json& json) {
  std::size_t values = 1;
  if (const auto* array = json.as<model::Json::Array>())
    for (const model::Json& value : *array) values += values_of(value);
  if (const auto* object = json.as<model::Json::Object>())
    for (const auto& [name, value] : *object) values += values_of(value);
  return values;
}

/// The text as JSON within limits that small inputs exceed.
const char* check_limits(std::string_view text) {
  model::JsonLimits limits;
  limits.max_bytes = 2048;
  limits.max_depth = 4;
  limits.max_values = 100;
  const auto json = model::parse_strict_json(text, limits);
  if (!json) return presentable(json.error().message()) ? nullptr : "a message is not fit for a log";
  if (text.size() > limits.max_bytes || values_of(*json) > limits.max_values) return "a limit does not hold";
  if (!presentable(json->describe())) return "a description is not fit for a log";
  return nullptr;
}

/// The text as a file: what is read is what was written, within the limit and never beyond it.
const char* check_file(std::string_view text) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0) return nullptr;  // no fault of ours
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const char* broken = nullptr;
  if (::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size())) {
    const auto whole = model::read_input_file(path, text.size());
    if (!whole || *whole != text) broken = "a file is read as another";
    if (!text.empty() && model::read_input_file(path, text.size() - 1).ok())
      broken = "a file beyond the limit is read";
    if (model::read_model(path).ok() != model::read_model_text(text, "fuzz").ok())
      broken = "a file and its text are two models";
  }
  ::close(fd);
  for (const std::string& none : {std::string("/"), std::string("/dev/null"), path + "/none", path + '\0'})
    if (model::read_input_file(none, 1).ok()) broken = "what is no file is read";
  return broken;
}

}  // namespace

Outcome model_text(std::string_view text) {
  Outcome outcome;
  const auto refused = [&outcome](const Error& error) {
    if (!presentable(error.message())) outcome.broken = "a message is not fit for a log";
  };
  for (const int variant : {0, 1, 2}) {
    const bool named = variant == 1;
    model::ReadOptions options;
    if (named) options.dtype = DType::fp16;
    options.shared_experts = variant == 2;
    const auto model = model::read_model_text(text, "fuzz", options);
    if (!model) {
      refused(model.error());
      continue;
    }
    outcome.accepted = true;
    if (model->layers.empty()) outcome.broken = "a model without layers";
    for (const model::ModelLayer& layer : model->layers) {
      if (!layer.spec.validate()) outcome.broken = "a model's spec is not valid";
      if (layer.layer_indices.empty() || !presentable(layer.label))
        outcome.broken = "a layer without indices or label";
      if (named && layer.spec.dtype != DType::fp16) outcome.broken = "the named dtype is not taken";
    }
    for (const std::string& note : model->notes) {
      if (!presentable(note)) outcome.broken = "a note is not fit for a log";
    }
  }
  outcome.broken = outcome.broken ? outcome.broken : check_limits(text);
  outcome.broken = outcome.broken ? outcome.broken : check_file(text);
  if (const auto profile = model::parse_profile(text, "fuzz", "fuzz"); !profile) {
    refused(profile.error());
  } else {
    outcome.accepted = true;
    const LayerSpec spec = uniform_spec(2048, 8, 512, 2);
    if (!model::check_layer_config(spec, model::predict_layer_config(spec, 64, *profile), *profile)) {
      outcome.broken = "no config for an accepted device";
    }
  }
  if (const auto overrides = parse_gemm_overrides(text); !overrides) {
    refused(overrides.error());
  } else {
    outcome.accepted = outcome.accepted || !overrides->empty();
    for (const GemmOverride& one : *overrides) {
      const GemmConfig applied = one.apply(GemmConfig{});
      const auto again = parse_gemm_overrides(to_string(applied));
      if (!again || again->size() != 1 || (*again)[0].apply(GemmConfig{}) != applied) {
        outcome.broken = "an override does not read back";
      }
    }
  }
  if (const auto r = parse_dtype(text); !r) refused(r.error());
  if (const auto r = parse_activation(text); !r) refused(r.error());
  if (const auto r = parse_weight_layout(text); !r) refused(r.error());
  if (const auto r = parse_gate_order(text); !r) refused(r.error());
  return outcome;
}

Outcome model_spec(std::span<const std::uint8_t> bytes) {
  Fields fields(bytes);
  Outcome outcome;
  LayerSpec spec;
  spec.hidden_size = fields.number(8, 1024);
  spec.top_k = fields.number(1, 40);
  const std::size_t experts = fields.take<std::uint16_t>() % (kMaxExperts + 8);
  const auto distinct = fields.take<std::uint8_t>() % 24;
  std::vector<std::int64_t> widths;
  for (int i = 0; i <= distinct; ++i) widths.push_back(fields.number(8, 4096));
  for (std::size_t e = 0; e < experts; ++e) spec.expert_widths.push_back(widths[e % widths.size()]);
  spec.activation = static_cast<Activation>(fields.take<std::uint8_t>() % 11);
  spec.activation_params = {fields.take<float>(), fields.take<float>()};
  spec.dtype = static_cast<DType>(fields.take<std::uint8_t>() % 3);
  spec.fc1_layout = static_cast<WeightLayout>(fields.take<std::uint8_t>() % 3);
  spec.fc2_layout = static_cast<WeightLayout>(fields.take<std::uint8_t>() % 3);
  spec.gate_order = static_cast<GateOrder>(fields.take<std::uint8_t>() % 4);

  const auto& shipped = model::shipped_profiles();
  model::DeviceProfile device = shipped[fields.take<std::uint8_t>() % shipped.size()];
  if (fields.take<std::uint8_t>() % 2 == 0) {
    device = model::generic_profile(fields.take<std::int8_t>(), fields.take<std::int8_t>(),
                                    fields.take<std::int32_t>(), fields.take<std::int32_t>(),
                                    fields.take<std::int32_t>(), fields.take<std::int64_t>());
  }
  // A forward takes no more; the negative ones are kept.
  const std::int64_t tokens = std::min<std::int64_t>(fields.number(1, 65536), INT32_MAX);

  GemmConfig config;
  for (const auto member :
       {&GemmConfig::block_m, &GemmConfig::block_n, &GemmConfig::block_k, &GemmConfig::stages,
        &GemmConfig::warps_m, &GemmConfig::warps_n, &GemmConfig::ctas_per_sm, &GemmConfig::raster}) {
    const auto shift = fields.take<std::uint8_t>();
    config.*member = shift < 240 ? 1 << (shift % 9) : fields.take<std::int32_t>();
  }
  config.gather = static_cast<GatherMode>(fields.take<std::uint8_t>() % 3);

  const Status valid = spec.validate();
  if (!valid) {
    if (!presentable(valid.error().message())) outcome.broken = "a message is not fit for a log";
    return outcome;
  }
  outcome.accepted = true;
  outcome.broken = check_valid_spec(spec, tokens, device);
  for (const model::GemmStage stage : {model::GemmStage::fc1, model::GemmStage::fc2}) {
    const Status fits = model::check_gemm_config(spec, stage, config, device);
    if (!fits) {
      if (!presentable(fits.error().message())) outcome.broken = "a message is not fit for a log";
      continue;
    }
    if (model::resident_blocks(config, device) < config.ctas_per_sm)
      outcome.broken = "more blocks than are resident";
    const double seconds = model::predict_gemm_seconds(spec, stage, config, tokens, device);
    if (!std::isfinite(seconds) || seconds <= 0) outcome.broken = "a config's predicted time is no time";
  }
  return outcome;
}

}  // namespace varmoe::fuzz
