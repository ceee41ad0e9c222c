#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <sstream>
#include <string>

#include "oracle/half_types.hpp"
#include "varmoe/layer_spec.hpp"

/// How far an output may lie from the oracle's.
namespace oracle {

/// The bars for bf16; fp16 has a quarter of each.
struct Bars {
  double frobenius = 5e-3;         ///< ‖out − ref‖ / ‖ref‖ over all rows
  double row = 1e-2;               ///< the same of each row
  double element_relative = 1e-2;  ///< |out − ref| ≤ element_relative·|ref| + element_rms·rms(ref row)
  double element_rms = 3e-2;
};
inline Bars bars_of(varmoe::DType dtype) {
  Bars b;
  if (dtype == varmoe::DType::fp16)
    b = {b.frobenius / 4, b.row / 4, b.element_relative / 4, b.element_rms / 4};
  return b;
}

struct Comparison {
  bool pass = true;
  double frobenius = 0;      ///< relative
  double worst_row = 0;      ///< relative
  double worst_element = 0;  ///< share of its bar: above 1 fails
  std::int64_t worst_row_at = -1, worst_element_row = -1, worst_element_column = -1;
  std::int64_t compared_rows = 0;
  std::string failure;  ///< the first reason, empty when it passes
  std::string text() const {
    std::ostringstream s;
    s << (pass ? "pass" : "FAIL: " + failure + ";") << " frobenius " << frobenius << ", worst row "
      << worst_row << " (row " << worst_row_at << "), worst element " << worst_element << " of its bar (row "
      << worst_element_row << ", column " << worst_element_column << "), " << compared_rows << " rows";
    return s.str();
  }
};

/// Compares row tokens[n] of `out` (16-bit, stride in elements) with row n of `reference` for every n.
/// Anything not finite in either fails, so poison never passes. A reference row that is all zero must be
/// exactly zero.
inline Comparison compare_rows(varmoe::DType dtype, std::span<const double> reference,
                               const std::uint16_t* out, std::int64_t out_stride, std::int64_t hidden_size,
                               std::span<const std::int64_t> tokens, const Bars& bars) {
  Comparison c;
  const auto fail = [&](const auto&... parts) {
    c.pass = false;
    if (!c.failure.empty()) return;
    std::ostringstream s;
    (s << ... << parts);
    c.failure = s.str();
  };
  if (reference.size() != tokens.size() * static_cast<std::size_t>(hidden_size)) {
    fail("the reference has ", reference.size(), " numbers, not rows × hidden size");
    return c;
  }
  double total_error = 0, total_reference = 0;
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    const double* ref = reference.data() + n * static_cast<std::size_t>(hidden_size);
    const std::uint16_t* row = out + tokens[n] * out_stride;
    double error2 = 0, ref2 = 0;
    bool finite = true;
    for (std::int64_t i = 0; i < hidden_size; ++i) {
      const double value = decode(dtype, row[i]);
      if (!std::isfinite(value) || !std::isfinite(ref[i])) {
        fail("row ", tokens[n], " column ", i, " is ", value, ", the reference is ", ref[i]);
        finite = false;
        break;
      }
      error2 += (value - ref[i]) * (value - ref[i]);
      ref2 += ref[i] * ref[i];
    }
    ++c.compared_rows;
    if (!finite) continue;
    total_error += error2;
    total_reference += ref2;
    if (ref2 == 0) {
      if (error2 != 0) fail("row ", tokens[n], " is not exactly zero");
      continue;
    }
    const double relative = std::sqrt(error2 / ref2);
    if (c.worst_row_at < 0 || relative > c.worst_row) c.worst_row = relative, c.worst_row_at = tokens[n];
    if (!(relative <= bars.row)) fail("row ", tokens[n], " is off by ", relative, ", the bar is ", bars.row);
    const double rms = std::sqrt(ref2 / static_cast<double>(hidden_size));
    for (std::int64_t i = 0; i < hidden_size; ++i) {
      const double value = decode(dtype, row[i]);
      const double share =
          std::fabs(value - ref[i]) / (bars.element_relative * std::fabs(ref[i]) + bars.element_rms * rms);
      if (c.worst_element_row < 0 || share > c.worst_element) {
        c.worst_element = share, c.worst_element_row = tokens[n], c.worst_element_column = i;
      }
      if (!(share <= 1)) fail("row ", tokens[n], " column ", i, " is ", value, ", the reference is ", ref[i]);
    }
  }
  if (total_reference > 0) c.frobenius = std::sqrt(total_error / total_reference);
  if (!(c.frobenius <= bars.frobenius))
    fail("relative Frobenius error ", c.frobenius, ", the bar is ", bars.frobenius);
  return c;
}

inline Comparison compare_rows(varmoe::DType dtype, std::span<const double> reference,
                               const std::uint16_t* out, std::int64_t out_stride, std::int64_t hidden_size,
                               std::span<const std::int64_t> tokens) {
  return compare_rows(dtype, reference, out, out_stride, hidden_size, tokens, bars_of(dtype));
}

}  // namespace oracle
