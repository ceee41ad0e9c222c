#pragma once

#include <fmt/core.h>

#include <memory>
#include <string_view>
#include <utility>

#include "varmoe/engine.hpp"

namespace varmoe {

/// Where messages go: a copyable handle on shared state; copies log to the same place and share what was said
/// once. Thread-safe. Nothing here throws: a sink or callback that does loses its line.
///
/// A message of several lines reaches the sink line by line. Control characters are made visible and very
/// long lines cut, since messages quote text from outside (file contents, environment, compiler logs).
class Log {
 public:
  /// Says nothing.
  Log() noexcept;
  /// Messages of `level` and above go to `callback`; a null callback means stderr.
  Log(LogLevel level, LogCallback callback);

  bool enabled(LogLevel level) const noexcept;

  void write(LogLevel level, std::string_view text) const noexcept;
  /// As write, but only the first time that `key` is seen by this log and its copies. Returns whether it was.
  bool once(std::string_view key, LogLevel level, std::string_view text) const noexcept;

  template <class... A>
  void trace(fmt::format_string<A...> format, A&&... args) const noexcept {
    print(LogLevel::trace, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void debug(fmt::format_string<A...> format, A&&... args) const noexcept {
    print(LogLevel::debug, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void info(fmt::format_string<A...> format, A&&... args) const noexcept {
    print(LogLevel::info, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void warn(fmt::format_string<A...> format, A&&... args) const noexcept {
    print(LogLevel::warn, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void error(fmt::format_string<A...> format, A&&... args) const noexcept {
    print(LogLevel::error, format, fmt::make_format_args(args...));
  }

 private:
  void print(LogLevel level, fmt::string_view format, fmt::format_args args) const noexcept;
  struct State;
  std::shared_ptr<State> state_;
};

/// "trace", "debug", "info", "warn", "error", "off".
const char* to_string(LogLevel level) noexcept;

}  // namespace varmoe
