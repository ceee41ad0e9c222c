#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <string>

#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"

/// Whether an up-projection alone (Layer::up) gave what the oracle computes.
namespace oracle {

/// What a Layer::up left behind, host memory. Everything held poison before: kPoison in h, −7 in the others.
struct UpResult {
  std::span<const std::uint16_t> h;
  std::int64_t h_stride = 0;
  std::span<const std::int32_t> expert_offsets, slot_row;
};
inline constexpr std::int32_t kUntouched = -7;

/// What is wrong with it; empty: nothing. `live` tokens of the case exist; h of every `step`-th of them is
/// compared.
inline std::string up_problem(const RandomCase& c, const UpResult& up, std::int64_t live,
                              std::int64_t step = 1) {
  const auto fail = [](const auto&... parts) {
    std::ostringstream s;
    (s << ... << parts);
    return s.str();
  };
  const OracleLayer layer = c.oracle_layer();
  const OracleCall call = c.oracle_call();
  const std::int64_t k = layer.top_k, slots = k + static_cast<std::int64_t>(layer.shared.size());
  const auto routed = static_cast<std::int64_t>(layer.experts.size());
  const std::int64_t experts = routed + slots - k;
  const auto expert_of = [&](std::int64_t t, std::int64_t j) -> std::int64_t {
    if (j >= k) return routed + j - k;
    const std::int64_t id = call.ids[t * k + j];
    return id >= 0 && id < routed ? id : -1;
  };
  // Rows in expert order, within an expert by ascending slot.
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(experts + 1), 0);
  for (std::int64_t i = 0; i < live * slots; ++i) {
    const std::int64_t e = expert_of(i / slots, i % slots);
    if (e >= 0) ++offsets[static_cast<std::size_t>(e + 1)];
  }
  for (std::size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  for (std::size_t e = 0; e < offsets.size(); ++e)
    if (up.expert_offsets[e] != offsets[e])
      return fail("expert_offsets[", e, "] is ", up.expert_offsets[e], ", not ", offsets[e]);
  std::vector<std::int32_t> next = offsets;
  std::vector<std::int64_t> width_of_row(static_cast<std::size_t>(offsets.back()), 0);
  for (std::size_t i = 0; i < up.slot_row.size(); ++i) {
    const std::int64_t t = static_cast<std::int64_t>(i) / slots, j = static_cast<std::int64_t>(i) % slots;
    const std::int64_t e = t < live ? expert_of(t, j) : -1;
    const std::int32_t row = t >= live ? kUntouched : e < 0 ? -1 : next[static_cast<std::size_t>(e)]++;
    if (up.slot_row[i] != row) return fail("slot_row[", i, "] is ", up.slot_row[i], ", not ", row);
    if (row < 0) continue;
    width_of_row[static_cast<std::size_t>(row)] = c.spec.width_of(e);
    if (t % step != 0) continue;
    const std::vector<double> h = oracle_h(layer, call, t, j);
    const std::int64_t at[] = {0};
    // One element rounded the other way may be most of a narrow row.
    Bars bars = bars_of(c.spec.dtype);
    bars.frobenius = bars.row;
    const auto compared = compare_rows(c.spec.dtype, h, up.h.data() + row * up.h_stride, up.h_stride,
                                       static_cast<std::int64_t>(h.size()), at, bars);
    if (!compared.pass) return fail("token ", t, " slot ", j, ": ", compared.text());
  }
  // Beyond a row's width in whole 64s, and beyond the last row, nothing is written.
  for (std::size_t i = 0; i < up.h.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / up.h_stride,
               column = static_cast<std::int64_t>(i) % up.h_stride;
    const std::int64_t written =
        row < offsets.back() ? (width_of_row[static_cast<std::size_t>(row)] + 63) / 64 * 64 : 0;
    if (column >= written && up.h[i] != kPoison) return fail("h[", row, ", ", column, "] was written");
  }
  return {};
}

}  // namespace oracle
