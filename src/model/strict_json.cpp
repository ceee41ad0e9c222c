#include "model/strict_json.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/text.hpp"

namespace varmoe::model {
namespace {

/// "line 3, column 7" of the byte before `position` (nlohmann counts bytes read).
std::string place(std::string_view text, std::size_t position) {
  position = std::min(position, text.size());
  std::size_t line = 1, column = 0;
  for (std::size_t i = 0; i < position; ++i) {
    ++column;
    if (text[i] == '\n' && i + 1 < position) {
      ++line;
      column = 0;
    }
  }
  return fmt::format("line {}, column {}", line, column);
}

/// Receives nlohmann's parse events and builds a Json. The parser itself does not recurse, so that depth
/// costs nothing before it is refused here.
class Builder {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() { return add(Json()); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(std::int64_t value) { return add(Json(value)); }
  bool number_unsigned(std::uint64_t value) {
    if (value <= static_cast<std::uint64_t>(INT64_MAX)) return add(Json(static_cast<std::int64_t>(value)));
    return add(Json(Json::Real{static_cast<double>(value), std::to_string(value)}));
  }
  bool number_float(double value, const std::string& text) { return add(Json(Json::Real{value, text})); }
  bool string(std::string& value) { return add(Json(std::move(value))); }
  bool binary(nlohmann::json::binary_t&) { return fail("binary value"); }
  bool start_object(std::size_t) { return open(Json(Json::Object{})); }
  bool start_array(std::size_t) { return open(Json(Json::Array{})); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    auto& object = *open_.back().value.as<Json::Object>();
    if (object.find(name) != object.end())
      return fail(fmt::format("duplicate key \"{}\"", printable(name, 64)));
    open_.back().key = std::move(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
    // what() is "[json.exception.parse_error.101] parse error at line 1, column 2: what and why".
    std::string_view what = error.what();
    if (const auto end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
    if (what.substr(0, 11) == "parse error") {
      if (const auto colon = what.find(": "); colon != std::string_view::npos) what.remove_prefix(colon + 2);
    }
    error_ = printable(what, 160);
    error_position_ = position;
    return false;
  }

  Json take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  std::size_t error_position() const { return error_position_; }

 private:
  struct Open {
    Json value;
    std::string key;  ///< of the member being read
  };

  bool fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  bool count() {
    if (++values_ <= limits_.max_values) return true;
    return fail(fmt::format("more than {} values", limits_.max_values));
  }

  bool add(Json value) { return count() && attach(std::move(value)); }

  bool attach(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return true;
    }
    Open& parent = open_.back();
    if (auto* array = parent.value.as<Json::Array>()) {
      array->push_back(std::move(value));
    } else {
      parent.value.as<Json::Object>()->emplace(std::move(parent.key), std::move(value));
    }
    return true;
  }

  bool open(Json value) {
    if (!count()) return false;
    if (open_.size() >= static_cast<std::size_t>(limits_.max_depth)) {
      return fail(fmt::format("nested more than {} deep", limits_.max_depth));
    }
    open_.push_back({std::move(value), {}});
    return true;
  }

  bool close() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return attach(std::move(value));
  }

  const JsonLimits& limits_;
  std::vector<Open> open_;
  Json root_;
  std::size_t values_ = 0;
  std::string error_;
  std::size_t error_position_ = 0;
};

}  // namespace

std::string Json::describe() const {
  if (const auto* value = as<bool>()) return *value ? "true" : "false";
  if (const auto* value = as<std::int64_t>()) return std::to_string(*value);
  if (const auto* value = as<Real>()) return printable(value->text, 40);
  if (const auto* value = as<std::string>()) return fmt::format("\"{}\"", printable(*value, 64));
  if (const auto* value = as<Array>()) return fmt::format("a list of {}", value->size());
  if (as<Object>()) return "an object";
  return "null";
}

Result<Json> parse_strict_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Error(ErrorCode::invalid_argument,
                 fmt::format("{} bytes; at most {} are read", text.size(), limits.max_bytes));
  }
  if (text.substr(0, 3) == "\xEF\xBB\xBF") {
    return Error(ErrorCode::invalid_argument,
                 "begins with a byte order mark; JSON is plain UTF-8 without one");
  }
  // nlohmann takes a NUL for the end of the text and would not look at what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    return Error(ErrorCode::invalid_argument, fmt::format("not JSON: {}: a NUL byte", place(text, nul + 1)));
  }
  Builder builder(limits);
  bool parsed = false;
  try {
    parsed = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const std::exception& error) {
    return Error(ErrorCode::invalid_argument, fmt::format("not JSON: {}", printable(error.what(), 160)));
  }
  if (parsed) return builder.take();
  if (builder.error_position() != 0) {
    return Error(ErrorCode::invalid_argument,
                 fmt::format("not JSON: {}: {}", place(text, builder.error_position()), builder.error()));
  }
  return Error(ErrorCode::invalid_argument, fmt::format("refused: {}", builder.error()));
}

Result<std::string> read_input_file(const std::string& path, std::size_t max_bytes) {
  const auto failed = [&path](std::string_view what) {
    return Error(ErrorCode::io_error, fmt::format("{}: {}", printable(path), what));
  };
  if (path.find('\0') != std::string::npos) return failed("a path has no NUL in it");
  // O_NONBLOCK: opening a FIFO without a writer must not wait for one.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return failed(fmt::format("cannot be opened: {}", std::strerror(errno)));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info {};
  if (::fstat(fd, &info) != 0) return failed(fmt::format("fstat failed: {}", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) return failed("is a folder; name a file in it");
  if (!S_ISREG(info.st_mode)) return failed("is no regular file");
  if (static_cast<std::uint64_t>(info.st_size) > max_bytes) {
    return failed(fmt::format("{} bytes; at most {} are read", info.st_size, max_bytes));
  }
  std::string text;
  // One byte more than allowed tells a file that grew meanwhile.
  char buffer[1 << 16];
  while (text.size() <= max_bytes) {
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(fmt::format("cannot be read: {}", std::strerror(errno)));
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
  }
  return failed(fmt::format("grew while being read; at most {} bytes are read", max_bytes));
}

}  // namespace varmoe::model
