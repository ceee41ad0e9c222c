#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"
#include "varmoe/blocks.hpp"

/// The building blocks, one after another, on a random case's rows in any layout: what each must leave.
namespace oracle {

/// A batch of a case's routed rows, and the arrays that say where they lie.
struct BlocksCase {
  const RandomCase* source = nullptr;
  varmoe::RowLayout layout = varmoe::RowLayout::offsets;
  std::int64_t multiple = 1, rows = 0;
  bool index_64 = false;
  std::vector<std::int64_t> begin, count;  ///< of each expert, shared ones too
  std::vector<std::int32_t> row_map;       ///< [rows] token·k + slot; padding: a sentinel
  std::vector<std::int64_t> row_expert;    ///< [rows]; padding: −1
  std::vector<std::int64_t> offsets;       ///< [E + 1] or empty
  std::vector<std::int64_t> counts;        ///< [E] or empty
  std::vector<std::int32_t> expert_ids, post_pad;

  const varmoe::LayerSpec& spec() const { return source->spec; }
  std::int64_t tokens() const { return source->options.tokens; }
  std::int64_t slots() const { return spec().slots_per_token(); }
  std::int64_t expert_of(std::int64_t slot) const {
    const std::int64_t t = slot / slots(), j = slot % slots();
    if (j >= spec().top_k) return spec().num_experts() + j - spec().top_k;
    const std::int64_t id = source->ids64[static_cast<std::size_t>(t * spec().top_k + j)];
    return id >= 0 && id < spec().num_experts() ? id : -1;
  }
  float weight_of(std::int64_t slot) const {
    const std::int64_t t = slot / slots(), j = slot % slots();
    return j < spec().top_k ? source->topk_weights[static_cast<std::size_t>(t * spec().top_k + j)]
                            : shared_weight(t);
  }
  /// sigmoid(x · w_g), or 1.
  float shared_weight(std::int64_t t) const {
    const OracleLayer layer = source->oracle_layer();
    if (layer.shared_gate == nullptr) return 1.0f;
    double sum = 0;
    for (std::int64_t i = 0; i < layer.hidden_size; ++i)
      sum += decode(layer.dtype, source->x[t * source->x_stride + i]) *
             decode(layer.dtype, layer.shared_gate[i]);
    return static_cast<float>(1 / (1 + std::exp(-sum)));
  }
};

/// `multiple`: what each expert's first row is a multiple of (offsets: with counts then; batched: ignored);
/// rows come in ascending slot within an expert, and unused rows follow the last.
inline BlocksCase make_blocks_case(const RandomCase& c, varmoe::RowLayout layout, std::int64_t multiple,
                                   bool index_64) {
  using varmoe::RowLayout;
  BlocksCase b;
  b.source = &c;
  b.layout = layout;
  b.index_64 = index_64;
  const std::int64_t experts = c.spec.all_experts(), slots = c.options.tokens * b.slots();
  std::vector<std::vector<std::int32_t>> of(static_cast<std::size_t>(experts));
  for (std::int64_t s = 0; s < slots; ++s)
    if (const std::int64_t e = b.expert_of(s); e >= 0)
      of[static_cast<std::size_t>(e)].push_back(static_cast<std::int32_t>(s));
  std::int64_t most = 0;
  for (const auto& rows : of) most = std::max(most, static_cast<std::int64_t>(rows.size()));
  const std::int64_t capacity = most + 3;
  std::int64_t next = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const auto n = static_cast<std::int64_t>(of[static_cast<std::size_t>(e)].size());
    b.begin.push_back(layout == RowLayout::batched ? e * capacity : next);
    b.count.push_back(n);
    next += (n + multiple - 1) / multiple * multiple;
  }
  const std::int64_t used = layout == RowLayout::batched ? experts * capacity : next;
  b.multiple = layout == RowLayout::batched ? capacity : layout == RowLayout::offsets ? 1 : multiple;
  b.rows = layout == RowLayout::batched ? used : used + 2 * multiple + (multiple == 1 ? 5 : 0);
  const std::int32_t sentinel = layout == RowLayout::aligned_blocks ? static_cast<std::int32_t>(slots) : -1;
  b.row_map.assign(static_cast<std::size_t>(b.rows), sentinel);
  b.row_expert.assign(static_cast<std::size_t>(b.rows), -1);
  for (std::int64_t e = 0; e < experts; ++e) {
    const auto& rows = of[static_cast<std::size_t>(e)];
    const auto first = static_cast<std::ptrdiff_t>(b.begin[static_cast<std::size_t>(e)]);
    std::copy(rows.begin(), rows.end(), b.row_map.begin() + first);
    std::fill_n(b.row_expert.begin() + first, rows.size(), e);
  }
  if (layout == RowLayout::offsets) {
    b.offsets = b.begin;
    b.offsets.push_back(next);
    if (multiple > 1) b.counts = b.count;
  } else if (layout != RowLayout::aligned_blocks) {
    b.counts = b.count;
  } else {
    for (std::int64_t r = 0; r < b.rows; r += multiple)
      b.expert_ids.push_back(r < used ? static_cast<std::int32_t>(b.row_expert[static_cast<std::size_t>(r)])
                                      : -1);
    b.post_pad = {static_cast<std::int32_t>(used)};
  }
  return b;
}

/// The arrays that say where a case's rows lie, put where blocks compute.
template <class Memory>
varmoe::RowsByExpert put_rows(const BlocksCase& b, Memory& memory) {
  const auto indices = [&](const std::vector<std::int64_t>& v) -> const void* {
    if (v.empty()) return nullptr;
    if (b.index_64) return memory.put(v);
    return memory.put(std::vector<std::int32_t>(v.begin(), v.end()));
  };
  varmoe::RowsByExpert by_expert;
  by_expert.layout = b.layout;
  by_expert.rows = b.rows;
  by_expert.expert_offsets = indices(b.offsets);
  by_expert.expert_counts = indices(b.counts);
  by_expert.index_type = b.index_64 ? varmoe::IdType::int64 : varmoe::IdType::int32;
  by_expert.multiple = b.multiple;
  if (b.layout == varmoe::RowLayout::aligned_blocks) {
    by_expert.sorted_token_ids = memory.put(b.row_map);
    by_expert.expert_ids = memory.put(b.expert_ids);
    by_expert.num_tokens_post_pad = memory.put(b.post_pad);
    by_expert.routed_rows = b.tokens() * b.slots();
  }
  return by_expert;
}

struct BlocksOutput {
  std::int64_t h_stride = 0;
  std::vector<std::uint16_t> x, h, y, out,
      dy;  ///< gathered rows, h, y; out [T, H]; dy of dout = the case's x
  std::vector<std::int32_t> slot_row;
  std::vector<float> dtopk, dshared;  ///< [T, k]; [T, S]
  bool operator==(const BlocksOutput&) const = default;
};

/// Runs all blocks on poisoned memory. `Memory`: put(vector) → an address where the blocks compute,
/// get<T>(address, count) → vector, stream(), synchronize(). Throws std::runtime_error on a refusal.
template <class Memory>
BlocksOutput run_blocks(varmoe::Blocks& blocks, const BlocksCase& b, Memory& memory,
                        std::uint8_t workspace_fill) {
  const auto must = [](const varmoe::Status& status, const char* what) {
    if (!status) throw std::runtime_error(std::string(what) + ": " + status.error().message());
  };
  const varmoe::LayerSpec& spec = b.spec();
  const auto rows = static_cast<std::size_t>(b.rows), hidden = static_cast<std::size_t>(spec.hidden_size);
  const std::int64_t h_stride = (spec.widest_of_all() + 63) / 64 * 64 + 8;
  const auto poison = [](std::size_t n) { return std::vector<std::uint16_t>(n, kPoison); };
  const varmoe::RowsByExpert by_expert = put_rows(b, memory);
  const std::int32_t* row_map =
      by_expert.sorted_token_ids != nullptr ? by_expert.sorted_token_ids : memory.put(b.row_map);
  const RandomCase& c = *b.source;
  const std::vector<std::uint16_t> x(c.x.data(), c.x.data() + c.x.size());

  varmoe::GatherArgs gather;
  gather.tokens = b.tokens();
  gather.x = memory.put(x);
  gather.x_stride = c.x_stride;
  gather.rows = b.rows;
  gather.row_map = row_map;
  std::uint16_t* const x_rows = memory.put(poison(rows * hidden));
  gather.out = x_rows;
  gather.stream = memory.stream();
  must(blocks.gather(gather), "gather");

  std::vector<float> row_weights(rows, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> shared_weights;
  for (std::size_t r = 0; r < rows; ++r) {
    if (b.row_expert[r] < 0) continue;
    const bool routed = b.row_map[r] % b.slots() < spec.top_k;
    row_weights[r] = spec.weight_on_input && !routed ? 1.0f : b.weight_of(b.row_map[r]);
  }
  for (std::int64_t t = 0; t < b.tokens(); ++t) shared_weights.push_back(b.shared_weight(t));
  const float* device_weights = memory.put(row_weights);
  const auto bytes = blocks.workspace_bytes(b.rows);
  if (!bytes) throw std::runtime_error(bytes.error().message());
  std::uint8_t* const workspace = memory.put(std::vector<std::uint8_t>(*bytes, workspace_fill));

  varmoe::GroupedUpArgs up;
  up.by_expert = by_expert;
  up.x = x_rows;
  up.row_weights = spec.weight_on_input ? device_weights : nullptr;
  std::uint16_t* const h = memory.put(poison(rows * static_cast<std::size_t>(h_stride)));
  up.h = h;
  up.h_stride = h_stride;
  up.workspace = workspace;
  up.workspace_bytes = *bytes;
  up.stream = memory.stream();
  must(blocks.up(up), "up");

  varmoe::GroupedDownArgs down;
  down.by_expert = by_expert;
  down.h = h;
  down.h_stride = h_stride;
  const bool weighted = blocks.options().weighted_down;
  down.row_weights = weighted ? device_weights : nullptr;
  std::uint16_t* const y = memory.put(poison(rows * hidden));
  down.y = y;
  down.workspace = workspace;
  down.workspace_bytes = *bytes;
  down.stream = memory.stream();
  must(blocks.down(down), "down");

  varmoe::SlotRowsArgs slot_rows;
  slot_rows.tokens = b.tokens();
  slot_rows.rows = b.rows;
  slot_rows.row_map = row_map;
  const std::size_t slots = static_cast<std::size_t>(b.tokens() * b.slots());
  std::int32_t* const slot_row = memory.put(std::vector<std::int32_t>(slots, -7));
  slot_rows.slot_row = slot_row;
  slot_rows.stream = memory.stream();
  must(blocks.slot_rows(slot_rows), "slot_rows");

  varmoe::CombineArgs combine;
  combine.tokens = b.tokens();
  combine.rows = b.rows;
  combine.y = y;
  combine.slot_row = slot_row;
  const bool weighs = !weighted && !spec.weight_on_input;
  if (weighs) combine.topk_weights = memory.put(c.topk_weights);
  if (spec.shared_gate && !weighted) combine.shared_weights = memory.put(shared_weights);
  std::uint16_t* const out = memory.put(poison(static_cast<std::size_t>(b.tokens()) * hidden));
  combine.out = out;
  combine.stream = memory.stream();
  must(blocks.combine(combine), "combine");

  varmoe::CombineBackwardArgs backward;
  backward.tokens = b.tokens();
  backward.rows = b.rows;
  backward.dout = gather.x;
  backward.dout_stride = c.x_stride;
  backward.slot_row = slot_row;
  backward.topk_weights = combine.topk_weights;
  backward.shared_weights = combine.shared_weights;
  backward.y = y;
  std::uint16_t* const dy = memory.put(poison(rows * hidden));
  backward.dy = dy;
  const float unwritten = -77.0f;
  float* const dtopk = memory.put(std::vector<float>(c.topk_weights.size(), unwritten));
  backward.dtopk_weights = dtopk;
  const auto shared_slots = static_cast<std::size_t>(b.tokens() * spec.num_shared());
  float* const dshared = memory.put(std::vector<float>(shared_slots, unwritten));
  if (shared_slots > 0) backward.dshared_weights = dshared;
  backward.stream = memory.stream();
  must(blocks.combine_backward(backward), "combine_backward");
  memory.synchronize();
  BlocksOutput o;
  o.h_stride = h_stride;
  o.x = memory.get(x_rows, rows * hidden);
  o.h = memory.get(h, rows * static_cast<std::size_t>(h_stride));
  o.y = memory.get(y, rows * hidden);
  o.slot_row = memory.get(slot_row, slots);
  o.out = memory.get(out, static_cast<std::size_t>(b.tokens()) * hidden);
  o.dy = memory.get(dy, rows * hidden);
  o.dtopk = memory.get(dtopk, c.topk_weights.size());
  o.dshared = memory.get(dshared, shared_slots);
  return o;
}

/// What is wrong with what the blocks left; empty: nothing. h and y of every `step`-th row are computed.
inline std::string blocks_problem(const BlocksCase& b, const BlocksOutput& o, bool weighted_down,
                                  std::int64_t step = 1) {
  const auto fail = [](const auto&... parts) {
    std::ostringstream s;
    (s << ... << parts);
    return s.str();
  };
  const RandomCase& c = *b.source;
  const varmoe::LayerSpec& spec = b.spec();
  const OracleLayer layer = c.oracle_layer();
  const OracleCall call = c.oracle_call();
  const double* table = detail::decode_table(spec.dtype);
  const std::int64_t H = spec.hidden_size, slots = b.slots();
  // One element rounded the other way may be most of a narrow row.
  Bars bars = bars_of(spec.dtype);
  bars.frobenius = bars.row;
  const std::int64_t first[] = {0};
  for (std::int64_t r = 0; r < b.rows; ++r) {
    const std::int64_t e = b.row_expert[static_cast<std::size_t>(r)];
    const std::int64_t width = e >= 0 ? spec.width_of(e) : 0, written = (width + 63) / 64 * 64;
    for (std::int64_t i = written; i < o.h_stride; ++i)
      if (o.h[static_cast<std::size_t>(r * o.h_stride + i)] != kPoison)
        return fail("h[", r, ", ", i, "] was written");
    const std::uint16_t *x = o.x.data() + r * H, *h = o.h.data() + r * o.h_stride, *y = o.y.data() + r * H;
    if (e < 0) {
      for (std::int64_t i = 0; i < H; ++i) {
        if (x[i] != kPoison) return fail("gather wrote row ", r, ", which is none");
        if (y[i] != kPoison) return fail("down wrote row ", r, ", which is none");
        if (o.dy[static_cast<std::size_t>(r * H + i)] != kPoison)
          return fail("combine_backward wrote row ", r, ", which is none");
      }
      continue;
    }
    const std::int64_t slot = b.row_map[static_cast<std::size_t>(r)], t = slot / slots, j = slot % slots;
    for (std::int64_t i = 0; i < H; ++i)
      if (x[i] != c.x[t * c.x_stride + i]) return fail("gathered row ", r, " is not that of token ", t);
    if (r % step != 0) continue;
    const std::vector<double> h_ref = oracle_h(layer, call, t, j);
    auto compared = compare_rows(spec.dtype, h_ref, h, o.h_stride, width, first, bars);
    if (!compared.pass) return fail("h of row ", r, ", expert ", e, ": ", compared.text());
    // y of the h that is there.
    const OracleExpert& expert = e < spec.num_experts()
                                     ? layer.experts[static_cast<std::size_t>(e)]
                                     : layer.shared[static_cast<std::size_t>(e - spec.num_experts())];
    std::vector<double> values, y_ref(static_cast<std::size_t>(H));
    for (std::int64_t i = 0; i < width; ++i) values.push_back(table[h[i]]);
    detail::product(table, expert.down, values.data(), width, 0, H, y_ref.data());
    const bool routed = j < spec.top_k;
    const double weight = !weighted_down                    ? 1.0
                          : spec.weight_on_input && !routed ? 1.0
                                                            : static_cast<double>(b.weight_of(slot));
    for (std::int64_t i = 0; i < H; ++i) {
      double& value = y_ref[static_cast<std::size_t>(i)];
      if (expert.down_bias.data != nullptr)
        value += table[expert.down_bias.data[i * expert.down_bias.stride]];
      value *= weight;
    }
    compared = compare_rows(spec.dtype, y_ref, y, H, H, first, bars);
    if (!compared.pass) return fail("y of row ", r, ", expert ", e, ": ", compared.text());
  }
  std::vector<std::int32_t> slot_row(o.slot_row.size(), -1);
  for (std::int64_t r = 0; r < b.rows; ++r)
    if (b.row_expert[static_cast<std::size_t>(r)] >= 0)
      slot_row[static_cast<std::size_t>(b.row_map[static_cast<std::size_t>(r)])] =
          static_cast<std::int32_t>(r);
  if (o.slot_row != slot_row) return "slot_row is not the inverse of the row map";
  // out of the y that is there.
  for (std::int64_t t = 0; t < b.tokens(); ++t) {
    if (t % std::max<std::int64_t>(1, step / 4) != 0) continue;
    std::vector<double> sum(static_cast<std::size_t>(H), 0.0);
    for (std::int64_t j = 0; j < slots; ++j) {
      const std::int32_t row = slot_row[static_cast<std::size_t>(t * slots + j)];
      if (row < 0) continue;
      const bool counted = weighted_down || (spec.weight_on_input && j < spec.top_k);
      const double weight = counted ? 1.0 : static_cast<double>(b.weight_of(t * slots + j));
      for (std::int64_t i = 0; i < H; ++i)
        sum[static_cast<std::size_t>(i)] += weight * table[o.y[static_cast<std::size_t>(row * H + i)]];
    }
    const auto compared = compare_rows(spec.dtype, sum, o.out.data() + t * H, H, H, first, bars);
    if (!compared.pass) return fail("out of token ", t, ": ", compared.text());
    // Of the combine: dy = w·dout, dw = ⟨dout, y⟩, where dout is x.
    for (std::int64_t j = 0; j < slots; ++j) {
      const std::int32_t row = slot_row[static_cast<std::size_t>(t * slots + j)];
      const bool routed = j < spec.top_k;
      const float found = routed
                              ? o.dtopk[static_cast<std::size_t>(t * spec.top_k + j)]
                              : o.dshared[static_cast<std::size_t>(t * spec.num_shared() + j - spec.top_k)];
      if (row < 0) {
        if (found != 0) return fail("token ", t, " slot ", j, " has no row and a gradient of ", found);
        continue;
      }
      const bool counted = weighted_down || (spec.weight_on_input && routed);
      const double weight = counted ? 1.0 : static_cast<double>(b.weight_of(t * slots + j));
      double dot = 0, size = 0;
      std::vector<double> dy(static_cast<std::size_t>(H));
      for (std::int64_t i = 0; i < H; ++i) {
        const double dout = table[c.x[t * c.x_stride + i]];
        const double term = dout * table[o.y[static_cast<std::size_t>(row * H + i)]];
        dot += term;
        size += std::fabs(term);
        dy[static_cast<std::size_t>(i)] = weight * dout;
      }
      if (!(std::fabs(static_cast<double>(found) - dot) <= 1e-5 * size))
        return fail("the weight's gradient of token ", t, " slot ", j, " is ", found, ", not ", dot);
      const auto rows_compared = compare_rows(spec.dtype, dy, o.dy.data() + row * H, H, H, first, bars);
      if (!rows_compared.pass) return fail("dy of row ", row, ": ", rows_compared.text());
    }
  }
  return {};
}

}  // namespace oracle
