#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace varmoe::tuner {

/// Cuts a stream of bytes into lines.
class LineBuffer {
 public:
  /// `most`: bytes of the longest line that is taken.
  explicit LineBuffer(std::size_t most) : most_(most) {}

  void add(std::string_view bytes) { bytes_ += bytes; }
  /// The next whole line without its newline.
  std::optional<std::string> next() {
    const std::size_t end = bytes_.find('\n', searched_);
    if (end == std::string::npos) {
      searched_ = bytes_.size();
      return std::nullopt;
    }
    std::string line = bytes_.substr(0, end);
    bytes_.erase(0, end + 1);
    searched_ = 0;
    return line;
  }
  /// Whether what has come without a newline is more than a line may have.
  bool overlong() const noexcept { return bytes_.size() > most_ && searched_ > most_; }
  /// Bytes that are no whole line yet. After next() gave nothing.
  std::string_view rest() const noexcept { return bytes_; }

 private:
  std::size_t most_, searched_ = 0;
  std::string bytes_;
};

}  // namespace varmoe::tuner
