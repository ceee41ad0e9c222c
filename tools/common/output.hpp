#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// What the programs print: tables for people, or one JSON object a line; progress on a terminal.
namespace varmoe::tools {

/// One JSON object, built field by field. Text is escaped; bytes that are no UTF-8 become U+FFFD.
class Json {
 public:
  Json& add(std::string_view name, std::string_view value);
  Json& add(std::string_view name, const char* value) { return add(name, std::string_view(value)); }
  Json& add(std::string_view name, const std::string& value) { return add(name, std::string_view(value)); }
  /// Not finite: null.
  Json& add(std::string_view name, double value);
  Json& add(std::string_view name, bool value);
  template <class T>
  requires std::is_integral_v<T> Json& add(std::string_view name, T value) {
    return raw(name, std::to_string(value));
  }
  template <class T>
  Json& add(std::string_view name, const std::vector<T>& values) {
    std::string text = "[";
    for (const auto& value : values) {
      if (text.size() > 1) text += ',';
      if constexpr (std::is_integral_v<T>) {
        text += std::to_string(value);
      } else {
        text += quoted(value);
      }
    }
    return raw(name, text + "]");
  }
  /// A value that is JSON already.
  Json& raw(std::string_view name, std::string_view json);
  std::string text() const { return "{" + fields_ + "}"; }

  static std::string quoted(std::string_view text);

 private:
  std::string fields_;
};

/// Where a program's results go.
class Output {
 public:
  /// json: one object a line on stdout and nothing else there.
  explicit Output(bool json) : json_(json) {}
  bool json() const noexcept { return json_; }

  /// A line for people; nothing with --json.
  void say(std::string_view line) const;
  /// A JSON line; nothing without --json. `event` is its first field.
  void event(std::string_view event, const Json& fields) const;
  /// A failure: a sentence on stderr, and with --json an "error" line as well. Returns the exit status that
  /// fits.
  int fail(const Error& error) const;

 private:
  bool json_;
};

/// Columns for people, as wide as their widest cell; the last one is not padded.
class Table {
 public:
  explicit Table(std::vector<std::string> titles) { rows_.push_back(std::move(titles)); }
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool empty() const noexcept { return rows_.size() < 2; }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// A progress line on stderr with the time left; shown on a terminal alone, and erased at the end. Not
/// thread-safe.
class Progress {
 public:
  Progress(std::string what, bool wanted);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `note`: what is under way, behind the bar.
  void update(std::size_t done, std::size_t total, std::string_view note = {});
  /// Makes room for a line of output; the next update shows it again.
  void erase();

 private:
  std::string what_;
  bool shown_;
  std::chrono::steady_clock::time_point start_;
};

/// "768" or "16 x 512, 32 x 256": how many experts have which width.
std::string widths_text(const std::vector<std::int64_t>& widths);
/// ", 1 shared (1024, with a gate)"; empty for a layer without shared experts.
std::string shared_text(const LayerSpec& spec);
std::string join(const std::vector<std::int64_t>& values, std::string_view separator = ",");
std::string join(const std::vector<std::string>& values, std::string_view separator = ", ");

}  // namespace varmoe::tools
