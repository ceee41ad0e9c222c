#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/log.hpp"

namespace varmoe::test {

/// A log whose lines a test can look at.
class CaptureLog {
 public:
  struct Line {
    LogLevel level;
    std::string text;
  };

  explicit CaptureLog(LogLevel level = LogLevel::trace)
      : state_(std::make_shared<State>()), log_(level, [state = state_](LogLevel l, std::string_view text) {
          const std::lock_guard lock(state->mutex);
          state->lines.push_back({l, std::string(text)});
        }) {}

  const Log& log() const { return log_; }
  operator const Log&() const { return log_; }

  std::vector<Line> lines() const {
    const std::lock_guard lock(state_->mutex);
    return state_->lines;
  }
  std::size_t count(LogLevel level) const {
    const std::vector<Line> all = lines();
    return static_cast<std::size_t>(
        std::count_if(all.begin(), all.end(), [&](const Line& line) { return line.level == level; }));
  }
  bool contains(const std::string& text) const {
    const std::vector<Line> all = lines();
    return std::any_of(all.begin(), all.end(),
                       [&](const Line& line) { return line.text.find(text) != std::string::npos; });
  }

 private:
  struct State {
    std::mutex mutex;
    std::vector<Line> lines;
  };
  std::shared_ptr<State> state_;
  Log log_;
};

}  // namespace varmoe::test
