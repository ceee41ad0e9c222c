#include "tools/common/layer_input.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <string_view>

#include "base/text.hpp"
#include "model/model_config.hpp"
#include "model/named_sets.hpp"
#include "tools/common/command_line.hpp"

namespace varmoe::tools {
namespace {

constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;

std::optional<std::int64_t> parse_count(std::string_view text) {
  const auto value = parse_uint64(text);
  if (!value || *value > static_cast<std::uint64_t>(kMaxCount)) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

/// "512x4,256" → 512, 512, 512, 512, 256.
Result<std::vector<std::int64_t>> parse_widths(const char* option, std::string_view text) {
  std::vector<std::int64_t> widths;
  for (const std::string_view part : split(text, ',')) {
    const std::size_t at = part.find('x');
    const auto width = parse_count(part.substr(0, at));
    const auto times =
        at == std::string_view::npos ? std::optional<std::int64_t>(1) : parse_count(part.substr(at + 1));
    if (!width || !times || *times < 1 || *times > kMaxExperts) {
      return {ErrorCode::invalid_argument,
              fmt::format(
                  "{}: '{}' is neither a width nor WIDTHxCOUNT with a count of 1 to {}, as in 512x4,256x4",
                  option, printable(part, 80), kMaxExperts)};
    }
    if (widths.size() + static_cast<std::size_t>(*times) > static_cast<std::size_t>(kMaxExperts)) {
      return {ErrorCode::invalid_argument, fmt::format("{}: more than {} experts", option, kMaxExperts)};
    }
    widths.insert(widths.end(), static_cast<std::size_t>(*times), *width);
  }
  return widths;
}

}  // namespace

void LayerInput::add_options(Command& app) {
  app.add_option("--model", model, "a Hugging Face config.json, or a layer file")->group("Layer");
  app.add_option("--layer", layer, "of a model: this layer alone (its index)")->group("Layer");
  app.add_option("--set", set,
                 "a named set: 8_uniform, 8_variable … 128_variable, gated_4_widths, gated_16_widths")
      ->group("Layer");
  app.add_option("--hidden-size", hidden_size, "H; with --set, instead of its own")->group("Layer");
  app.add_option("--experts", experts, "E, with --width")->group("Layer");
  app.add_option("--width", width, "intermediate size of every expert")->group("Layer");
  app.add_option("--widths", widths, "of unequal experts: 512x4,256x4, or one width an expert")
      ->group("Layer");
  app.add_option("--top-k", top_k, "experts a token goes to")->group("Layer");
  app.add_option("--activation", activation,
                 "silu_mul, gelu_tanh_mul, gelu_erf_mul, swiglu_oai, silu, gelu_tanh, gelu_erf, "
                 "relu, relu2, identity")
      ->group("Layer");
  app.add_option("--alpha", alpha, "of swiglu_oai")->group("Layer");
  app.add_option("--limit", limit, "of swiglu_oai")->group("Layer");
  app.add_option("--dtype", dtype, "bf16 or fp16; needed for quantised checkpoints")->group("Layer");
  app.add_option("--fc1-layout", fc1_layout, "nk or kn")->group("Layer");
  app.add_option("--fc2-layout", fc2_layout, "nk or kn")->group("Layer");
  app.add_option("--gate-order", gate_order, "gate_first, up_first or interleaved")->group("Layer");
  app.add_flag("--shared", shared,
               "of a model's config.json: its shared experts too, in the layer; without it they are left out")
      ->group("Layer");
  app.add_option("--shared-widths", shared_widths, "shared experts, which every token visits: 1024 or 512x2")
      ->group("Layer");
  app.add_flag("--shared-gate", shared_gate, "sigmoid(x·w_g) weights the shared experts' output")
      ->group("Layer");
  app.add_flag("--batch-invariant", batch_invariant, "a token's bits do not depend on its neighbours")
      ->group("Layer");
  app.add_flag("--bias", bias, "fc1 and fc2 add biases")->group("Layer");
  app.add_flag("--weight-on-input", weight_on_input,
               "routing weights multiply the experts' input, not their output")
      ->group("Layer");
}

bool LayerInput::empty() const noexcept {
  return model.empty() && set.empty() && experts == 0 && width == 0 && widths.empty();
}

Status LayerInput::apply_overrides(LayerSpec& spec) const {
  const auto apply = [](const std::string& text, auto parse, auto& field) -> Status {
    if (text.empty()) return {};
    auto value = parse(text);
    if (!value) return value.error();
    field = *value;
    return {};
  };
  if (auto s = apply(activation, parse_activation, spec.activation); !s) return s;
  if (auto s = apply(dtype, parse_dtype, spec.dtype); !s) return s;
  if (auto s = apply(fc1_layout, parse_weight_layout, spec.fc1_layout); !s) return s;
  if (auto s = apply(fc2_layout, parse_weight_layout, spec.fc2_layout); !s) return s;
  if (auto s = apply(gate_order, parse_gate_order, spec.gate_order); !s) return s;
  if (alpha) spec.activation_params.alpha = static_cast<float>(*alpha);
  if (limit) spec.activation_params.limit = static_cast<float>(*limit);
  if (top_k != 0) spec.top_k = top_k;
  if (batch_invariant) spec.batch_invariant = true;
  if (!shared_widths.empty()) {
    auto list = parse_widths("--shared-widths", shared_widths);
    if (!list) return list.error();
    spec.shared_widths = *std::move(list);
  }
  if (shared_gate) spec.shared_gate = true;
  if (bias) spec.bias = true;
  if (weight_on_input) spec.weight_on_input = true;
  return spec.validate();
}

Result<LayerSpec> LayerInput::from_flags() const {
  LayerSpec spec;
  spec.hidden_size = hidden_size;
  if (!widths.empty()) {
    if (experts != 0 || width != 0)
      return {ErrorCode::invalid_argument, "--widths excludes --experts and --width"};
    auto list = parse_widths("--widths", widths);
    if (!list) return list.error();
    spec.expert_widths = *std::move(list);
  } else {
    if (experts < 1 || experts > kMaxExperts) {
      return {ErrorCode::invalid_argument,
              fmt::format("--experts is {}; 1 to {} are allowed", experts, kMaxExperts)};
    }
    spec.expert_widths.assign(static_cast<std::size_t>(experts), width);
  }
  return spec;
}

Result<std::vector<InputLayer>> LayerInput::read(std::vector<std::string>* notes) const {
  const bool by_flags = experts != 0 || width != 0 || !widths.empty();
  if (static_cast<int>(!model.empty()) + static_cast<int>(!set.empty()) + static_cast<int>(by_flags) != 1) {
    return {ErrorCode::invalid_argument,
            "name one layer or model: --model FILE, --set NAME, or flags (--hidden-size, --experts and "
            "--width or --widths, "
            "--top-k)"};
  }
  if (shared && model.empty())
    return {ErrorCode::invalid_argument, "--shared goes with --model; --shared-widths names widths"};
  if (layer != -1 && model.empty()) return {ErrorCode::invalid_argument, "--layer goes with --model"};
  std::vector<InputLayer> layers;
  if (!model.empty()) {
    if (hidden_size != 0) return {ErrorCode::invalid_argument, "--hidden-size does not go with --model"};
    model::ReadOptions options;
    options.shared_experts = shared;
    if (!dtype.empty()) {
      auto parsed = parse_dtype(dtype);
      if (!parsed) return parsed.error();
      options.dtype = *parsed;
    }
    auto config = model::read_model(model, options);
    if (!config) return config.error();
    if (notes != nullptr) *notes = config->notes;
    int last = -1;
    for (auto& entry : config->layers) {
      last = std::max(last, entry.layer_indices.back());
      InputLayer input{std::move(entry.spec), entry.router, std::move(entry.label),
                       std::move(entry.layer_indices)};
      if (layer != -1) {
        if (std::find(input.layer_indices.begin(), input.layer_indices.end(), layer) ==
            input.layer_indices.end())
          continue;
        input.layer_indices = {layer};
        input.label = fmt::format("layer {}", layer);
      }
      layers.push_back(std::move(input));
    }
    if (layers.empty()) {
      return {ErrorCode::invalid_argument,
              fmt::format(
                  "--layer is {}: the model's layer of that index has no experts, or its last index is {}",
                  layer, last)};
    }
  } else if (!set.empty()) {
    auto spec = model::named_set(set, hidden_size);
    if (!spec) return spec.error();
    layers.push_back({*std::move(spec), {}, set, {0}});
  } else {
    auto spec = from_flags();
    if (!spec) return spec.error();
    layers.push_back({*std::move(spec), {}, "layer", {0}});
  }
  for (InputLayer& input : layers) {
    if (auto status = apply_overrides(input.spec); !status) return status.error();
    if (input.router) input.router->weight_on_input = input.spec.weight_on_input;
  }
  return layers;
}

Result<std::vector<std::int64_t>> parse_counts(const std::string& text, const char* option,
                                               std::int64_t least) {
  std::vector<std::int64_t> values;
  for (const std::string_view part : split(text, ',')) {
    const auto value = parse_count(part);
    if (!value || *value < least) {
      return {ErrorCode::invalid_argument,
              fmt::format("{}: '{}' is not a whole number of at least {}; write it as 1,64,4096", option,
                          printable(part, 80), least)};
    }
    values.push_back(*value);
  }
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

}  // namespace varmoe::tools
