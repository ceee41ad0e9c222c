#include "tools/common/output.hpp"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "tools/common/exit_status.hpp"

namespace varmoe::tools {
namespace {

/// Length of the sound UTF-8 sequence at the beginning of `s`, or 0.
std::size_t utf8_length(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = byte(0);
  std::size_t length = 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF)
    length = 2;
  else if (lead >= 0xE0 && lead <= 0xEF)
    length = 3;
  else if (lead >= 0xF0 && lead <= 0xF4)
    length = 4;
  if (length == 0 || s.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) > 0x9F;
  const bool too_large = lead == 0xF4 && byte(1) > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

int exit_status(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::ok:
      return kDone;
    case ErrorCode::invalid_argument:
    case ErrorCode::invalid_spec:
    case ErrorCode::invalid_config:
    case ErrorCode::unsupported:
      return kUsage;
    case ErrorCode::invalid_environment:
    case ErrorCode::no_device:
    case ErrorCode::driver_too_old:
    case ErrorCode::no_compiler:
    case ErrorCode::out_of_memory:
    case ErrorCode::io_error:
      return kEnvironment;
    case ErrorCode::not_prepared:
    case ErrorCode::not_bound:
    case ErrorCode::compile_failed:
    case ErrorCode::workspace_too_small:
    case ErrorCode::device_error:
    case ErrorCode::cancelled:
    case ErrorCode::internal:
      return kSomeFailed;
  }
  return kSomeFailed;
}

std::string Json::quoted(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto c = static_cast<unsigned char>(text[0]);
    if (length == 0) {
      out += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += text[0];
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7F) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out + '"';
}

Json& Json::add(std::string_view name, std::string_view value) {
  return raw(name, quoted(value));
}
Json& Json::add(std::string_view name, double value) {
  return raw(name, std::isfinite(value) ? fmt::format("{:.6g}", value) : "null");
}
Json& Json::add(std::string_view name, bool value) {
  return raw(name, value ? "true" : "false");
}

Json& Json::raw(std::string_view name, std::string_view json) {
  if (!fields_.empty()) fields_ += ',';
  fields_ += quoted(name);
  fields_ += ':';
  fields_ += json;
  return *this;
}

void Output::say(std::string_view line) const {
  if (json_) return;
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

void Output::event(std::string_view event, const Json& fields) const {
  if (!json_) return;
  const std::string rest = fields.text();
  fmt::print("{{\"event\":{}{}{}\n", Json::quoted(event), rest == "{}" ? "" : ",",
             std::string_view(rest).substr(1));
  std::fflush(stdout);
}

int Output::fail(const Error& error) const {
  fmt::print(stderr, "error: {}\n", error.message());
  event("error", Json().add("code", to_string(error.code())).add("message", error.message()));
  return exit_status(error.code());
}

std::string Table::text() const {
  std::vector<std::size_t> width;
  // Cells hold ASCII but for "µ" and "×": code points are counted, not bytes.
  const auto columns = [](const std::string& s) {
    return static_cast<std::size_t>(
        std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  };
  for (const auto& row : rows_) {
    width.resize(std::max(width.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], columns(row[i]));
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(width[i] - columns(row[i]) + 2, ' ');
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    if (!out.empty()) out += '\n';
    out += line;
  }
  return out;
}

Progress::Progress(std::string what, bool wanted)
    : what_(std::move(what)),
      shown_(wanted && isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  erase();
}

void Progress::erase() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

void Progress::update(std::size_t done, std::size_t total, std::string_view note) {
  if (!shown_ || total == 0) return;
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const auto filled = done * 24 / total;
  std::string left;
  if (done > 0 && done < total) {
    const double seconds = elapsed / static_cast<double>(done) * static_cast<double>(total - done);
    left = seconds < 600 ? fmt::format(", {:.0f} s left", seconds)
                         : fmt::format(", {:.0f} min left", seconds / 60);
  }
  // A line longer than the terminal could not be erased.
  winsize size{};
  const std::size_t columns =
      ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col - 1u : 100;
  std::string line =
      fmt::format("{} [{}{}] {}/{}{}{}{}", what_, std::string(filled, '#'), std::string(24 - filled, '.'),
                  done, total, left, note.empty() ? "" : "; ", note);
  if (line.size() > columns) line.resize(columns);
  fmt::print(stderr, "\r\033[K{}", line);
  std::fflush(stderr);
}

std::string widths_text(const std::vector<std::int64_t>& widths) {
  std::map<std::int64_t, std::int64_t> count;
  for (const std::int64_t w : widths) ++count[w];
  std::vector<std::string> parts;
  for (auto it = count.rbegin(); it != count.rend(); ++it)
    parts.push_back(fmt::format("{} x {}", it->second, it->first));
  if (parts.size() > 6) {
    parts.resize(5);
    parts.push_back(fmt::format("… ({} widths)", count.size()));
  }
  return join(parts);
}

std::string shared_text(const LayerSpec& spec) {
  if (spec.shared_widths.empty()) return {};
  return fmt::format(", shared: {}{}", widths_text(spec.shared_widths),
                     spec.shared_gate ? " with a gate" : "");
}

std::string join(const std::vector<std::int64_t>& values, std::string_view separator) {
  std::string out;
  for (const std::int64_t v : values) {
    if (!out.empty()) out += separator;
    out += std::to_string(v);
  }
  return out;
}

std::string join(const std::vector<std::string>& values, std::string_view separator) {
  std::string out;
  for (const std::string& v : values) {
    if (!out.empty()) out += separator;
    out += v;
  }
  return out;
}

}  // namespace varmoe::tools
