#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/host_case.hpp"
#include "oracle/parallel.hpp"
#include "oracle/random_routing.hpp"
#include "oracle/random_values.hpp"
#include "varmoe/layer_spec.hpp"

/// Seeded random layers, in every storage of varmoe/weights.hpp, with every kind of routing. Where each
/// element lies is worked out here a second time, independently of src/model/weights.cpp. What is not part of
/// a matrix is poison (NaN). Values depend on seed and logical place alone: the same layer in another storage
/// or layout has the same values. Nothing of libm's exp, log, … enters: the same bits on every machine.
namespace oracle {

inline RandomCase make_case(const varmoe::LayerSpec& spec, CaseOptions options) {
  RandomCase c;
  const std::int64_t H = spec.hidden_size, T = options.tokens, k = spec.top_k;
  if (options.padded_width == 0 && !spec.expert_widths.empty()) {
    options.padded_width = *std::max_element(spec.expert_widths.begin(), spec.expert_widths.end()) + 16;
  }
  c.spec = spec;
  c.options = options;
  c.plan = plan_storage(spec, options.storage, options.padded_width, options.seed);
  if (spec.bias) plan_biases(spec, options.storage, options.padded_width, c.plan);
  c.x_stride = options.x_stride != 0 ? options.x_stride : H;
  c.out_stride = options.out_stride != 0 ? options.out_stride : H;

  const auto poison = [&](Buffer16& b) {
    constexpr std::int64_t chunk = 1 << 20;
    parallel_for((b.size() + chunk - 1) / chunk, options.threads, [&](std::int64_t i) {
      std::fill(b.data() + i * chunk, b.data() + std::min(b.size(), (i + 1) * chunk), kPoison);
    });
  };
  c.fc1 = Buffer16(c.plan.size[0]);
  c.up = Buffer16(c.plan.size[1]);
  c.fc2 = Buffer16(c.plan.size[2]);
  c.fc1_bias = Buffer16(c.plan.bias_size[0]);
  c.fc2_bias = Buffer16(c.plan.bias_size[1]);
  c.x = Buffer16(T * c.x_stride);
  c.out = Buffer16(T * c.out_stride);
  const bool gaps = options.storage != Storage::blocks && options.storage != Storage::packed &&
                    options.storage != Storage::packed_joint;
  if (gaps) poison(c.fc1), poison(c.up), poison(c.fc2);
  poison(c.fc1_bias), poison(c.fc2_bias);
  poison(c.x);
  poison(c.out);

  // fc1 keeps unit variance for unit x; fc2 brings h back to it.
  const auto fc1_table = detail::value_table(spec.dtype, 1.0 / std::sqrt(static_cast<double>(H)));
  const auto x_table = detail::value_table(spec.dtype, 1.0);
  const auto bias_table = detail::value_table(spec.dtype, 0.5);
  const double h_rms = detail::activation_rms(spec.activation);
  struct Row {  // `count` elements `step` apart; element i is logical element first + i·logical_step of its
                // matrix
    std::uint16_t* at;
    const std::uint16_t* table;
    std::int64_t count, step, logical_step;
    std::uint64_t first, stream;
  };
  const auto fill = [](const Row& r) {
    for (std::int64_t i = 0; i < r.count; ++i) {
      r.at[i * r.step] =
          r.table[detail::mix(r.stream + r.first + static_cast<std::uint64_t>(i * r.logical_step)) >> 48];
    }
  };
  const auto fill_matrix = [&](std::uint64_t stream, Buffer16& b, const Place& p, const std::uint16_t* table,
                               std::int64_t outputs, std::int64_t depth) {
    const bool along_k = p.k_stride <= p.out_stride;
    const std::int64_t rows = along_k ? outputs : depth;
    constexpr std::int64_t chunk = 16;
    parallel_for((rows + chunk - 1) / chunk, options.threads, [&](std::int64_t i) {
      for (std::int64_t r = i * chunk; r < std::min(rows, (i + 1) * chunk); ++r) {
        std::uint16_t* at = b.data() + p.offset;
        const auto row = static_cast<std::uint64_t>(r);
        if (along_k) {
          fill({at + r * p.out_stride, table, depth, p.k_stride, 1, row * static_cast<std::uint64_t>(depth),
                stream});
        } else {
          fill({at + r * p.k_stride, table, outputs, p.out_stride, depth, row, stream});
        }
      }
    });
  };
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
    const ExpertPlaces& p = c.plan.experts[e];
    const std::int64_t w = spec.expert_widths[e];
    const auto fc2_table = detail::value_table(spec.dtype, 1.0 / (h_rms * std::sqrt(static_cast<double>(w))));
    const auto stream = [&](std::uint64_t matrix) { return detail::mix(options.seed, matrix, e); };
    if (is_gated(spec.activation)) fill_matrix(stream(1), c.fc1, p.gate, fc1_table.data(), w, H);
    fill_matrix(stream(2), p.up.part == Part::up ? c.up : c.fc1, p.up, fc1_table.data(), w, H);
    fill_matrix(stream(3), c.fc2, p.down, fc2_table.data(), H, w);
    if (!spec.bias) continue;
    const auto fill_bias = [&](std::uint64_t which, Buffer16& b, const BiasPlace& place, std::int64_t count) {
      fill({b.data() + place.offset, bias_table.data(), count, place.stride, 1, 0, stream(which)});
    };
    if (is_gated(spec.activation)) fill_bias(11, c.fc1_bias, p.gate_bias, w);
    fill_bias(12, c.fc1_bias, p.up_bias, w);
    fill_bias(13, c.fc2_bias, p.down_bias, H);
  }
  for (std::size_t e = 0; e < spec.shared_widths.size(); ++e) {
    const ExpertPlaces& p = c.plan.shared[e];
    const std::int64_t w = spec.shared_widths[e];
    const auto fc2_table = detail::value_table(spec.dtype, 1.0 / (h_rms * std::sqrt(static_cast<double>(w))));
    const auto stream = [&](std::uint64_t matrix) { return detail::mix(options.seed, 10 + matrix, e); };
    if (is_gated(spec.activation)) fill_matrix(stream(1), c.fc1, p.gate, fc1_table.data(), w, H);
    fill_matrix(stream(2), c.fc1, p.up, fc1_table.data(), w, H);
    fill_matrix(stream(3), c.fc2, p.down, fc2_table.data(), H, w);
  }
  if (spec.shared_gate) {  // x·w_g of standard deviation 2: gates from near 0 to near 1
    const auto table = detail::value_table(spec.dtype, 2.0 / std::sqrt(static_cast<double>(H)));
    fill({c.fc2.data() + c.plan.shared_gate, table.data(), H, 1, 1, 0, detail::mix(options.seed, 14)});
  }
  parallel_for(T, options.threads, [&](std::int64_t t) {
    const auto first = static_cast<std::uint64_t>(t * H);
    fill({c.x.data() + t * c.x_stride, x_table.data(), H, 1, 1, first, detail::mix(options.seed, 4)});
    if (options.accumulate) {
      fill({c.out.data() + t * c.out_stride, x_table.data(), H, 1, 1, first, detail::mix(options.seed, 5)});
    }
  });

  c.ids64 = random_ids(spec, options);
  for (const std::int64_t id : c.ids64) c.ids32.push_back(static_cast<std::int32_t>(id));
  c.topk_weights.resize(static_cast<std::size_t>(T * k));
  for (std::int64_t t = 0; t < T; ++t) {  // renormalised to a sum of one
    double sum = 0;
    std::vector<double> w(static_cast<std::size_t>(k));
    for (std::int64_t j = 0; j < k; ++j) {
      w[static_cast<std::size_t>(j)] =
          0.1 + detail::unit(detail::mix(options.seed, 6, static_cast<std::uint64_t>(t),
                                         static_cast<std::uint64_t>(j)));
      sum += w[static_cast<std::size_t>(j)];
    }
    for (std::int64_t j = 0; j < k; ++j) {
      c.topk_weights[static_cast<std::size_t>(t * k + j)] =
          static_cast<float>(w[static_cast<std::size_t>(j)] / sum);
    }
  }
  return c;
}

}  // namespace oracle
