#include "tuner/worker_protocol.hpp"

#include <fmt/format.h>

#include <limits>
#include <vector>

#include "base/text.hpp"
#include "model/config_json.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"
#include "model/json_fields.hpp"
#include "model/json_writer.hpp"

namespace varmoe::tuner {
namespace {

using model::Json;
using model::json_number;
using model::JsonFields;
using Fields = model::JsonFieldList;

constexpr std::int64_t kMaxBucket = std::int64_t{1} << 40;
constexpr std::int64_t kMaxId = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMaxMessage = 2000;

// ---- Writing

std::string list(const auto& values, const auto& text_of) {
  std::string text = "[";
  for (const auto& value : values) {
    if (text.size() > 1) text += ", ";
    text += text_of(value);
  }
  return text + "]";
}

Fields reply(std::int64_t id) {
  return Fields().integer("request", id);
}

// ---- Reading. These throw model::FieldError.

const Json& required(const JsonFields& fields, std::string_view name) {
  const Json* value = fields.find(name);
  if (value == nullptr) fields.fail(fmt::format("{} is missing", name));
  return *value;
}

JsonFields object(const JsonFields& parent, std::string_view name) {
  return JsonFields(required(parent, name), fmt::format("{}: {}", parent.where(), name),
                    model::NullField::is_wrong);
}

bool boolean(const JsonFields& fields, std::string_view name) {
  required(fields, name);
  return fields.boolean_or(name, false);
}

/// A string that `parse` reads.
auto named(const JsonFields& fields, std::string_view name, const auto& parse) {
  auto parsed = parse(fields.string(name));
  if (!parsed) fields.fail(fmt::format("{}: {}", name, parsed.error().message()));
  return *parsed;
}

float parameter(const JsonFields& fields, std::string_view name) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(fields.real(name, -kLargest, kLargest));
}

LayerSpec read_spec(const JsonFields& fields) {
  LayerSpec spec;
  spec.activation = named(fields, "activation", parse_activation);
  std::vector<std::string_view> known = {
      "hidden_size",     "expert_widths", "top_k",      "activation",      "dtype",
      "fc1_layout",      "fc2_layout",    "gate_order", "batch_invariant", "bias",
      "weight_on_input", "shared_widths", "shared_gate"};
  if (activation_info(spec.activation).uses_params) {
    known.insert(known.end(), {"alpha", "limit"});
    spec.activation_params.alpha = parameter(fields, "alpha");
    spec.activation_params.limit = parameter(fields, "limit");
  }
  fields.refuse_unknown(known);
  spec.hidden_size = fields.integer("hidden_size", kMinHidden, kMaxHidden);
  spec.expert_widths = fields.integers_or_empty("expert_widths", 1, kMaxWidth);
  spec.top_k = fields.integer("top_k", 1, kMaxTopK);
  spec.dtype = named(fields, "dtype", parse_dtype);
  spec.fc1_layout = named(fields, "fc1_layout", parse_weight_layout);
  spec.fc2_layout = named(fields, "fc2_layout", parse_weight_layout);
  spec.gate_order = named(fields, "gate_order", parse_gate_order);
  spec.batch_invariant = boolean(fields, "batch_invariant");
  spec.shared_widths = fields.integers_or_empty("shared_widths", 1, kMaxWidth);
  spec.shared_gate = fields.boolean_or("shared_gate", false);
  spec.bias = boolean(fields, "bias");
  spec.weight_on_input = boolean(fields, "weight_on_input");
  if (Status status = spec.validate(); !status) fields.fail(status.error().message());
  return spec;
}

LayerConfig read_config(const JsonFields& fields) {
  fields.refuse_unknown({"fc1", "fc2", "sort", "gather", "combine", "one_launch"});
  return model::read_layer_config(fields, model::ConfigKeys::all);
}

BackwardConfig read_backward(const JsonFields& fields) {
  fields.refuse_unknown({"dh", "dx", "fc1_gradient", "fc2_gradient"});
  return model::read_backward_config(fields, model::ConfigKeys::all);
}

std::vector<JsonFields> config_list(const JsonFields& fields) {
  const Json& value = required(fields, "configs");
  const auto* array = value.as<Json::Array>();
  if (array == nullptr || array->empty() || array->size() > kMaxRequestConfigs)
    fields.fail("configs", value, fmt::format("must be a list of 1 to {} configs", kMaxRequestConfigs));
  std::vector<JsonFields> configs;
  for (std::size_t i = 0; i < array->size(); ++i)
    configs.emplace_back((*array)[i], fmt::format("{}: configs[{}]", fields.where(), i),
                         model::NullField::is_wrong);
  return configs;
}

std::vector<LayerConfig> read_configs(const JsonFields& fields, const LayerSpec& spec) {
  std::vector<LayerConfig> configs;
  for (const JsonFields& one : config_list(fields)) {
    const LayerConfig config = read_config(one);
    for (const auto& [stage, gemm] :
         {std::pair(model::GemmStage::fc1, config.fc1), std::pair(model::GemmStage::fc2, config.fc2)}) {
      if (Status status = model::check_gemm_shape(spec, stage, gemm); !status)
        one.fail(status.error().message());
    }
    configs.push_back(config);
  }
  return configs;
}

std::vector<BackwardConfig> read_products(const JsonFields& fields, const LayerSpec& spec) {
  std::vector<BackwardConfig> configs;
  for (const JsonFields& one : config_list(fields)) {
    const BackwardConfig config = read_backward(one);
    if (Status status = model::check_backward_shape(spec, config); !status)
      one.fail(status.error().message());
    configs.push_back(config);
  }
  return configs;
}

constexpr const char* kGradients = "gradients";

GradientType read_gradient_type(const JsonFields& fields) {
  const std::string name = fields.string(kGradients);
  if (name == "fp32") return GradientType::fp32;
  if (name != "layer_dtype") fields.fail("gradients: must be layer_dtype or fp32");
  return GradientType::layer_dtype;
}

std::size_t read_index(const JsonFields& fields, std::string_view name) {
  return static_cast<std::size_t>(fields.integer(name, 0, kMaxRequestConfigs - 1));
}

struct ProductFigure {
  const char* us_name;
  const char* err_name;
  double BackwardFigures::*us;
  double BackwardFigures::*err;
};
constexpr ProductFigure kProductFigures[] = {
    {"us_dh", "err_dh", &BackwardFigures::us_dh, &BackwardFigures::err_dh},
    {"us_dx", "err_dx", &BackwardFigures::us_dx, &BackwardFigures::err_dx},
    {"us_fc1_gradient", "err_fc1_gradient", &BackwardFigures::us_fc1_gradient,
     &BackwardFigures::err_fc1_gradient},
    {"us_fc2_gradient", "err_fc2_gradient", &BackwardFigures::us_fc2_gradient,
     &BackwardFigures::err_fc2_gradient}};

Measurement read_figures(const JsonFields& fields, bool backward) {
  Measurement m;
  m.us = fields.real("us", kLeastMicroseconds, kMostMicroseconds);
  m.skewed_us = fields.real("skewed_us", kLeastMicroseconds, kMostMicroseconds);
  m.spread = fields.real("spread", 0, kMostSpread);
  m.verified = boolean(fields, "verified");
  if (backward) {
    BackwardFigures& products = m.products.emplace();
    for (const ProductFigure& figure : kProductFigures) {
      products.*figure.us = fields.real(figure.us_name, kLeastMicroseconds, kMostMicroseconds);
      products.*figure.err = fields.real(figure.err_name, 0, 1);
    }
    return m;
  }
  m.fc1_us = fields.real("fc1_us", kLeastMicroseconds, kMostMicroseconds);
  m.fc2_us = fields.real("fc2_us", kLeastMicroseconds, kMostMicroseconds);
  m.err1 = fields.real("err1", 0, 1);
  m.err2 = fields.real("err2", 0, 1);
  return m;
}

/// Parses a line and hands its fields to `read`; what that throws becomes the error.
template <class T>
Result<T> read_line(std::string_view line, std::string_view what, std::size_t most, const auto& read) {
  auto json = model::parse_strict_json(line, {.max_bytes = most, .max_depth = 8, .max_values = 1u << 16});
  if (!json) return {ErrorCode::invalid_argument, fmt::format("{}: {}", what, json.error().message())};
  try {
    return read(JsonFields(*json, std::string(what), model::NullField::is_wrong));
  } catch (const model::FieldError& error) {
    return {ErrorCode::invalid_argument, error.what()};
  }
}

}  // namespace

std::string spec_json(const LayerSpec& spec) {
  Fields fields;
  fields.integer("hidden_size", spec.hidden_size)
      .raw("expert_widths",
           list(spec.expert_widths, [](std::int64_t width) { return std::to_string(width); }))
      .integer("top_k", spec.top_k)
      .text("activation", to_string(spec.activation));
  if (activation_info(spec.activation).uses_params) {
    fields.raw("alpha", json_number(spec.activation_params.alpha))
        .raw("limit", json_number(spec.activation_params.limit));
  }
  if (!spec.shared_widths.empty()) {
    fields
        .raw("shared_widths",
             list(spec.shared_widths, [](std::int64_t width) { return std::to_string(width); }))
        .boolean("shared_gate", spec.shared_gate);
  }
  return fields.text("dtype", to_string(spec.dtype))
      .text("fc1_layout", to_string(spec.fc1_layout))
      .text("fc2_layout", to_string(spec.fc2_layout))
      .text("gate_order", to_string(spec.gate_order))
      .boolean("batch_invariant", spec.batch_invariant)
      .boolean("bias", spec.bias)
      .boolean("weight_on_input", spec.weight_on_input)
      .object();
}

std::string hello_line() {
  return Fields()
      .integer("protocol", kProtocolVersion)
      .integer("config_space", model::kConfigSpaceVersion)
      .object();
}

std::string request_line(std::int64_t id, const MeasureRequest& request) {
  Fields fields = reply(id);
  fields.text("effort", to_string(request.effort))
      .integer("bucket", request.bucket)
      .raw("spec", spec_json(request.spec));
  if (request.pass == TuningPass::forward)
    return fields.raw("configs", list(request.configs, model::layer_config_json)).object();
  return fields.text(kGradients, request.gradient_type == GradientType::fp32 ? "fp32" : "layer_dtype")
      .raw("configs", list(request.products, model::backward_config_json))
      .object();
}

std::string turn_line(std::int64_t id, std::size_t index) {
  return reply(id).integer("turn", static_cast<std::int64_t>(index)).object();
}

namespace {

std::string answer_text(std::int64_t id, std::size_t index, const std::string& config, const Measurement& m) {
  Fields fields = reply(id);
  fields.integer("answer", static_cast<std::int64_t>(index)).raw("config", config);
  Measurement figures = m;
  figures.verified = true;  // what is only not verified can be written
  if (!fault_of(figures).empty()) return fields.text("failure", printable(fault_of(m), kMaxMessage)).object();
  fields.real("us", m.us).real("skewed_us", m.skewed_us);
  if (!m.products) fields.real("fc1_us", m.fc1_us).real("fc2_us", m.fc2_us);
  fields.real("spread", m.spread).boolean("verified", m.verified);
  if (!m.products) return fields.real("err1", m.err1).real("err2", m.err2).object();
  for (const ProductFigure& figure : kProductFigures)
    fields.real(figure.us_name, *m.products.*figure.us).real(figure.err_name, *m.products.*figure.err);
  return fields.object();
}

}  // namespace

std::string answer_line(std::int64_t id, std::size_t index, const LayerConfig& config, const Measurement& m) {
  return answer_text(id, index, model::layer_config_json(config), m);
}
std::string answer_line(std::int64_t id, std::size_t index, const BackwardConfig& config,
                        const Measurement& m) {
  Measurement figures = m;
  // Whoever failed has none.
  if (!figures.products) figures.products.emplace();
  return answer_text(id, index, model::backward_config_json(config), figures);
}
std::string answer_line(std::int64_t id, std::size_t index, const MeasureRequest& request,
                        const Measurement& m) {
  return request.pass == TuningPass::backward ? answer_line(id, index, request.products[index], m)
                                              : answer_line(id, index, request.configs[index], m);
}

std::string error_line(std::int64_t id, std::string_view message) {
  return reply(id).text("error", printable(message, kMaxMessage)).object();
}

Status read_hello(std::string_view line) {
  auto read = read_line<bool>(line, "hello", kMaxReplyLine, [](const JsonFields& fields) {
    fields.refuse_unknown({"protocol", "config_space"});
    fields.integer("protocol", kProtocolVersion, kProtocolVersion);
    fields.integer("config_space", model::kConfigSpaceVersion, model::kConfigSpaceVersion);
    return true;
  });
  return read ? Status() : read.error();
}

Result<WorkerRequest> read_request(std::string_view line) {
  return read_line<WorkerRequest>(line, "request", kMaxRequestLine, [](const JsonFields& fields) {
    fields.refuse_unknown({"request", "effort", "bucket", "spec", "configs", kGradients});
    WorkerRequest result;
    result.id = fields.integer("request", 0, kMaxId);
    result.request.effort = fields.choice("effort", {Effort::quick, Effort::normal, Effort::final_});
    result.request.bucket = fields.integer("bucket", 1, kMaxBucket);
    result.request.spec = read_spec(object(fields, "spec"));
    if (fields.has(kGradients)) {
      result.request.pass = TuningPass::backward;
      result.request.gradient_type = read_gradient_type(fields);
      result.request.products = read_products(fields, result.request.spec);
    } else {
      result.request.configs = read_configs(fields, result.request.spec);
    }
    return result;
  });
}

Result<WorkerReply> read_reply(std::string_view line) {
  return read_line<WorkerReply>(line, "reply", kMaxReplyLine, [](const JsonFields& fields) {
    WorkerReply result;
    result.id = fields.integer("request", 0, kMaxId);
    if (fields.has("turn")) {
      fields.refuse_unknown({"request", "turn"});
      result.kind = WorkerReply::Kind::turn;
      result.index = read_index(fields, "turn");
    } else if (fields.has("error")) {
      fields.refuse_unknown({"request", "error"});
      result.kind = WorkerReply::Kind::error;
      result.message = fields.string("error");
    } else {
      result.kind = WorkerReply::Kind::answer;
      result.index = read_index(fields, "answer");
      const JsonFields config = object(fields, "config");
      const bool backward = config.has("dh");
      if (backward) {
        result.products = read_backward(config);
      } else {
        result.config = read_config(config);
      }
      if (fields.has("failure")) {
        fields.refuse_unknown({"request", "answer", "config", "failure"});
        result.measurement.failure = fields.string("failure");
        if (result.measurement.failure.empty()) fields.fail("failure is empty; must say what failed");
      } else {
        std::vector<std::string_view> known = {"request",   "answer", "config",  "us",
                                               "skewed_us", "spread", "verified"};
        if (backward) {
          for (const ProductFigure& figure : kProductFigures)
            known.insert(known.end(), {figure.us_name, figure.err_name});
        } else {
          known.insert(known.end(), {"fc1_us", "fc2_us", "err1", "err2"});
        }
        fields.refuse_unknown(known);
        result.measurement = read_figures(fields, backward);
      }
    }
    return result;
  });
}

}  // namespace varmoe::tuner
