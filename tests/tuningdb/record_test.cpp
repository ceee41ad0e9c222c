#include <doctest/doctest.h>

#include <array>
#include <map>
#include <random>
#include <set>

#include "model/gemm_fields.hpp"
#include "model/json_writer.hpp"
#include "tuningdb/fixture.hpp"
#include "tuningdb/record_json.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;
using model::Json;

namespace {

TuningRecord every_field_set() {
  LayerSpec spec = mixed_layer();
  spec.activation = Activation::swiglu_oai;
  spec.activation_params = {1.7f, 6.25f};
  spec.dtype = DType::fp16;
  spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = GateOrder::interleaved;
  spec.batch_invariant = true;
  TuningRecord record = record_of(spec, 256);
  record.config.fc1.block_m = 64;
  record.config.fc1.raster = 5;
  record.config.fc1.gather = GatherMode::copy;
  record.config.fc2.stages = 4;
  record.config.sort = {512, 1024};
  record.config.gather.block_threads = 128;
  record.config.combine.block_threads = 64;
  record.err1 = 0.25;
  record.err2 = 1.0 / 3;
  record.epochs = {1, 2, 3, 4, 5};
  return record;
}

Result<StoredRecord> read(const std::string& text) {
  auto json = model::parse_strict_json(text);
  if (!json) return json.error();
  try {
    return read_record(*json, "here");
  } catch (const model::FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
}

/// The record's JSON with the value at `path` ("fc1.block_m") replaced by other JSON; empty: removed.
std::string with_value(const TuningRecord& record, const std::string& path, const std::string& json) {
  Json root = *model::parse_strict_json(record_text(record));
  Json* object = &root;
  std::string name = path;
  if (const auto dot = path.find('.'); dot != std::string::npos) {
    object = &object->as<Json::Object>()->at(path.substr(0, dot));
    name = path.substr(dot + 1);
  }
  auto& fields = *object->as<Json::Object>();
  if (fields.count(name) == 0) throw std::runtime_error("no field " + path);
  fields.erase(name);
  // A number too large for the tree is put in as text afterwards.
  fields.emplace(name, Json(std::string("<here>")));
  std::string text = model::json_text(root);
  if (!json.empty()) return replaced(text, "\"<here>\"", json);
  const std::string field = "\"" + name + "\": \"<here>\"";
  return text.find(field + ", ") != std::string::npos ? replaced(text, field + ", ", "")
                                                      : replaced(text, ", " + field, "");
}

/// Every path of a number in the record's JSON.
std::vector<std::string> numbers_in(const TuningRecord& record) {
  std::vector<std::string> paths;
  const Json root = *model::parse_strict_json(record_text(record));
  const auto is_number = [](const Json& v) { return v.as<std::int64_t>() || v.as<Json::Real>(); };
  for (const auto& [name, value] : *root.as<Json::Object>()) {
    if (is_number(value)) paths.push_back(name);
    if (const auto* inner = value.as<Json::Object>()) {
      for (const auto& [below, v] : *inner) {
        if (is_number(v)) paths.push_back(name + "." + below);
      }
    }
  }
  return paths;
}

}  // namespace

TEST_CASE("a record survives writing and reading") {
  for (const TuningRecord& record :
       {every_field_set(), record_of(uniform_layer(), 1), record_of(mixed_layer(), 32768)}) {
    const auto stored = read(record_text(record));
    REQUIRE(stored.ok());
    CHECK(stored->record == record);
    CHECK(stored->unknown.empty());
    CHECK(record_text(stored->record) == record_text(record));
    CHECK(check_record(record).ok());
  }
}

TEST_CASE("shared experts are part of the key; records of layers without them do not speak of them") {
  LayerSpec spec = mixed_layer();
  CHECK(record_text(record_of(spec, 64)).find("shared") == std::string::npos);
  spec.shared_widths = {512, 64, 512};
  spec.shared_gate = true;
  const TuningRecord record = record_of(spec, 64);
  CHECK(record.key.inter_dim == make_tuning_key(mixed_layer(), record.key.device, 64).inter_dim);
  CHECK(record.key.shared_inter_dim == std::vector<WidthClass>{{64, 1}, {512, 2}});
  CHECK(record.key.shared_gate);
  CHECK(make_tuning_key(layer_spec_of(record.key), record.key.device, 64) == record.key);
  const std::string text = record_text(record);
  const auto stored = read(text);
  REQUIRE_MESSAGE(stored.ok(), (stored.ok() ? "" : stored.error().message()));
  CHECK(stored->record == record);
  CHECK(stored->unknown.empty());
  for (const auto& [from, to, why] :
       {std::array{"[[1, 64], [2, 512]]", "512", "must be a list of [experts, width]"},
        std::array{"[[1, 64], [2, 512]]", "[]", "must be a list of [experts, width]"},
        std::array{"[[1, 64], [2, 512]]", "[[2, 512], [1, 64]]", "widths must ascend"},
        std::array{"[[1, 64], [2, 512]]", "[[16, 64], [2, 512]]", "more than 16 experts"},
        std::array{"[[1, 64], [2, 512]]", "[[17, 64]]", "17"},
        std::array{"[[1, 64], [2, 512]]", "[[1, 12]]", "shared_widths[0] is 12"},
        std::array{"\"shared_inter_dim\": [[1, 64], [2, 512]], ", "", "shared_gate is true without"}}) {
    CAPTURE(to);
    const auto refused = read(replaced(text, from, to));
    REQUIRE_FALSE(refused.ok());
    CHECK_MESSAGE(refused.error().message().find(why) != std::string::npos, refused.error().message());
  }
}

TEST_CASE("any numbers survive writing and reading") {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> exponent(-4, 8);
  for (int i = 0; i < 300; ++i) {
    TuningRecord record = every_field_set();
    for (double* figure :
         {&record.us, &record.us1, &record.us2, &record.tflops, &record.bw, &record.baseline_us}) {
      *figure = std::pow(10.0, exponent(random));
    }
    record.err1 = std::generate_canonical<double, 53>(random);
    record.key.act_params.alpha =
        static_cast<float>(std::pow(10.0, exponent(random))) * (i % 2 == 0 ? 1.0f : -1.0f);
    record.key.act_params.limit = static_cast<float>(std::pow(10.0, exponent(random)));
    const auto stored = read(record_text(record));
    REQUIRE(stored.ok());
    CHECK(stored->record == record);
  }
}

TEST_CASE("the layer of a record and its configs are written by the names that AITER and GemmConfig give") {
  const std::string text = record_text(every_field_set());
  for (const char* name :
       {"cu_num",    "token",     "model_dim", "inter_dim", "expert",          "topk", "act_type", "dtype",
        "q_dtype_a", "q_dtype_w", "q_type",    "use_g1u1",  "doweight_stage1", "us1",  "err1",     "us2",
        "err2",      "us",        "tflops",    "bw"}) {
    CAPTURE(name);
    CHECK(text.find("\"" + std::string(name) + "\": ") != std::string::npos);
  }
  for (const model::GemmField& field : model::gemm_fields()) {
    CAPTURE(field.key);
    CHECK(text.find("\"" + std::string(field.key) + "\": ") != std::string::npos);
  }
  CHECK(text.find("\"inter_dim\": [[4, 512], [3, 768], [1, 1024]]") != std::string::npos);
  CHECK(record_text(record_of(uniform_layer(), 1)).find("\"inter_dim\": 1024,") != std::string::npos);
}

TEST_CASE("fault 22: 4294967296, -1, 1.9, true, \"64\", 0 and INT64_MAX in every number: refused by name") {
  const TuningRecord record = every_field_set();
  const std::set<std::string> reals = {"us1",
                                       "us2",
                                       "us",
                                       "err1",
                                       "err2",
                                       "tflops",
                                       "bw",
                                       "baseline_us",
                                       "spread",
                                       "act_params.alpha",
                                       "act_params.limit"};
  // What is in range after all. Zero: not measured, or unknown.
  const std::set<std::string> zero_is_right = {"us1",
                                               "us2",
                                               "err1",
                                               "err2",
                                               "tflops",
                                               "bw",
                                               "baseline_us",
                                               "spread",
                                               "act_params.alpha",
                                               "config_space",
                                               "sm_clock_mhz",
                                               "memory_clock_mhz",
                                               "candidates",
                                               "sort.single_block_rows",
                                               "one_launch.max_tokens"};
  const std::set<std::string> large_is_right = {
      "us1", "us2", "us", "baseline_us", "act_params.alpha", "act_params.limit"};
  const std::vector<std::string> paths = numbers_in(record);
  CHECK(paths.size() >= 45);
  for (const std::string& path : paths) {
    for (const std::string value :
         {"4294967296", "-1", "1.9", "true", "\"64\"", "0", "9223372036854775807", "1e400", "null", "[]"}) {
      CAPTURE(path);
      CAPTURE(value);
      const auto stored = read(with_value(record, path, value));
      bool right = false;
      if (value == "0") right = zero_is_right.count(path) != 0;
      if (value == "4294967296") right = large_is_right.count(path) != 0;
      if (value == "9223372036854775807") right = path.rfind("act_params", 0) == 0;
      if (value == "1.9") right = reals.count(path) != 0 && path != "err1" && path != "err2";
      if (value == "-1") right = path == "act_params.alpha";
      CHECK(stored.ok() == right);
      const std::string name = path.substr(path.find('.') + 1);
      if (!stored.ok() && value != "1e400") CHECK(stored.error().message().find(name) != std::string::npos);
      if (!stored.ok() && value != "1e400") CHECK(stored.error().message().rfind("here: ", 0) == 0);
    }
  }
}

TEST_CASE("fault 22: inter_dim of wrong form is refused by name") {
  const TuningRecord record = every_field_set();
  for (const std::string value :
       {"[]", "[[4, 512]]", "[[4, 512], [3, 768], [1, 1024], [1, 2048]]", "[[3, 768], [4, 512], [1, 1024]]",
        "[[4, 512, 1]]", "[[8, 512.5]]", "[[-1, 512]]", "[[4294967304, 512]]", "[512]", "{}", "\"512\"", "0",
        "513", "9223372036854775807"}) {
    CAPTURE(value);
    const auto stored = read(with_value(record, "inter_dim", value));
    REQUIRE(!stored.ok());
    const std::string& message = stored.error().message();
    CHECK((message.find("inter_dim") != std::string::npos || message.find("expert") != std::string::npos));
  }
}

TEST_CASE(
    "fault 23: unknown words, code and control characters in every string are refused or kept as text") {
  const TuningRecord record = every_field_set();
  const std::set<std::string> names = {"device", "library", "nvrtc", "driver"};
  for (const std::string path :
       {"arch", "device", "act_type", "dtype", "q_dtype_a", "q_dtype_w", "q_type", "fc1_layout", "fc2_layout",
        "gate_order", "fc1.schedule", "fc2.gather", "library", "kernel_digest", "nvrtc", "driver", "date"}) {
    for (const std::string value : {"\"x\"; */ #include <a>\"", "\"*/ int x; /*\"", "\"two\\nlines\"",
                                    "\"\\u0000\"", "\"\\u00e4\"", "17", "true"}) {
      CAPTURE(path);
      CAPTURE(value);
      const auto stored = read(with_value(record, path, value));
      const bool plain_text = value == "\"*/ int x; /*\"" && names.count(path) != 0;
      CHECK(stored.ok() == plain_text);
      if (stored.ok()) CHECK(read(record_text(stored->record))->record == stored->record);
    }
    const auto long_name = read(with_value(record, path, "\"" + std::string(1 << 20, 'a') + "\""));
    REQUIRE(!long_name.ok());
    CHECK(long_name.error().message().size() < 1000);
  }
}

TEST_CASE("a missing field is named; figures and provenance may be missing") {
  const TuningRecord record = every_field_set();
  const Json root = *model::parse_strict_json(record_text(record));
  const std::set<std::string> optional = {
      "us1",       "err1",        "us2",    "err2",         "tflops",
      "bw",        "baseline_us", "spread", "library",      "kernel_digest",
      "nvrtc",     "driver",      "date",   "sm_clock_mhz", "memory_clock_mhz",
      "candidates"};
  for (const auto& [name, value] : *root.as<Json::Object>()) {
    CAPTURE(name);
    const auto stored = read(with_value(record, name, ""));
    if (name == "config_space") {
      CHECK(stored.ok());  // then nothing says that the figures still hold
      CHECK(!staleness(stored->record).empty());
      continue;
    }
    CHECK(stored.ok() == (optional.count(name) != 0));
    if (!stored.ok()) CHECK(stored.error().message().find(name + " is missing") != std::string::npos);
  }
}

TEST_CASE(
    "fault 25: keys that an older config space lacked have the default; of this one each must be there") {
  TuningRecord record = every_field_set();
  CHECK(!read(with_value(record, "fc1.cluster", "")).ok());
  record.config_space = model::kConfigSpaceVersion - 1;
  const auto stored = read(with_value(record, "fc1.cluster", ""));
  REQUIRE(stored.ok());
  CHECK(stored->record.config.fc1.cluster == GemmConfig().cluster);
  CHECK(!staleness(stored->record).empty());
}

TEST_CASE("fault 25: an unknown key of a config is refused, since it would change what the config means") {
  const std::string text = record_text(every_field_set());
  const auto stored = read(replaced(text, "\"fc1\": {", "\"fc1\": {\"split_k\": 2, "));
  REQUIRE(!stored.ok());
  CHECK(stored.error().message().find("split_k") != std::string::npos);
}

TEST_CASE("a record that cannot be written so that it can be read is refused") {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1.0}) {
    for (double TuningRecord::*figure :
         {&TuningRecord::us, &TuningRecord::us1, &TuningRecord::err2, &TuningRecord::bw}) {
      TuningRecord record = every_field_set();
      record.*figure = bad;
      CHECK(!check_record(record).ok());
    }
  }
  TuningRecord record = every_field_set();
  record.us = 0;
  CHECK(!check_record(record).ok());
  record = every_field_set();
  record.library = "\x80";
  CHECK(!check_record(record).ok());
  record = every_field_set();
  record.date = "yesterday";
  CHECK(!check_record(record).ok());
  record = every_field_set();
  record.config.fc1.block_m = 7;
  CHECK(!check_record(record).ok());
}

TEST_CASE("a record is stale where an epoch of a kernel that it runs, or the config space, is not today's") {
  const TuningRecord fresh = record_of(uniform_layer(), 64);
  CHECK(staleness(fresh).empty());
  TuningRecord record = fresh;
  record.epochs.fc1 += 1;
  CHECK(staleness(record).find("fc1_mma_sync") != std::string::npos);
  record = fresh;
  record.epochs.combine += 1;
  CHECK(staleness(record).find("combine") != std::string::npos);
  record = fresh;
  record.epochs.gather += 1;
  CHECK(staleness(record).empty());
  record.config.fc1.gather = GatherMode::copy;
  CHECK(staleness(record).find("gather") != std::string::npos);
  record = fresh;
  record.config_space += 1;
  CHECK(staleness(record).find("config space") != std::string::npos);
  record = fresh;
  record.config.fc2.schedule = Schedule::wgmma;
  record.epochs.fc2 = 77;
  CHECK(staleness(record).find("fc2_wgmma") != std::string::npos);
}
