#pragma once

#include <cassert>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "varmoe/export.hpp"

/// Errors as values. No function of varmoe throws across its API, except `Result::value()` when there is none.
namespace varmoe {

/// What kind of thing went wrong. The numbers are stable: they are the return codes of the C API (varmoe.h).
enum class ErrorCode : int {
  ok = 0,
  invalid_argument = 1,     ///< an argument of this call is out of range; the message names it
  invalid_spec = 2,         ///< a layer spec, model file or layer file is wrong; the message names field and value
  invalid_config = 3,       ///< a kernel config lies outside the config space or above the device's limits
  invalid_environment = 4,  ///< a VARMOE_* variable has a bad value; the message names it and the choices
  unsupported = 5,          ///< sound, but this build, device or layer cannot do it
  not_prepared = 6,         ///< no prepared kernel, and one may not be made now (stream capture, JIT=cached_only)
  not_bound = 7,            ///< forward before bind
  no_device = 8,            ///< no CUDA driver, or no such device
  driver_too_old = 9,       ///< a sound cubin needs a newer driver; the message has both versions
  no_compiler = 10,         ///< NVRTC was needed and not found; the message says where it was sought
  compile_failed = 11,      ///< NVRTC refused the source; the message carries the log
  out_of_memory = 12,       ///< host or device memory
  workspace_too_small = 13, ///< ForwardArgs::workspace_bytes < Layer::workspace_bytes(tokens)
  io_error = 14,            ///< a file could not be read or written; the message names it
  device_error = 15,        ///< a CUDA driver call failed; the message has its name and the driver's code
  cancelled = 16,           ///< the caller's cancel request was honoured
  internal = 17,            ///< a bug in varmoe
};

/// The enumerator's name, e.g. "not_prepared"; never null, static storage.
VARMOE_API const char* to_string(ErrorCode code) noexcept;

/// A code and a sentence for people: what was wrong, where, and what would be right.
class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  ErrorCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

 private:
  ErrorCode code_;
  std::string message_;
};

/// Thrown by `Result::value()` alone, for callers who prefer exceptions.
class Exception : public std::runtime_error {
 public:
  explicit Exception(const Error& e)
      : std::runtime_error(std::string(to_string(e.code())) + ": " + e.message()), code_(e.code()) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// A value of type T, or an Error.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  Result(ErrorCode code, std::string message) : Result(Error(code, std::move(message))) {}

  bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  /// Precondition: !ok().
  const Error& error() const& { assert(!ok()); return *std::get_if<1>(&state_); }
  Error&& error() && { assert(!ok()); return std::move(*std::get_if<1>(&state_)); }

  /// Precondition: ok().
  T& operator*() & { assert(ok()); return *std::get_if<0>(&state_); }
  const T& operator*() const& { assert(ok()); return *std::get_if<0>(&state_); }
  T&& operator*() && { assert(ok()); return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { assert(ok()); return std::get_if<0>(&state_); }
  const T* operator->() const { assert(ok()); return std::get_if<0>(&state_); }

  /// The value, or throws Exception.
  T& value() & { if (!ok()) throw Exception(error()); return **this; }
  const T& value() const& { if (!ok()) throw Exception(error()); return **this; }
  T&& value() && { if (!ok()) throw Exception(error()); return std::move(**this); }

 private:
  std::variant<T, Error> state_;
};

/// Success, or an Error. A success holds nothing and allocates nothing.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  Result(ErrorCode code, std::string message) : error_(Error(code, std::move(message))) {}
  bool ok() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }
  const Error& error() const& { assert(!ok()); return *error_; }
  Error&& error() && { assert(!ok()); return std::move(*error_); }
  void value() const { if (!ok()) throw Exception(*error_); }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace varmoe
