#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "oracle/case_options.hpp"
#include "oracle/oracle.hpp"
#include "oracle/random_values.hpp"
#include "varmoe/layer_spec.hpp"

/// Where each element of a layer lies in every storage of varmoe/weights.hpp, worked out a second time,
/// independently of src/model/weights.cpp.
namespace oracle {

/// Which buffer of a case a matrix lies in.
enum class Part : std::uint8_t { fc1, up, fc2 };

/// A matrix's place: element (output, k) at parts[part][offset + output·out_stride + k·k_stride].
struct Place {
  Part part = Part::fc1;
  std::int64_t offset = 0, out_stride = 0, k_stride = 0;
};
/// A bias's place in fc1_bias or fc2_bias: element i at offset + i·stride.
struct BiasPlace {
  std::int64_t offset = 0, stride = 1;
};
struct ExpertPlaces {
  Place gate, up, down;
  BiasPlace gate_bias, up_bias, down_bias;
};

/// Where every expert's matrices lie in a storage, and how large the buffers are.
struct StoragePlan {
  std::int64_t size[3] = {0, 0, 0};  ///< elements of fc1 (or gate), up, fc2; up is 0 where fc1 holds both
  std::vector<ExpertPlaces> experts;
  std::int64_t fc1_row = 0, fc2_row = 0;  ///< Storage::strided: elements between stored rows
  /// Shared experts, behind the routed ones in fc1 and fc2; storages that scatter experts scatter these too.
  std::vector<ExpertPlaces> shared;
  std::int64_t shared_gate = 0;        ///< where w_g begins in fc2
  std::int64_t bias_size[2] = {0, 0};  ///< elements of fc1_bias, fc2_bias
};

/// Where biases lie: each expert's one after another; in the storage "padded" padded too; in those of
/// pointers with a gap before each, at odd elements; by_hand gate and up apart with poison between entries.
inline void plan_biases(const varmoe::LayerSpec& spec, Storage storage, std::int64_t padded_width,
                        StoragePlan& plan) {
  const bool gated = is_gated(spec.activation);
  const bool interleaved = gated && spec.gate_order == varmoe::GateOrder::interleaved;
  const bool up_first = gated && spec.gate_order == varmoe::GateOrder::up_first;
  const bool scattered =
      storage == Storage::pointers || storage == Storage::strided || storage == Storage::by_hand;
  const std::int64_t gap = scattered ? 3 : 0;
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
    ExpertPlaces& p = plan.experts[e];
    const std::int64_t stored = storage == Storage::padded ? padded_width : spec.expert_widths[e];
    std::int64_t& fc1 = plan.bias_size[0];
    fc1 += gap;
    if (storage == Storage::by_hand) {
      p.up_bias = {fc1, 2};
      p.gate_bias = {fc1 + 2 * stored, 2};
      fc1 += 4 * stored;
    } else if (!gated) {
      p.up_bias = {fc1, 1};
      fc1 += stored;
    } else {
      const std::int64_t stride = interleaved ? 2 : 1, second = fc1 + (interleaved ? 1 : stored);
      p.gate_bias = {up_first ? second : fc1, stride};
      p.up_bias = {up_first ? fc1 : second, stride};
      fc1 += 2 * stored;
    }
    plan.bias_size[1] += gap;
    p.down_bias = {plan.bias_size[1], 1};
    plan.bias_size[1] += spec.hidden_size;
  }
}

inline StoragePlan plan_storage(const varmoe::LayerSpec& spec, Storage storage, std::int64_t padded_width,
                                std::uint64_t seed) {
  if (!storage_fits(spec, storage)) throw std::logic_error("oracle: this storage does not fit the spec");
  const std::int64_t H = spec.hidden_size;
  const auto E = static_cast<std::int64_t>(spec.expert_widths.size());
  const bool gated = is_gated(spec.activation), nk1 = spec.fc1_layout == varmoe::WeightLayout::nk,
             nk2 = spec.fc2_layout == varmoe::WeightLayout::nk;
  const bool interleaved = gated && spec.gate_order == varmoe::GateOrder::interleaved;
  const bool up_first = gated && spec.gate_order == varmoe::GateOrder::up_first;
  const std::int64_t halves = gated ? 2 : 1;
  std::int64_t widest = 0, total = 0;
  for (const std::int64_t w : spec.expert_widths) widest = std::max(widest, w), total += w;
  StoragePlan plan;
  plan.experts.resize(static_cast<std::size_t>(E));

  // Gate and up inside one fc1 matrix that begins at `offset`, whose stored rows are `row` apart and whose
  // second half begins `half` outputs after the first.
  const auto place_fc1 = [&](ExpertPlaces& p, std::int64_t offset, std::int64_t row, std::int64_t half) {
    const std::int64_t output = nk1 ? row : 1, k = nk1 ? 1 : row;
    if (!gated) {
      p.up = {Part::fc1, offset, output, k};
    } else if (interleaved) {
      p.gate = {Part::fc1, offset, 2 * output, k};
      p.up = {Part::fc1, offset + output, 2 * output, k};
    } else {
      p.gate = {Part::fc1, offset + (up_first ? half * output : 0), output, k};
      p.up = {Part::fc1, offset + (up_first ? 0 : half * output), output, k};
    }
  };
  const auto place_fc2 = [&](ExpertPlaces& p, std::int64_t offset, std::int64_t row) {
    p.down = {Part::fc2, offset, nk2 ? row : 1, nk2 ? 1 : row};
  };

  const bool scattered =
      storage == Storage::pointers || storage == Storage::strided || storage == Storage::by_hand;
  const std::int64_t gap = scattered ? 40 : 0;  // poison between experts
  const auto add_shared = [&] {
    for (const std::int64_t w : spec.shared_widths) {
      ExpertPlaces& p = plan.shared.emplace_back();
      place_fc1(p, plan.size[0] + gap, nk1 ? H : halves * w, w);
      plan.size[0] += gap + halves * w * H;
      place_fc2(p, plan.size[2] + gap, nk2 ? w : H);
      plan.size[2] += gap + w * H;
    }
    plan.shared_gate = plan.size[2] + gap;
    if (spec.shared_gate) plan.size[2] += gap + H;
  };

  if (storage == Storage::packed || storage == Storage::packed_joint) {
    std::int64_t before = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      ExpertPlaces& p = plan.experts[static_cast<std::size_t>(e)];
      const std::int64_t w = spec.expert_widths[static_cast<std::size_t>(e)];
      if (storage == Storage::packed) {
        p.gate = {Part::fc1, before, 1, total};
        p.up = {gated ? Part::up : Part::fc1, before, 1, total};
      } else {
        place_fc1(p, halves * before, halves * total, w);
      }
      place_fc2(p, before * H, H);
      before += w;
    }
    plan.size[0] = H * total * (storage == Storage::packed ? 1 : halves);
    plan.size[1] = storage == Storage::packed && gated ? H * total : 0;
    plan.size[2] = H * total;
    add_shared();
    return plan;
  }

  // The others put one fc1 and one fc2 matrix an expert somewhere.
  std::vector<std::int64_t> order(static_cast<std::size_t>(E));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (scattered) {
    for (std::int64_t i = E - 1; i > 0; --i) {
      const auto j = static_cast<std::int64_t>(detail::mix(seed, 77, static_cast<std::uint64_t>(i)) %
                                               static_cast<std::uint64_t>(i + 1));
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
    }
  }
  plan.fc1_row = (nk1 ? H : halves * widest) + 24;
  plan.fc2_row = (nk2 ? widest : H) + 8;
  for (const std::int64_t e : order) {
    ExpertPlaces& p = plan.experts[static_cast<std::size_t>(e)];
    const std::int64_t w = spec.expert_widths[static_cast<std::size_t>(e)];
    const std::int64_t stored = storage == Storage::padded ? padded_width : w;
    if (storage == Storage::by_hand) {
      const std::int64_t row = (nk1 ? H : w) + 16;
      const std::int64_t output = nk1 ? row : 1, k = nk1 ? 1 : row, rows = nk1 ? w : H;
      p.gate = {Part::fc1, plan.size[0] + gap, output, k};
      p.up = {gated ? Part::up : Part::fc1, (gated ? plan.size[1] : plan.size[0]) + gap, output, k};
      plan.size[0] += gap + rows * row;
      if (gated) plan.size[1] += gap + rows * row;
    } else {
      std::int64_t row = nk1 ? H : halves * stored;
      if (storage == Storage::strided) row = plan.fc1_row;
      place_fc1(p, plan.size[0] + gap, row, stored);
      plan.size[0] += gap + (nk1 ? halves * stored : H) * row;
    }
    std::int64_t row2 = nk2 ? stored : H;
    if (storage == Storage::strided) row2 = plan.fc2_row;
    place_fc2(p, plan.size[2] + gap, row2);
    plan.size[2] += gap + (nk2 ? H : stored) * row2;
  }
  add_shared();
  return plan;
}

}  // namespace oracle
