#include "tuningdb/record_json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "model/config_json.hpp"
#include "model/config_space.hpp"
#include "model/json_writer.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tuningdb {
namespace {

using model::FieldError;
using model::Json;
using model::JsonFields;
using model::NullField;

constexpr double kLargestFloat = std::numeric_limits<float>::max();
constexpr double kLeastTime = 1e-6;  // µs

const std::vector<std::string_view> kFields = {"arch",
                                               "cu_num",
                                               "device",
                                               "token",
                                               "model_dim",
                                               "inter_dim",
                                               "expert",
                                               "topk",
                                               "act_type",
                                               "act_params",
                                               "dtype",
                                               "q_dtype_a",
                                               "q_dtype_w",
                                               "q_type",
                                               "use_g1u1",
                                               "doweight_stage1",
                                               "fc1_layout",
                                               "fc2_layout",
                                               "gate_order",
                                               "bias",
                                               "batch_invariant",
                                               "shared_inter_dim",
                                               "shared_gate",
                                               "pass",
                                               "gradient_dtype",
                                               "us",
                                               "tflops",
                                               "bw",
                                               "baseline_us",
                                               "spread",
                                               "verified",
                                               "epochs",
                                               "config_space",
                                               "library",
                                               "kernel_digest",
                                               "nvrtc",
                                               "driver",
                                               "date",
                                               "sm_clock_mhz",
                                               "memory_clock_mhz",
                                               "candidates"};

/// Of one pass alone; in a record of the other pass they are unknown fields.
const std::vector<std::string_view> kForwardFields = {"fc1",        "fc2", "sort", "gather", "combine",
                                                      "one_launch", "us1", "err1", "us2",    "err2"};
const std::vector<std::string_view> kBackwardFields = {
    "dh",    "dx",     "fc1_gradient",    "fc2_gradient",     "us_dh",           "err_dh",
    "us_dx", "err_dx", "us_fc1_gradient", "err_fc1_gradient", "us_fc2_gradient", "err_fc2_gradient"};

/// Time and error of one kernel: the names of their fields, and where they lie.
template <class Of>
struct KernelFigures {
  const char* us_name;
  const char* err_name;
  double Of::*us;
  double Of::*err;
};
constexpr KernelFigures<TuningRecord> kForwardFigures[] = {
    {"us1", "err1", &TuningRecord::us1, &TuningRecord::err1},
    {"us2", "err2", &TuningRecord::us2, &TuningRecord::err2}};
constexpr KernelFigures<BackwardFigures> kProductFigures[] = {
    {"us_dh", "err_dh", &BackwardFigures::us_dh, &BackwardFigures::err_dh},
    {"us_dx", "err_dx", &BackwardFigures::us_dx, &BackwardFigures::err_dx},
    {"us_fc1_gradient", "err_fc1_gradient", &BackwardFigures::us_fc1_gradient,
     &BackwardFigures::err_fc1_gradient},
    {"us_fc2_gradient", "err_fc2_gradient", &BackwardFigures::us_fc2_gradient,
     &BackwardFigures::err_fc2_gradient}};

std::int32_t narrow(std::int64_t value) {
  return static_cast<std::int32_t>(value);
}

const Json& required(const JsonFields& fields, std::string_view name, std::string_view expected) {
  if (const Json* value = fields.find(name)) return *value;
  fields.fail(fmt::format("{} is missing; {}", name, expected));
}

bool read_boolean(const JsonFields& fields, std::string_view name) {
  required(fields, name, "must be true or false");
  return fields.boolean_or(name, false);
}

/// A name that one of the public parsers knows.
template <class Parse>
auto read_name(const JsonFields& fields, std::string_view name, Parse parse) {
  auto parsed = parse(fields.string(name));
  if (!parsed) fields.fail(fmt::format("{}: {}", name, parsed.error().message()));
  return *parsed;
}

std::string read_text(const JsonFields& fields, std::string_view name, bool (*fits)(std::string_view),
                      std::string_view rule) {
  const std::string text = fields.string_or_empty(name);
  if (!text.empty() && !fits(text)) fields.fail(name, *fields.find(name), fmt::format("must be {}", rule));
  return text;
}

/// [[experts, width], …], `most` experts of a width at most.
std::vector<WidthClass> read_classes(const JsonFields& fields, const std::string& field, const Json& value,
                                     const Json::Array& list, std::int64_t most) {
  if (list.size() > static_cast<std::size_t>(most))
    fields.fail(field, value, fmt::format("must have at most {} widths", most));
  std::vector<WidthClass> classes;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string name = fmt::format("{}[{}]", field, i);
    const auto* pair = list[i].as<Json::Array>();
    if (pair == nullptr || pair->size() != 2) fields.fail(name, list[i], "must be [experts, width]");
    WidthClass c{};
    c.count = integer_element(fields, name + "[0]", (*pair)[0], 1, most);
    c.width = integer_element(fields, name + "[1]", (*pair)[1], kWidthMultiple, kMaxWidth);
    classes.push_back(c);
  }
  return classes;
}

std::vector<WidthClass> read_inter_dim(const JsonFields& fields, std::int64_t experts) {
  const Json& value = required(fields, "inter_dim", "must be a width, or a list of [experts, width]");
  const auto* list = value.as<Json::Array>();
  if (list == nullptr) return {{fields.integer("inter_dim", kWidthMultiple, kMaxWidth), experts}};
  return read_classes(fields, "inter_dim", value, *list, kMaxExperts);
}
/// Of the shared experts; a layer without any has no such field.
std::vector<WidthClass> read_shared_inter_dim(const JsonFields& fields) {
  const Json* value = fields.find("shared_inter_dim");
  if (value == nullptr) return {};
  const auto* list = value->as<Json::Array>();
  if (list == nullptr || list->empty())
    fields.fail("shared_inter_dim", *value, "must be a list of [experts, width]");
  return read_classes(fields, "shared_inter_dim", *value, *list, kMaxSharedExperts);
}

/// A record of a forward says neither.
void read_pass(const JsonFields& fields, TuningKey& key) {
  if (!fields.has("pass")) {
    if (const Json* value = fields.find("gradient_dtype"))
      fields.fail("gradient_dtype", *value, "is of records whose pass is backward");
    return;
  }
  key.pass = fields.choice("pass", {TuningPass::backward});
  const std::string type = fields.string("gradient_dtype");
  if (type == "fp32") {
    key.gradient_type = GradientType::fp32;
  } else if (type != to_string(key.dtype)) {
    fields.fail("gradient_dtype", *fields.find("gradient_dtype"),
                fmt::format("must be {}, as dtype, or fp32", to_string(key.dtype)));
  }
}

TuningKey read_key(const JsonFields& fields) {
  TuningKey key;
  key.device.arch = fields.string("arch");
  key.device.cu_num = narrow(fields.integer("cu_num", 1, kMaxSms));
  key.device.name = fields.string("device");
  key.token = fields.integer("token", 1, kMaxTokens);
  key.model_dim = fields.integer("model_dim", kMinHidden, kMaxHidden);
  key.expert = fields.integer("expert", 1, kMaxExperts);
  key.inter_dim = read_inter_dim(fields, key.expert);
  key.topk = fields.integer("topk", 1, kMaxTopK);
  key.act_type = read_name(fields, "act_type", parse_activation);
  if (activation_info(key.act_type).uses_params) {
    const JsonFields params(required(fields, "act_params", "must be an object"),
                            fields.where() + ": act_params", NullField::is_wrong);
    params.refuse_unknown({"alpha", "limit"});
    key.act_params.alpha =
        static_cast<float>(params.real("alpha", -kLargestFloat, kLargestFloat)) + 0.0f;  // −0 is 0
    key.act_params.limit =
        static_cast<float>(params.real("limit", std::numeric_limits<float>::min(), kLargestFloat));
  } else if (const Json* value = fields.find("act_params")) {
    fields.fail("act_params", *value, fmt::format("act_type {} has none", to_string(key.act_type)));
  }
  key.dtype = read_name(fields, "dtype", parse_dtype);
  key.q_dtype_a = read_name(fields, "q_dtype_a", parse_dtype);
  key.q_dtype_w = read_name(fields, "q_dtype_w", parse_dtype);
  key.q_type = fields.choice("q_type", {QuantType::none});
  key.use_g1u1 = read_boolean(fields, "use_g1u1");
  key.doweight_stage1 = read_boolean(fields, "doweight_stage1");
  key.fc1_layout = read_name(fields, "fc1_layout", parse_weight_layout);
  key.fc2_layout = read_name(fields, "fc2_layout", parse_weight_layout);
  key.gate_order = read_name(fields, "gate_order", parse_gate_order);
  key.bias = read_boolean(fields, "bias");
  key.batch_invariant = read_boolean(fields, "batch_invariant");
  key.shared_inter_dim = read_shared_inter_dim(fields);
  key.shared_gate = fields.boolean_or("shared_gate", false);
  read_pass(fields, key);
  if (const Status status = validate(key); !status) fields.fail(status.error().message());
  return key;
}

/// An object below the record's.
JsonFields nested(const JsonFields& fields, std::string_view name) {
  return JsonFields(required(fields, name, "must be an object"), fmt::format("{}: {}", fields.where(), name),
                    NullField::is_wrong);
}

void read_config(const JsonFields& fields, TuningRecord& record) {
  const auto keys = record.config_space < model::kConfigSpaceVersion ? model::ConfigKeys::of_older_space
                                                                     : model::ConfigKeys::all;
  if (record.key.pass == TuningPass::backward) {
    record.backward = model::read_backward_config(fields, keys);
  } else {
    record.config = model::read_layer_config(fields, keys);
  }
}

void read_figures(const JsonFields& fields, TuningRecord& record) {
  const auto of_kernels = [&fields](auto& of, const auto& list) {
    for (const auto& figure : list) {
      of.*figure.us = fields.real_or(figure.us_name, 0, kMaxMicroseconds, 0);
      of.*figure.err = fields.real_or(figure.err_name, 0, 1, 0);
    }
  };
  if (record.key.pass == TuningPass::backward) {
    of_kernels(record.of_products, kProductFigures);
  } else {
    of_kernels(record, kForwardFigures);
  }
  record.us = fields.real("us", kLeastTime, kMaxMicroseconds);
  record.tflops = fields.real_or("tflops", 0, kMaxRate, 0);
  record.bw = fields.real_or("bw", 0, kMaxRate, 0);
  record.baseline_us = fields.real_or("baseline_us", 0, kMaxMicroseconds, 0);
  record.spread = fields.real_or("spread", 0, kMaxSpread, 0);
  record.verified = read_boolean(fields, "verified");
}

TuningEpochs read_epochs(const JsonFields& record, TuningPass pass) {
  const JsonFields fields = nested(record, "epochs");
  const auto epoch = [&fields](std::string_view name) { return narrow(fields.integer(name, 1, kMaxEpoch)); };
  TuningEpochs epochs;
  if (pass == TuningPass::backward) {
    fields.refuse_unknown({"dh", "dx", "fc1_gradient", "fc2_gradient"});
    epochs.dh = epoch("dh");
    epochs.dx = epoch("dx");
    epochs.fc1_gradient = epoch("fc1_gradient");
    epochs.fc2_gradient = epoch("fc2_gradient");
    return epochs;
  }
  fields.refuse_unknown({"fc1", "fc2", "sort", "gather", "combine", "one_launch"});
  epochs.fc1 = epoch("fc1");
  epochs.fc2 = epoch("fc2");
  epochs.sort = epoch("sort");
  epochs.gather = epoch("gather");
  epochs.combine = epoch("combine");
  if (fields.find("one_launch") != nullptr) epochs.one_launch = epoch("one_launch");
  return epochs;
}

void read_provenance(const JsonFields& fields, TuningRecord& record) {
  record.library = read_text(fields, "library", is_name, kNameRule);
  record.kernel_digest = read_text(fields, "kernel_digest", is_hex, "at most 64 lower-case hex digits");
  record.nvrtc = read_text(fields, "nvrtc", is_name, kNameRule);
  record.driver = read_text(fields, "driver", is_name, kNameRule);
  record.date = read_text(fields, "date", is_date, "a date in UTC such as 2026-11-21T15:04:05Z");
  record.sm_clock_mhz = narrow(fields.integer_or("sm_clock_mhz", 0, kMaxClockMhz, 0));
  record.memory_clock_mhz = narrow(fields.integer_or("memory_clock_mhz", 0, kMaxClockMhz, 0));
  record.candidates = narrow(fields.integer_or("candidates", 0, kMaxCandidates, 0));
}

std::string classes_text(const std::vector<WidthClass>& classes) {
  std::string text = "[";
  for (const WidthClass& c : classes) {
    fmt::format_to(std::back_inserter(text), "{}[{}, {}]", text.size() > 1 ? ", " : "", c.count, c.width);
  }
  return text + "]";
}

std::string inter_dim_text(const std::vector<WidthClass>& classes) {
  return classes.size() == 1 ? std::to_string(classes[0].width) : classes_text(classes);
}

std::string key_fields(const TuningKey& key) {
  model::JsonFieldList fields;
  fields.text("arch", key.device.arch)
      .integer("cu_num", key.device.cu_num)
      .text("device", key.device.name)
      .integer("token", key.token)
      .integer("model_dim", key.model_dim)
      .raw("inter_dim", inter_dim_text(key.inter_dim))
      .integer("expert", key.expert)
      .integer("topk", key.topk)
      .text("act_type", to_string(key.act_type));
  if (activation_info(key.act_type).uses_params) {
    fields.raw("act_params", model::JsonFieldList()
                                 .raw("alpha", model::json_number(key.act_params.alpha))
                                 .raw("limit", model::json_number(key.act_params.limit))
                                 .object());
  }
  fields.text("dtype", to_string(key.dtype))
      .text("q_dtype_a", to_string(key.q_dtype_a))
      .text("q_dtype_w", to_string(key.q_dtype_w))
      .text("q_type", to_string(key.q_type))
      .boolean("use_g1u1", key.use_g1u1)
      .boolean("doweight_stage1", key.doweight_stage1)
      .text("fc1_layout", to_string(key.fc1_layout))
      .text("fc2_layout", to_string(key.fc2_layout))
      .text("gate_order", to_string(key.gate_order))
      .boolean("bias", key.bias)
      .boolean("batch_invariant", key.batch_invariant);
  if (!key.shared_inter_dim.empty()) {
    fields.raw("shared_inter_dim", classes_text(key.shared_inter_dim))
        .boolean("shared_gate", key.shared_gate);
  }
  if (key.pass == TuningPass::backward) {
    fields.text("pass", to_string(key.pass)).text("gradient_dtype", gradient_dtype(key));
  }
  return fields.fields();
}

std::string figure_fields(const TuningRecord& record) {
  model::JsonFieldList fields;
  const auto of_kernels = [&fields](const auto& of, const auto& list) {
    for (const auto& figure : list)
      fields.real(figure.us_name, of.*figure.us).real(figure.err_name, of.*figure.err);
  };
  if (record.key.pass == TuningPass::backward) {
    of_kernels(record.of_products, kProductFigures);
  } else {
    of_kernels(record, kForwardFigures);
  }
  return fields.real("us", record.us)
      .real("tflops", record.tflops)
      .real("bw", record.bw)
      .real("baseline_us", record.baseline_us)
      .real("spread", record.spread)
      .boolean("verified", record.verified)
      .fields();
}

std::string epochs_text(const TuningEpochs& epochs, TuningPass pass) {
  if (pass == TuningPass::backward) {
    return model::JsonFieldList()
        .integer("dh", epochs.dh)
        .integer("dx", epochs.dx)
        .integer("fc1_gradient", epochs.fc1_gradient)
        .integer("fc2_gradient", epochs.fc2_gradient)
        .object();
  }
  return model::JsonFieldList()
      .integer("fc1", epochs.fc1)
      .integer("fc2", epochs.fc2)
      .integer("sort", epochs.sort)
      .integer("gather", epochs.gather)
      .integer("combine", epochs.combine)
      .integer("one_launch", epochs.one_launch)
      .object();
}

std::string provenance_fields(const TuningRecord& record) {
  return model::JsonFieldList()
      .raw("epochs", epochs_text(record.epochs, record.key.pass))
      .integer("config_space", record.config_space)
      .text("library", record.library)
      .text("kernel_digest", record.kernel_digest)
      .text("nvrtc", record.nvrtc)
      .text("driver", record.driver)
      .text("date", record.date)
      .integer("sm_clock_mhz", record.sm_clock_mhz)
      .integer("memory_clock_mhz", record.memory_clock_mhz)
      .integer("candidates", record.candidates)
      .fields();
}

}  // namespace

StoredRecord read_record(const Json& value, const std::string& where) {
  const JsonFields fields(value, where, NullField::is_wrong);
  StoredRecord stored;
  stored.record.key = read_key(fields);
  stored.record.config_space =
      narrow(fields.integer_or("config_space", 0, std::numeric_limits<std::int32_t>::max(), 0));
  read_config(fields, stored.record);
  read_figures(fields, stored.record);
  stored.record.epochs = read_epochs(fields, stored.record.key.pass);
  read_provenance(fields, stored.record);
  const std::vector<std::string_view>& of_pass =
      stored.record.key.pass == TuningPass::backward ? kBackwardFields : kForwardFields;
  const auto has = [](const std::vector<std::string_view>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, field] : *value.as<Json::Object>()) {
    if (!has(kFields, name) && !has(of_pass, name)) stored.unknown.emplace(name, field);
  }
  return stored;
}

std::string record_text(const TuningRecord& record, const Json::Object& unknown) {
  std::string text = "{" + key_fields(record.key);
  const auto line = [&text](const std::string& fields) { text += ",\n " + fields; };
  const auto config = [&line](std::string_view name, const std::string& json) {
    line(model::JsonFieldList().raw(name, json).fields());
  };
  if (record.key.pass == TuningPass::backward) {
    config("dh", model::gemm_config_json(record.backward.dh));
    config("dx", model::gemm_config_json(record.backward.dx));
    config("fc1_gradient", model::gradient_config_json(record.backward.fc1_gradient));
    config("fc2_gradient", model::gradient_config_json(record.backward.fc2_gradient));
  } else {
    config("fc1", model::gemm_config_json(record.config.fc1));
    config("fc2", model::gemm_config_json(record.config.fc2));
    line(model::block_config_fields(record.config));
  }
  line(figure_fields(record));
  line(provenance_fields(record));
  if (!unknown.empty()) {
    model::JsonFieldList fields;
    for (const auto& [name, field] : unknown) fields.raw(name, model::json_text(field));
    line(fields.fields());
  }
  return text + "}";
}

std::string key_text(const TuningKey& key) {
  return "{" + key_fields(key) + "}";
}

Result<TuningKey> read_key_text(std::string_view text, const std::string& where) {
  auto json = model::parse_strict_json(text);
  if (!json) return Error(ErrorCode::invalid_argument, fmt::format("{}: {}", where, json.error().message()));
  try {
    return read_key(JsonFields(*json, where, NullField::is_wrong));
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
}

Status check_record(const TuningRecord& record) {
  if (Status status = validate(record.key); !status) return status;
  // Finite first: other numbers cannot be written. Then what the reader says of it is the check: what it
  // refuses must not be written.
  // What the other pass has would be lost.
  const bool backward = record.key.pass == TuningPass::backward;
  if (backward ? record.config != LayerConfig() || record.us1 != 0 || record.us2 != 0 || record.err1 != 0 ||
                     record.err2 != 0
               : record.backward != BackwardConfig() || record.of_products != BackwardFigures()) {
    return Error(
        ErrorCode::invalid_argument,
        fmt::format("a record of a {} pass has config or figures of the other", to_string(record.key.pass)));
  }
  std::vector<double> figures = {record.us1,    record.us2, record.err1,        record.err2,  record.us,
                                 record.tflops, record.bw,  record.baseline_us, record.spread};
  for (const auto& figure : kProductFigures) {
    figures.push_back(record.of_products.*figure.us);
    figures.push_back(record.of_products.*figure.err);
  }
  for (const double figure : figures) {
    if (!(figure >= 0 && figure <= std::numeric_limits<double>::max())) {
      return Error(ErrorCode::invalid_argument,
                   fmt::format("a figure is {}; must be finite and not negative", figure));
    }
  }
  for (const std::string* text : {&record.library, &record.nvrtc, &record.driver}) {
    if (!is_name(*text)) {
      return Error(ErrorCode::invalid_argument,
                   fmt::format("library, nvrtc and driver must each be {}", kNameRule));
    }
  }
  auto json = model::parse_strict_json(record_text(record));
  if (!json) return Error(ErrorCode::invalid_argument, json.error().message());
  try {
    read_record(*json, "record");
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
  return {};
}

}  // namespace varmoe::tuningdb
