#include "model/json_fields.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.hpp"

namespace varmoe::model {
namespace {

std::string integer_range(std::int64_t min, std::int64_t max) {
  return min == max ? fmt::format("must be {}", min)
                    : fmt::format("must be an integer from {} to {}", min, max);
}

std::string real_range(double min, double max) {
  return fmt::format("must be a number from {} to {}", min, max);
}

}  // namespace

JsonFields::JsonFields(const Json& value, std::string where, NullField nulls)
    : object_(value.as<Json::Object>()), where_(std::move(where)), nulls_(nulls) {
  if (object_ == nullptr)
    throw FieldError(fmt::format("{}: is {}; must be an object", where_, value.describe()));
}

const Json* JsonFields::find(std::string_view name) const {
  const auto it = object_->find(name);
  if (it == object_->end()) return nullptr;
  if (nulls_ == NullField::is_absent && it->second.is_null()) return nullptr;
  return &it->second;
}

const Json& JsonFields::required(std::string_view name, std::string_view expected) const {
  if (const Json* value = find(name)) return *value;
  throw FieldError(fmt::format("{}: {} is missing; {}", where_, name, expected));
}

std::int64_t JsonFields::integer(std::string_view name, std::int64_t min, std::int64_t max) const {
  const Json& value = required(name, integer_range(min, max));
  return integer_element(*this, std::string(name), value, min, max);
}

std::int64_t JsonFields::integer_or(std::string_view name, std::int64_t min, std::int64_t max,
                                    std::int64_t fallback) const {
  return has(name) ? integer(name, min, max) : fallback;
}

double JsonFields::real(std::string_view name, double min, double max) const {
  const Json& value = required(name, real_range(min, max));
  double number = 0;
  if (const auto* integer_value = value.as<std::int64_t>()) {
    number = static_cast<double>(*integer_value);
  } else if (const auto* real_value = value.as<Json::Real>()) {
    number = real_value->value;
  } else {
    fail(name, value, real_range(min, max));
  }
  if (!(number >= min && number <= max)) fail(name, value, real_range(min, max));
  return number;
}

double JsonFields::real_or(std::string_view name, double min, double max, double fallback) const {
  return has(name) ? real(name, min, max) : fallback;
}

bool JsonFields::boolean_or(std::string_view name, bool fallback) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (const auto* boolean = value->as<bool>()) return *boolean;
  fail(name, *value, "must be true or false");
}

const std::string& JsonFields::string(std::string_view name) const {
  const Json& value = required(name, "must be a string");
  if (const auto* text = value.as<std::string>()) return *text;
  fail(name, value, "must be a string");
}

std::string JsonFields::string_or_empty(std::string_view name) const {
  return has(name) ? string(name) : std::string();
}

std::vector<std::int64_t> JsonFields::integers_or_empty(std::string_view name, std::int64_t min,
                                                        std::int64_t max) const {
  std::vector<std::int64_t> result;
  const Json* value = find(name);
  if (value == nullptr) return result;
  const auto* list = value->as<Json::Array>();
  if (list == nullptr) fail(name, *value, "must be a list of integers");
  for (std::size_t i = 0; i < list->size(); ++i) {
    result.push_back(integer_element(*this, fmt::format("{}[{}]", name, i), (*list)[i], min, max));
  }
  return result;
}

void JsonFields::refuse_unknown(const std::vector<std::string_view>& known) const {
  for (const auto& [name, value] : *object_) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    throw FieldError(fmt::format("{}: unknown field \"{}\"; did you mean {}? Known: {}", where_,
                                 printable(name, 64), nearest(name, known), join(known)));
  }
}

void JsonFields::fail(std::string_view name, const Json& value, std::string_view expected) const {
  throw FieldError(fmt::format("{}: {} is {}; {}", where_, name, value.describe(), expected));
}

void JsonFields::fail(std::string_view message) const {
  throw FieldError(fmt::format("{}: {}", where_, message));
}

std::int64_t integer_element(const JsonFields& fields, const std::string& name, const Json& value,
                             std::int64_t min, std::int64_t max) {
  const auto* number = value.as<std::int64_t>();
  if (number == nullptr || *number < min || *number > max) fields.fail(name, value, integer_range(min, max));
  return *number;
}

}  // namespace varmoe::model
