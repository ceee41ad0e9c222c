#include "model/config_json.hpp"

#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "model/config_space.hpp"
#include "model/gemm_fields.hpp"
#include "model/json_writer.hpp"
#include "model/one_launch.hpp"

namespace varmoe::model {
namespace {

std::string threads_json(std::int32_t block_threads) {
  return JsonFieldList().integer("block_threads", block_threads).object();
}

const Json& required(const JsonFields& fields, std::string_view name, std::string_view expected) {
  if (const Json* value = fields.find(name)) return *value;
  fields.fail(fmt::format("{} is missing; {}", name, expected));
}

/// An object below this one.
JsonFields nested(const JsonFields& fields, std::string_view name) {
  return JsonFields(required(fields, name, "must be an object"), fmt::format("{}: {}", fields.where(), name),
                    NullField::is_wrong);
}

GemmConfig read_gemm(const JsonFields& fields, ConfigKeys keys) {
  std::vector<std::string_view> known = {"schedule", "gather"};
  for (const GemmField& field : gemm_fields()) known.push_back(field.key);
  fields.refuse_unknown(known);
  GemmConfig config;
  const auto absent = [&](std::string_view key) {
    return keys == ConfigKeys::of_older_space && !fields.has(key);
  };
  if (!absent("schedule")) {
    config.schedule =
        fields.choice("schedule", {Schedule::mma_sync, Schedule::wgmma, Schedule::wgmma_pingpong});
  }
  for (const GemmField& field : gemm_fields()) {
    if (absent(field.key)) continue;
    const Json& value = required(fields, field.key, fmt::format("must be {}", field.allowed()));
    const auto* number = value.as<std::int64_t>();
    if (number == nullptr || !field.takes(*number))
      fields.fail(field.key, value, fmt::format("must be {}", field.allowed()));
    config.*field.member = static_cast<std::int32_t>(*number);
  }
  if (!absent("gather")) config.gather = fields.choice("gather", {GatherMode::fused, GatherMode::copy});
  return config;
}

std::int32_t read_integer(const JsonFields& fields, std::string_view name, std::int64_t min,
                          std::int64_t max) {
  return static_cast<std::int32_t>(fields.integer(name, min, max));
}

/// Every key must be there: none is younger than the others.
GradientConfig read_gradient(const JsonFields& fields) {
  constexpr std::int64_t kMostColumns = 1024, kMostStages = 64;
  fields.refuse_unknown({"schedule", "block_m", "block_n", "stages", "gather"});
  GradientConfig config;
  config.schedule = fields.choice("schedule", {Schedule::mma_sync, Schedule::wgmma});
  config.block_m = read_integer(fields, "block_m", 1, kMostColumns);
  config.block_n = read_integer(fields, "block_n", 1, kMostColumns);
  config.stages = read_integer(fields, "stages", 1, kMostStages);
  config.gather = fields.choice("gather", {GatherMode::fused, GatherMode::copy});
  return config;
}

std::int32_t read_block_threads(const JsonFields& fields) {
  const std::int32_t threads = read_integer(fields, "block_threads", 32, 1024);
  if (threads % 32 != 0)
    fields.fail("block_threads", *fields.find("block_threads"), "must be a multiple of 32");
  return threads;
}

}  // namespace

std::string gemm_config_json(const GemmConfig& config) {
  JsonFieldList fields;
  fields.text("schedule", to_string(config.schedule));
  for (const GemmField& field : gemm_fields()) fields.integer(field.key, config.*field.member);
  return fields.text("gather", to_string(config.gather)).object();
}

std::string block_config_fields(const LayerConfig& config) {
  return JsonFieldList()
      .raw("sort", JsonFieldList()
                       .integer("block_threads", config.sort.block_threads)
                       .integer("single_block_rows", config.sort.single_block_rows)
                       .object())
      .raw("gather", threads_json(config.gather.block_threads))
      .raw("combine", threads_json(config.combine.block_threads))
      .raw("one_launch", JsonFieldList()
                             .integer("max_tokens", config.one_launch.max_tokens)
                             .integer("teams", config.one_launch.teams)
                             .object())
      .fields();
}

std::string layer_config_json(const LayerConfig& config) {
  return fmt::format(R"({{"fc1": {}, "fc2": {}, {}}})", gemm_config_json(config.fc1),
                     gemm_config_json(config.fc2), block_config_fields(config));
}

std::string gradient_config_json(const GradientConfig& config) {
  return JsonFieldList()
      .text("schedule", to_string(config.schedule))
      .integer("block_m", config.block_m)
      .integer("block_n", config.block_n)
      .integer("stages", config.stages)
      .text("gather", to_string(config.gather))
      .object();
}

std::string backward_config_json(const BackwardConfig& config) {
  return JsonFieldList()
      .raw("dh", gemm_config_json(config.dh))
      .raw("dx", gemm_config_json(config.dx))
      .raw("fc1_gradient", gradient_config_json(config.fc1_gradient))
      .raw("fc2_gradient", gradient_config_json(config.fc2_gradient))
      .object();
}

BackwardConfig read_backward_config(const JsonFields& fields, ConfigKeys keys) {
  BackwardConfig config;
  config.dh = read_gemm(nested(fields, "dh"), keys);
  config.dx = read_gemm(nested(fields, "dx"), keys);
  config.fc1_gradient = read_gradient(nested(fields, "fc1_gradient"));
  config.fc2_gradient = read_gradient(nested(fields, "fc2_gradient"));
  return config;
}

LayerConfig read_layer_config(const JsonFields& fields, ConfigKeys keys) {
  LayerConfig config;
  config.fc1 = read_gemm(nested(fields, "fc1"), keys);
  config.fc2 = read_gemm(nested(fields, "fc2"), keys);
  const JsonFields sort = nested(fields, "sort"), gather = nested(fields, "gather"),
                   combine = nested(fields, "combine");
  sort.refuse_unknown({"block_threads", "single_block_rows"});
  gather.refuse_unknown({"block_threads"});
  combine.refuse_unknown({"block_threads"});
  config.sort.block_threads = read_block_threads(sort);
  config.sort.single_block_rows = read_integer(sort, "single_block_rows", 0, kMaxSingleBlockRows);
  config.gather.block_threads = read_block_threads(gather);
  config.combine.block_threads = read_block_threads(combine);
  // Before version 5 of the config space its ring was another, and before version 4 there was none: such
  // layers run kernel by kernel.
  if (keys == ConfigKeys::all) {
    const JsonFields one_launch = nested(fields, "one_launch");
    one_launch.refuse_unknown({"max_tokens", "teams"});
    config.one_launch.max_tokens = read_integer(one_launch, "max_tokens", 0, kMaxOneLaunchTokens);
    config.one_launch.teams = read_integer(one_launch, "teams", kFewestOneLaunchTeams, kMostOneLaunchTeams);
  }
  return config;
}

}  // namespace varmoe::model
