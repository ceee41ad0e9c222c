#include "tuner/worker_protocol.hpp"

#include <fmt/format.h>

#include <limits>
#include <vector>

#include "base/text.hpp"
#include "model/config_json.hpp"
#include "model/config_space.hpp"
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

std::vector<LayerConfig> read_configs(const JsonFields& fields, const LayerSpec& spec) {
  const Json& value = required(fields, "configs");
  const auto* array = value.as<Json::Array>();
  if (array == nullptr || array->empty() || array->size() > kMaxRequestConfigs)
    fields.fail("configs", value, fmt::format("must be a list of 1 to {} configs", kMaxRequestConfigs));
  std::vector<LayerConfig> configs;
  for (std::size_t i = 0; i < array->size(); ++i) {
    const JsonFields one((*array)[i], fmt::format("{}: configs[{}]", fields.where(), i),
                         model::NullField::is_wrong);
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

std::size_t read_index(const JsonFields& fields, std::string_view name) {
  return static_cast<std::size_t>(fields.integer(name, 0, kMaxRequestConfigs - 1));
}

Measurement read_figures(const JsonFields& fields) {
  Measurement m;
  m.us = fields.real("us", kLeastMicroseconds, kMostMicroseconds);
  m.skewed_us = fields.real("skewed_us", kLeastMicroseconds, kMostMicroseconds);
  m.fc1_us = fields.real("fc1_us", kLeastMicroseconds, kMostMicroseconds);
  m.fc2_us = fields.real("fc2_us", kLeastMicroseconds, kMostMicroseconds);
  m.spread = fields.real("spread", 0, kMostSpread);
  m.verified = boolean(fields, "verified");
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
  return reply(id)
      .text("effort", to_string(request.effort))
      .integer("bucket", request.bucket)
      .raw("spec", spec_json(request.spec))
      .raw("configs", list(request.configs, model::layer_config_json))
      .object();
}

std::string turn_line(std::int64_t id, std::size_t index) {
  return reply(id).integer("turn", static_cast<std::int64_t>(index)).object();
}

std::string answer_line(std::int64_t id, std::size_t index, const LayerConfig& config, const Measurement& m) {
  Fields fields = reply(id);
  fields.integer("answer", static_cast<std::int64_t>(index)).raw("config", model::layer_config_json(config));
  Measurement figures = m;
  figures.verified = true;  // what is only not verified can be written
  figures.err1 = figures.err2 = 0;
  const bool shares = m.err1 >= 0 && m.err1 <= 1 && m.err2 >= 0 && m.err2 <= 1;
  if (!fault_of(figures).empty() || !shares)
    return fields.text("failure", printable(fault_of(m), kMaxMessage)).object();
  return fields.real("us", m.us)
      .real("skewed_us", m.skewed_us)
      .real("fc1_us", m.fc1_us)
      .real("fc2_us", m.fc2_us)
      .real("spread", m.spread)
      .boolean("verified", m.verified)
      .real("err1", m.err1)
      .real("err2", m.err2)
      .object();
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
    fields.refuse_unknown({"request", "effort", "bucket", "spec", "configs"});
    WorkerRequest result;
    result.id = fields.integer("request", 0, kMaxId);
    result.request.effort = fields.choice("effort", {Effort::quick, Effort::normal, Effort::final_});
    result.request.bucket = fields.integer("bucket", 1, kMaxBucket);
    result.request.spec = read_spec(object(fields, "spec"));
    result.request.configs = read_configs(fields, result.request.spec);
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
      result.config = read_config(object(fields, "config"));
      if (fields.has("failure")) {
        fields.refuse_unknown({"request", "answer", "config", "failure"});
        result.measurement.failure = fields.string("failure");
        if (result.measurement.failure.empty()) fields.fail("failure is empty; must say what failed");
      } else {
        fields.refuse_unknown({"request", "answer", "config", "us", "skewed_us", "fc1_us", "fc2_us", "spread",
                               "verified", "err1", "err2"});
        result.measurement = read_figures(fields);
      }
    }
    return result;
  });
}

}  // namespace varmoe::tuner
