#include "tuningdb/csv_text.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.hpp"
#include "tuningdb/limits.hpp"

namespace varmoe::tuningdb {
namespace {

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

Error bad_csv(std::size_t line, std::string_view what) {
  return Error(ErrorCode::invalid_argument, fmt::format("line {}: {}", line, what));
}

/// Cuts a text into rows.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool done() const { return at_ >= text_.size(); }

  /// The next row; a blank line has one empty cell.
  Result<CsvTable::Row> row() {
    CsvTable::Row row;
    row.line = line_;
    for (;;) {
      auto cell = this->cell();
      if (!cell) return std::move(cell).error();
      row.cells.push_back(std::move(*cell));
      if (row.cells.size() > kMaxCsvColumns) {
        return bad_csv(row.line, fmt::format("more than {} cells", kMaxCsvColumns));
      }
      if (done()) return row;
      const char end = text_[at_++];
      if (end == ',') continue;
      if (end == '\r' && !done() && text_[at_] == '\n') ++at_;
      ++line_;
      return row;
    }
  }

 private:
  Result<std::string> cell() {
    if (done() || text_[at_] != '"') {
      const std::size_t end = std::min(text_.find_first_of(",\r\n", at_), text_.size());
      const std::string_view plain = text_.substr(at_, end - at_);
      at_ = end;
      return std::string(plain);
    }
    const std::size_t opened = line_;
    std::string value;
    for (++at_; !done(); ++at_) {
      const char c = text_[at_];
      if (c == '\n') ++line_;
      if (c != '"') {
        value += c;
      } else if (at_ + 1 < text_.size() && text_[at_ + 1] == '"') {
        value += text_[++at_];
      } else {
        ++at_;
        if (!done() && std::string_view(",\r\n").find(text_[at_]) == std::string_view::npos) {
          return bad_csv(line_, "text after a closing quote");
        }
        return value;
      }
    }
    return bad_csv(opened, "a quote that is not closed");
  }

  std::string_view text_;
  std::size_t at_ = 0, line_ = 1;
};

}  // namespace

std::size_t CsvTable::column(std::string_view name) const {
  const auto found = std::find(columns.begin(), columns.end(), name);
  return found == columns.end() ? npos : static_cast<std::size_t>(found - columns.begin());
}

Result<CsvTable> parse_csv(std::string_view text) {
  if (text.size() > kMaxCsvBytes) {
    return Error(ErrorCode::invalid_argument,
                 fmt::format("{} bytes; at most {} are read", text.size(), kMaxCsvBytes));
  }
  if (text.find('\0') != std::string_view::npos) return Error(ErrorCode::invalid_argument, "has a NUL byte");
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  Scanner scanner(text);
  CsvTable table;
  while (!scanner.done()) {
    auto row = scanner.row();
    if (!row) return std::move(row).error();
    if (row->cells.size() == 1 && trim(row->cells[0]).empty()) continue;
    if (table.columns.empty()) {
      for (const std::string& name : row->cells) {
        const std::string_view trimmed = trim(name);
        if (!trimmed.empty() && table.column(trimmed) != CsvTable::npos) {
          return bad_csv(row->line, fmt::format("two columns \"{}\"", printable(trimmed, 64)));
        }
        table.columns.emplace_back(trimmed);
      }
      continue;
    }
    if (table.rows.size() == kMaxCsvRows)
      return bad_csv(row->line, fmt::format("more than {} rows", kMaxCsvRows));
    table.rows.push_back(std::move(*row));
  }
  if (table.columns.empty()) return Error(ErrorCode::invalid_argument, "has no header line");
  return table;
}

std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += c;
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace varmoe::tuningdb
