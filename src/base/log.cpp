#include "base/log.hpp"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <mutex>
#include <set>
#include <string>

#include "base/text.hpp"

namespace varmoe {
namespace {

constexpr std::size_t kMaxLineBytes = 4096;
/// Bounds what `once` remembers: keys may be made of text from outside. Beyond, messages are dropped rather
/// than repeated.
constexpr std::size_t kMaxOnceKeys = 4096;

spdlog::level::level_enum spdlog_level(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::trace:
      return spdlog::level::trace;
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      break;
  }
  return spdlog::level::off;
}

/// A logger of our own, outside spdlog's registry: the host may use spdlog too.
LogCallback stderr_callback() {
  auto logger =
      std::make_shared<spdlog::logger>("varmoe", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("[%H:%M:%S.%e] [varmoe] [%^%l%$] %v");
  logger->set_level(spdlog::level::trace);
  logger->set_error_handler([](const std::string&) {});  // a closed stderr is no reason to write to stderr
  return [logger](LogLevel level, std::string_view line) {
    logger->log(spdlog_level(level), spdlog::string_view_t(line.data(), line.size()));
    logger->flush();
  };
}

/// Printable, but with backslashes as they are: a line for people, not a quotation.
std::string clean_line(std::string_view line) {
  std::string out;
  for (const std::string_view part : split(line, '\\')) {
    if (part.data() != line.data()) out.push_back('\\');
    out += printable(part, kMaxLineBytes);
  }
  return out;
}

}  // namespace

struct Log::State {
  LogLevel level;
  LogCallback callback;
  std::mutex mutex;  // guards `said`; never held while the callback runs, which may log itself
  std::set<std::string, std::less<>> said;
};

Log::Log() noexcept = default;

Log::Log(LogLevel level, LogCallback callback) : state_(std::make_shared<State>()) {
  state_->level = level;
  state_->callback = callback ? std::move(callback) : stderr_callback();
}

bool Log::enabled(LogLevel level) const noexcept {
  return state_ && level != LogLevel::off && level >= state_->level;
}

void Log::write(LogLevel level, std::string_view text) const noexcept {
  if (!enabled(level)) return;
  try {
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
    for (std::string_view line : split(text, '\n')) {
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (line.size() > kMaxLineBytes) {
        state_->callback(
            level, fmt::format("{}… ({} bytes)", clean_line(line.substr(0, kMaxLineBytes)), line.size()));
      } else {
        state_->callback(level, clean_line(line));
      }
    }
  } catch (...) {
    // Logging must not fail what it reports on.
  }
}

bool Log::once(std::string_view key, LogLevel level, std::string_view text) const noexcept {
  if (!state_) return false;
  try {
    const std::lock_guard lock(state_->mutex);
    if (state_->said.size() >= kMaxOnceKeys || !state_->said.emplace(key).second) return false;
  } catch (...) {
    return false;
  }
  write(level, text);
  return true;
}

void Log::print(LogLevel level, fmt::string_view format, fmt::format_args args) const noexcept {
  if (!enabled(level)) return;
  try {
    write(level, fmt::vformat(format, args));
  } catch (...) {
    // As in write.
  }
}

const char* to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::trace:
      return "trace";
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warn:
      return "warn";
    case LogLevel::error:
      return "error";
    case LogLevel::off:
      return "off";
  }
  return "unknown";
}

}  // namespace varmoe
