#include "model/json_writer.hpp"

#include <fmt/format.h>

#include <charconv>

namespace varmoe::model {
namespace {

template <class T>
std::string shortest(T value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return std::string(buffer, end);
}

void append(std::string& out, const Json& value) {
  if (const auto* object = value.as<Json::Object>()) {
    JsonFieldList fields;
    for (const auto& [name, field] : *object) fields.raw(name, json_text(field));
    out += fields.object();
  } else if (const auto* array = value.as<Json::Array>()) {
    out += '[';
    for (std::size_t i = 0; i < array->size(); ++i) {
      if (i > 0) out += ", ";
      append(out, (*array)[i]);
    }
    out += ']';
  } else if (const auto* text = value.as<std::string>()) {
    out += json_quoted(*text);
  } else if (const auto* integer = value.as<std::int64_t>()) {
    out += std::to_string(*integer);
  } else if (const auto* real = value.as<Json::Real>()) {
    out += real->text;
  } else if (const auto* boolean = value.as<bool>()) {
    out += *boolean ? "true" : "false";
  } else {
    out += "null";
  }
}

}  // namespace

std::string json_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string json_number(double value) {
  return shortest(value);
}
std::string json_number(float value) {
  return shortest(value);
}

std::string json_text(const Json& value) {
  std::string out;
  append(out, value);
  return out;
}

JsonFieldList& JsonFieldList::raw(std::string_view name, std::string_view json) {
  if (!fields_.empty()) fields_ += ", ";
  fields_ += json_quoted(name);
  fields_ += ": ";
  fields_ += json;
  return *this;
}

}  // namespace varmoe::model
