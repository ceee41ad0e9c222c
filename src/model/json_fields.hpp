#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model/strict_json.hpp"

/// Typed access to the fields of a JSON object, with errors that name the field, its value and what is
/// allowed.
namespace varmoe::model {

/// Thrown by JsonFields and the readers built on it; caught where the room's function returns its Result.
class FieldError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Whether a field that is null counts as absent: config.json files of Hugging Face write null for "not set".
enum class NullField : std::uint8_t { is_absent, is_wrong };

class JsonFields {
 public:
  /// `where` begins every message: the file, and the object in it. The object must outlive this. Throws
  /// FieldError when `value` is no object.
  JsonFields(const Json& value, std::string where, NullField nulls);

  const std::string& where() const noexcept { return where_; }
  bool has(std::string_view name) const { return find(name) != nullptr; }
  /// The raw field, or null when absent.
  const Json* find(std::string_view name) const;

  std::int64_t integer(std::string_view name, std::int64_t min, std::int64_t max) const;
  std::int64_t integer_or(std::string_view name, std::int64_t min, std::int64_t max,
                          std::int64_t fallback) const;
  /// A finite number, integer or not.
  double real(std::string_view name, double min, double max) const;
  double real_or(std::string_view name, double min, double max, double fallback) const;
  bool boolean_or(std::string_view name, bool fallback) const;
  const std::string& string(std::string_view name) const;
  /// Empty when absent.
  std::string string_or_empty(std::string_view name) const;
  /// The one of `choices` that a string names, by the to_string found beside its type.
  template <class Enum>
  Enum choice(std::string_view name, std::initializer_list<Enum> choices) const {
    const std::string& text = string(name);
    std::string allowed;
    for (const Enum one : choices) {
      if (text == to_string(one)) return one;
      allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(one));
    }
    fail(name, *find(name), "must be one of " + allowed);
  }
  /// A list of integers; empty when absent.
  std::vector<std::int64_t> integers_or_empty(std::string_view name, std::int64_t min,
                                              std::int64_t max) const;

  /// Throws when the object has a field that is not in `known`; names the nearest known one.
  void refuse_unknown(const std::vector<std::string_view>& known) const;

  /// Throws "<where>: <name> is <value>; <expected>".
  [[noreturn]] void fail(std::string_view name, const Json& value, std::string_view expected) const;
  /// Throws "<where>: <message>".
  [[noreturn]] void fail(std::string_view message) const;

 private:
  const Json& required(std::string_view name, std::string_view expected) const;

  const Json::Object* object_ = nullptr;
  std::string where_;
  NullField nulls_;
};

/// Checks an element of a list as JsonFields::integer checks a field; `name` is e.g. "expert_widths[3]".
std::int64_t integer_element(const JsonFields& fields, const std::string& name, const Json& value,
                             std::int64_t min, std::int64_t max);

}  // namespace varmoe::model
