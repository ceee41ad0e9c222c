#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "model/strict_json.hpp"

/// Writing JSON so that the same values always give the same bytes. What is written here, model/strict_json
/// reads.
namespace varmoe::model {

/// In quotes, escaped. The text is UTF-8.
std::string json_quoted(std::string_view text);
/// The shortest digits that read back as the same number; integers without a point. Finite numbers only.
std::string json_number(double value);
std::string json_number(float value);
/// A value as it was read, on one line: numbers keep their digits, fields of objects are in the order of
/// their names.
std::string json_text(const Json& value);

/// The fields of one object, in the order in which they are added: `"a": 1, "b": [2]`.
class JsonFieldList {
 public:
  JsonFieldList& text(std::string_view name, std::string_view value) { return raw(name, json_quoted(value)); }
  JsonFieldList& integer(std::string_view name, std::int64_t value) {
    return raw(name, std::to_string(value));
  }
  JsonFieldList& real(std::string_view name, double value) { return raw(name, json_number(value)); }
  JsonFieldList& boolean(std::string_view name, bool value) { return raw(name, value ? "true" : "false"); }
  /// A value that is JSON already.
  JsonFieldList& raw(std::string_view name, std::string_view json);

  const std::string& fields() const noexcept { return fields_; }
  std::string object() const { return "{" + fields_ + "}"; }

 private:
  std::string fields_;
};

}  // namespace varmoe::model
