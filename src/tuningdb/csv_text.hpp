#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"

/// Comma-separated values as RFC 4180 has them: cells in quotes may hold commas, quotes (doubled) and line
/// ends.
namespace varmoe::tuningdb {

struct CsvTable {
  struct Row {
    std::size_t line = 0;  ///< where it begins in the text, from 1
    std::vector<std::string> cells;
  };
  std::vector<std::string> columns;  ///< the first row, without blanks around the names
  std::vector<Row> rows;  ///< all others, but empty lines; a row may have more or fewer cells than columns

  static constexpr std::size_t npos = static_cast<std::size_t>(-1);
  /// Index of a column, or npos.
  std::size_t column(std::string_view name) const;
};

/// Within the limits of limits.hpp. invalid_argument naming the line: an open quote, text after a closing
/// one, a NUL, two columns of one name, too much of anything. A byte order mark is passed over.
Result<CsvTable> parse_csv(std::string_view text);

/// A cell's text, in quotes where it needs them.
std::string csv_cell(std::string_view text);

}  // namespace varmoe::tuningdb
