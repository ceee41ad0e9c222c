#include "tuningdb/vllm_hints.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.hpp"
#include "model/json_fields.hpp"
#include "tuningdb/limits.hpp"

namespace varmoe::tuningdb {
namespace {

using model::FieldError;
using model::Json;
using model::JsonFields;
using model::NullField;

constexpr std::size_t kMaxBytes = 1 << 20;
constexpr std::int64_t kMaxTile = 65536;

/// A block size; 0 where it is not given.
std::int32_t tile(const JsonFields& fields, std::string_view name) {
  return static_cast<std::int32_t>(fields.integer_or(name, 1, kMaxTile, 0));
}

std::int64_t number_in(std::string_view name, std::string_view part, std::int64_t max) {
  const auto number = parse_uint64(part);
  if (!number || *number < 1 || *number > static_cast<std::uint64_t>(max)) {
    throw FieldError(fmt::format("{}: \"{}\" must be a number from 1 to {}", name, printable(part, 32), max));
  }
  return static_cast<std::int64_t>(*number);
}

/// What the file's name says.
TuningHint read_name(std::string_view path) {
  std::string_view name = path;
  if (const auto slash = name.rfind('/'); slash != std::string_view::npos) name.remove_prefix(slash + 1);
  const std::string shown = printable(name);
  if (!name.ends_with(".json")) throw FieldError(shown + ": must end in .json");
  name.remove_suffix(5);
  TuningHint hint;
  for (const std::string_view part : split(name, ',')) {
    const std::size_t equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    const std::string_view value = equals == std::string_view::npos ? "" : part.substr(equals + 1);
    if (key == "E") {
      hint.expert = number_in(shown, value, kMaxExperts);
    } else if (key == "N") {
      hint.inter_dim = number_in(shown, value, kMaxWidth);
    } else if (key == "device_name") {
      hint.device_name = printable(value, kMaxNameBytes);
      std::replace(hint.device_name.begin(), hint.device_name.end(), '_', ' ');
    } else {
      throw FieldError(
          fmt::format("{}: \"{}\" is of a kernel that is not known here", shown, printable(part, 64)));
    }
  }
  if (hint.expert == 0 || hint.inter_dim == 0)
    throw FieldError(shown + ": must be named E=…,N=…,device_name=….json");
  return hint;
}

}  // namespace

Result<HintImport> import_vllm_config(std::string_view text, std::string_view path) {
  const std::string where = printable(path, 4096);
  model::JsonLimits limits;
  limits.max_bytes = kMaxBytes;
  limits.max_depth = 4;
  const auto root = model::parse_strict_json(text, limits);
  if (!root) return Error(ErrorCode::invalid_argument, fmt::format("{}: {}", where, root.error().message()));
  HintImport result;
  try {
    const TuningHint base = read_name(path);
    const JsonFields file(*root, where, NullField::is_wrong);
    for (const auto& [name, value] : *root->as<Json::Object>()) {
      const auto tokens = parse_uint64(name);
      if (!tokens || *tokens < 1 || *tokens > static_cast<std::uint64_t>(kMaxTokens)) {
        result.dropped.push_back(fmt::format("{}: \"{}\" is no token count", where, printable(name, 64)));
        continue;
      }
      try {
        const JsonFields fields(value, fmt::format("{}: {} tokens", where, *tokens), NullField::is_wrong);
        TuningHint hint = base;
        hint.source = fields.where();
        hint.token = static_cast<std::int64_t>(*tokens);
        hint.block_m = tile(fields, "BLOCK_SIZE_M");
        hint.block_n = tile(fields, "BLOCK_SIZE_N");
        hint.block_k = tile(fields, "BLOCK_SIZE_K");
        hint.group_m = tile(fields, "GROUP_SIZE_M");
        hint.ksplit = tile(fields, "SPLIT_K");
        hint.warps = tile(fields, "num_warps");
        hint.stages = tile(fields, "num_stages");
        if (hint.block_m == 0) fields.fail("BLOCK_SIZE_M is missing");
        result.hints.push_back(std::move(hint));
      } catch (const FieldError& error) {
        result.dropped.push_back(error.what());
      }
    }
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
  // The object is ordered by the text of its keys.
  std::sort(result.hints.begin(), result.hints.end(),
            [](const TuningHint& a, const TuningHint& b) { return a.token < b.token; });
  return result;
}

}  // namespace varmoe::tuningdb
