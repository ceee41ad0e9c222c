#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "varmoe/error.hpp"

/// JSON as varmoe reads it: RFC 8259 and nothing else, with everything bounded.
namespace varmoe::model {

/// A parsed JSON value. Numbers keep apart what fits an int64 and is written as an integer, and all others.
class Json {
 public:
  /// A number that is no int64: a fraction, an exponent, or beyond the range. `text` is for messages.
  struct Real {
    double value = 0;
    std::string text;
  };
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  Json() = default;  ///< null
  template <class T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_null() const noexcept { return std::holds_alternative<std::monostate>(value_); }
  /// The value as T (bool, std::int64_t, Real, std::string, Array, Object), or null when it is of another
  /// kind.
  template <class T>
  const T* as() const noexcept {
    return std::get_if<T>(&value_);
  }
  template <class T>
  T* as() noexcept {
    return std::get_if<T>(&value_);
  }

  /// For messages: the value where it is short, else its kind: `true`, `"64"`, `1.9`, `a list of 3`, `an
  /// object`.
  std::string describe() const;

 private:
  std::variant<std::monostate, bool, std::int64_t, Real, std::string, Array, Object> value_;
};

struct JsonLimits {
  std::size_t max_bytes = std::size_t{4} << 20;
  int max_depth = 64;                 ///< nested lists and objects
  std::size_t max_values = 1u << 18;  ///< all values together: bounds memory whatever the text is
};

/// Parses a whole text. Refused: more than the limits allow, a byte order mark, duplicate keys in an object,
/// NaN and infinities, numbers beyond a double, comments, bytes after the value, strings that are not UTF-8.
/// The message says where in the text; invalid_argument.
Result<Json> parse_strict_json(std::string_view text, const JsonLimits& limits = {});

/// The bytes of a regular file of at most `max_bytes`, following symlinks; FIFOs, devices and folders are
/// refused without blocking. io_error names the file.
Result<std::string> read_input_file(const std::string& path, std::size_t max_bytes);

}  // namespace varmoe::model
