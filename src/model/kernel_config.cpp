#include "varmoe/kernel_config.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.hpp"
#include "model/gemm_fields.hpp"

/// The text form of configs: key=value pairs with ',' between them, overrides with ';' between them.
namespace varmoe {
namespace {

using model::gemm_fields;
using model::GemmField;

Error bad_config(std::string message) {
  return Error(ErrorCode::invalid_config, std::move(message));
}

std::string_view trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

/// "64", "1-64" or "64-".
Status parse_tokens(std::string_view value, GemmOverride& result) {
  const auto bad = [value] {
    return bad_config(fmt::format("tokens={}: must be a token count or a range, such as 64, 1-64 or 4096-",
                                  printable(value, 64)));
  };
  const auto count = [](std::string_view text) -> std::optional<std::int64_t> {
    const auto number = parse_uint64(text);
    if (!number || *number > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<std::int64_t>(*number);
  };
  const std::size_t dash = value.find('-');
  const auto low = count(value.substr(0, dash));
  if (!low) return bad();
  result.min_tokens = *low;
  if (dash == std::string_view::npos) {
    result.max_tokens = *low;
  } else if (dash + 1 < value.size()) {
    const auto high = count(value.substr(dash + 1));
    if (!high || *high < *low) return bad();
    result.max_tokens = *high;
  }
  return {};
}

/// Sets one key. `value` is shown in errors as given.
Status set_field(GemmConfig& config, std::string_view key, std::string_view value) {
  if (key == "gather") {
    for (const GatherMode mode : {GatherMode::fused, GatherMode::copy}) {
      if (value != to_string(mode)) continue;
      config.gather = mode;
      return {};
    }
    return bad_config(fmt::format("gather={}: must be one of fused, copy", printable(value, 64)));
  }
  if (key == "schedule") {
    for (const Schedule schedule : {Schedule::mma_sync, Schedule::wgmma, Schedule::wgmma_pingpong}) {
      if (value != to_string(schedule)) continue;
      config.schedule = schedule;
      return {};
    }
    return bad_config(
        fmt::format("schedule={}: must be one of mma_sync, wgmma, wgmma_pingpong", printable(value, 64)));
  }
  std::vector<std::string_view> keys = {"tokens", "gather", "schedule"};
  for (const GemmField& field : gemm_fields()) {
    if (key != field.key) {
      keys.push_back(field.key);
      continue;
    }
    const auto number = parse_uint64(value);
    if (!number || *number > static_cast<std::uint64_t>(INT32_MAX) ||
        !field.takes(static_cast<std::int64_t>(*number))) {
      return bad_config(fmt::format("{}={}: must be {}", field.key, printable(value, 64), field.allowed()));
    }
    config.*field.member = static_cast<std::int32_t>(*number);
    return {};
  }
  return bad_config(fmt::format("unknown key \"{}\"; did you mean {}? Keys: {}", printable(key, 64),
                                nearest(key, keys), join(keys)));
}

/// Reads one override's pairs into `config` and `range`.
Status parse_pairs(std::string_view text, GemmConfig& config, GemmOverride& range) {
  std::vector<std::string_view> seen;
  for (const std::string_view part : split(text, ',')) {
    const std::string_view pair = trim(part);
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos) {
      return bad_config(fmt::format("\"{}\" is no key=value pair; expected e.g. block_m=128,block_n=256",
                                    printable(pair, 64)));
    }
    const std::string_view key = trim(pair.substr(0, equals)), value = trim(pair.substr(equals + 1));
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      return bad_config(fmt::format("key \"{}\" is given twice", printable(key, 64)));
    }
    auto status = key == "tokens" ? parse_tokens(value, range) : set_field(config, key, value);
    if (!status) return status;
    seen.push_back(key);
  }
  // The base may be one of Hopper's, with a cluster, which the portable schedule has not.
  const auto names = [&seen](std::string_view key) {
    return std::find(seen.begin(), seen.end(), key) != seen.end();
  };
  if (config.schedule == Schedule::mma_sync && names("schedule") && !names("cluster")) config.cluster = 1;
  return {};
}

}  // namespace

std::string to_string(const GemmConfig& config) {
  std::string text = fmt::format("schedule={},", to_string(config.schedule));
  for (const GemmField& field : gemm_fields()) {
    fmt::format_to(std::back_inserter(text), "{}={},", field.key, config.*field.member);
  }
  return text + "gather=" + to_string(config.gather);
}

GemmConfig GemmOverride::apply(GemmConfig base) const {
  GemmConfig config = base;
  GemmOverride ignored;
  return parse_pairs(text, config, ignored).ok() ? config : base;
}

Result<std::vector<GemmOverride>> parse_gemm_overrides(std::string_view text) {
  std::vector<GemmOverride> result;
  if (trim(text).empty()) return result;
  for (const std::string_view part : split(text, ';')) {
    GemmOverride one;
    GemmConfig config;
    if (auto status = parse_pairs(trim(part), config, one); !status) return status.error();
    one.text = trim(part);
    result.push_back(std::move(one));
  }
  return result;
}

const char* to_string(Schedule value) noexcept {
  switch (value) {
    case Schedule::mma_sync:
      return "mma_sync";
    case Schedule::wgmma:
      return "wgmma";
    case Schedule::wgmma_pingpong:
      return "wgmma_pingpong";
  }
  return "invalid";
}

const char* to_string(GatherMode value) noexcept {
  switch (value) {
    case GatherMode::fused:
      return "fused";
    case GatherMode::copy:
      return "copy";
  }
  return "invalid";
}

const char* to_string(ConfigSource value) noexcept {
  switch (value) {
    case ConfigSource::override_:
      return "override";
    case ConfigSource::tuned:
      return "tuned";
    case ConfigSource::predicted:
      return "predicted";
  }
  return "invalid";
}

}  // namespace varmoe
