#include "cpu/blocks.hpp"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "cpu/blocks_impl.hpp"
#include "cpu/kernels.hpp"
#include "cpu/slots.hpp"
#include "cpu/workspace.hpp"

namespace varmoe::cpu {
namespace {

constexpr std::int64_t kTaskRows = 8;  ///< of gather and combine

}  // namespace

CpuBlocks::CpuBlocks(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuBlocks::~CpuBlocks() = default;

Result<std::unique_ptr<CpuBlocks>> CpuBlocks::create(const LayerSpec& spec, GradientType gradient_type,
                                                     int threads) try {
  const int count = threads > 0 ? std::min(threads, 1024) : available_cores();
  const auto kernels = kernels_named({});
  if (!kernels) return kernels.error();
  return std::unique_ptr<CpuBlocks>(
      new CpuBlocks(std::make_unique<Impl>(spec, gradient_type, **kernels, count)));
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "no host memory for CPU building blocks");
}

void CpuBlocks::bind(const Weights& weights) {
  impl_->experts = weights.experts;
  impl_->experts.insert(impl_->experts.end(), weights.shared.begin(), weights.shared.end());
}

std::size_t CpuBlocks::workspace_bytes(std::int64_t) const noexcept {
  return BlocksLayout(impl_->spec.all_experts(), impl_->team.size()).total_bytes;
}

Status CpuBlocks::gather(const GatherArgs& a) noexcept {
  const std::int64_t hidden = impl_->spec.hidden_size, stride = a.x_stride != 0 ? a.x_stride : hidden;
  const std::int64_t per_token = a.map_to == RowMap::slots ? impl_->spec.slots_per_token() : 1;
  const std::int64_t rows =
      a.row_count != nullptr ? std::clamp<std::int64_t>(*a.row_count, 0, a.rows) : a.rows;
  each_task(impl_->team, impl_->worth_copying(rows), (rows + kTaskRows - 1) / kTaskRows,
            [&](std::int64_t task, int) {
              for (std::int64_t r = task * kTaskRows; r < std::min(rows, (task + 1) * kTaskRows); ++r) {
                const std::int64_t named = a.row_map[r];
                if (named < 0 || named >= a.tokens * per_token) continue;
                std::copy_n(elements(a.x) + named / per_token * stride, hidden,
                            static_cast<std::uint16_t*>(a.out) + r * hidden);
              }
            });
  return {};
}

Status CpuBlocks::slot_rows(const SlotRowsArgs& a) noexcept {
  const std::int64_t slots = a.tokens * impl_->spec.slots_per_token();
  const std::int64_t rows =
      a.row_count != nullptr ? std::clamp<std::int64_t>(*a.row_count, 0, a.rows) : a.rows;
  std::fill_n(a.slot_row, slots, -1);
  for (std::int64_t r = 0; r < rows; ++r)
    if (a.row_map[r] >= 0 && a.row_map[r] < slots) a.slot_row[a.row_map[r]] = static_cast<std::int32_t>(r);
  return {};
}

Status CpuBlocks::up(const GroupedUpArgs& a) noexcept {
  const LayerSpec& spec = impl_->spec;
  const Kernels& kernels = impl_->kernels;
  const std::int64_t x_stride = a.x_stride != 0 ? a.x_stride : spec.hidden_size;
  const std::int64_t h_stride = a.h_stride != 0 ? a.h_stride : (spec.widest_of_all() + 63) / 64 * 64;
  const std::int64_t z_stride = a.z_stride != 0 ? a.z_stride : z_rows(spec).stride;
  impl_->products(
      a.by_expert, a.workspace, (spec.gated() ? 2 : 1) * spec.hidden_size,
      gate_and_up_joint(spec) ? kTileOutputs / 2 : kTileOutputs,
      [&](std::int64_t e) { return spec.width_of(e); },
      [&](const Tile& t, std::int64_t begin, float* scratch) {
        const std::int64_t first = begin + t.first_row;
        const std::uint16_t* rows[kTileRows];
        for (int m = 0; m < t.rows; ++m) rows[m] = elements(a.x) + (first + m) * x_stride;
        const UpSums sums =
            up_sums(spec, kernels, impl_->experts[static_cast<std::size_t>(t.expert)], t, rows,
                    a.row_weights != nullptr ? a.row_weights + first : nullptr, scratch);
        for (int m = 0; m < t.rows; ++m) {
          store_h(spec, kernels, t, sums, m,
                  static_cast<std::uint16_t*>(a.h) + (first + m) * h_stride + t.first_output);
          if (a.z == nullptr) continue;
          auto* const z = static_cast<std::uint16_t*>(a.z) + (first + m) * z_stride + t.first_output;
          const auto keep = [&](const float* half, std::uint16_t* to) {
            float values[kTileOutputs];
            for (int i = 0; i < t.outputs; ++i) values[i] = half[m * kTileOutputs + i * sums.step];
            kernels.scale_round(spec.dtype, values, 1.0f, t.outputs, to);
          };
          if (spec.gated()) keep(sums.gate, z);
          keep(sums.up, z + BlockRow(spec, t.expert).up);
        }
      });
  return {};
}

Status CpuBlocks::down(const GroupedDownArgs& a) noexcept {
  const LayerSpec& spec = impl_->spec;
  const Kernels& kernels = impl_->kernels;
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t h_stride = a.h_stride != 0 ? a.h_stride : (spec.widest_of_all() + 63) / 64 * 64;
  impl_->products(
      a.by_expert, a.workspace, spec.widest_of_all(), kTileOutputs, [&](std::int64_t) { return hidden; },
      [&](const Tile& t, std::int64_t begin, float* scratch) {
        const std::int64_t first = begin + t.first_row;
        const std::uint16_t* rows[kTileRows];
        for (int m = 0; m < t.rows; ++m) rows[m] = elements(a.h) + (first + m) * h_stride;
        const float* sums = down_sums(spec, kernels, impl_->experts[static_cast<std::size_t>(t.expert)], t,
                                      spec.width_of(t.expert), rows, scratch);
        for (int m = 0; m < t.rows; ++m)
          kernels.scale_round(spec.dtype, sums + m * kTileOutputs,
                              a.row_weights != nullptr ? a.row_weights[first + m] : 1.0f, t.outputs,
                              static_cast<std::uint16_t*>(a.y) + (first + m) * hidden + t.first_output);
      });
  return {};
}

Status CpuBlocks::combine(const CombineArgs& a) noexcept {
  const LayerSpec& spec = impl_->spec;
  const Kernels& kernels = impl_->kernels;
  const std::int64_t hidden = spec.hidden_size, slots = spec.slots_per_token(), k = spec.top_k;
  const std::int64_t stride = a.out_stride != 0 ? a.out_stride : hidden;
  const std::int64_t tokens =
      a.token_count != nullptr ? std::clamp<std::int64_t>(*a.token_count, 0, a.tokens) : a.tokens;
  const auto weight_of = [&](std::int64_t t, std::int64_t j) {
    if (j < k) return a.topk_weights != nullptr ? a.topk_weights[t * k + j] : 1.0f;
    return a.shared_weights != nullptr ? a.shared_weights[t] : 1.0f;
  };
  const auto one_token = [&](std::int64_t t) {
    const std::int32_t* rows = a.slot_row + t * slots;
    if (a.absent_tokens == AbsentTokens::untouched &&
        std::all_of(rows, rows + slots, [](std::int32_t row) { return row < 0; }))
      return;
    std::uint16_t* out = static_cast<std::uint16_t*>(a.out) + t * stride;
    constexpr std::int64_t kAtOnce = 512;
    float sum[kAtOnce], value[kAtOnce];
    for (std::int64_t c = 0; c < hidden; c += kAtOnce) {
      const std::int64_t columns = std::min(kAtOnce, hidden - c);
      std::fill_n(sum, columns, 0.0f);
      for (std::int64_t j = 0; j < slots; ++j) {
        if (rows[j] < 0) continue;
        const float weight = weight_of(t, j);
        kernels.widen(spec.dtype, elements(a.y) + rows[j] * hidden + c, columns, value);
        for (std::int64_t i = 0; i < columns; ++i) sum[i] += weight * value[i];
      }
      if (a.accumulate) {
        kernels.widen(spec.dtype, out + c, columns, value);
        for (std::int64_t i = 0; i < columns; ++i) sum[i] += value[i];
      }
      kernels.scale_round(spec.dtype, sum, 1.0f, columns, out + c);
    }
  };
  each_task(impl_->team, impl_->worth_copying(tokens * slots), (tokens + kTaskRows - 1) / kTaskRows,
            [&](std::int64_t task, int) {
              for (std::int64_t t = task * kTaskRows; t < std::min(tokens, (task + 1) * kTaskRows); ++t)
                one_token(t);
            });
  return {};
}

Status CpuBlocks::combine_backward(const CombineBackwardArgs& a) noexcept {
  const LayerSpec& spec = impl_->spec;
  const Kernels& kernels = impl_->kernels;
  const std::int64_t hidden = spec.hidden_size, slots = spec.slots_per_token(), k = spec.top_k;
  const std::int64_t stride = a.dout_stride != 0 ? a.dout_stride : hidden;
  const std::int64_t tokens =
      a.token_count != nullptr ? std::clamp<std::int64_t>(*a.token_count, 0, a.tokens) : a.tokens;
  const auto one_slot = [&](std::int64_t t, std::int64_t j) {
    const bool routed = j < k;
    const std::int64_t at = routed ? t * k + j : t * (slots - k) + j - k, row = a.slot_row[t * slots + j];
    float* gradient = routed ? a.dtopk_weights : a.dshared_weights;
    const float weight = routed ? (a.topk_weights != nullptr ? a.topk_weights[at] : 1.0f)
                                : (a.shared_weights != nullptr ? a.shared_weights[t] : 1.0f);
    constexpr std::int64_t kAtOnce = 512, kLanes = 16;
    float dout[kAtOnce], y[kAtOnce], lanes[kLanes] = {};
    for (std::int64_t c = 0; row >= 0 && c < hidden; c += kAtOnce) {
      const std::int64_t columns = std::min(kAtOnce, hidden - c);
      kernels.widen(spec.dtype, elements(a.dout) + t * stride + c, columns, dout);
      if (gradient != nullptr) {
        kernels.widen(spec.dtype, elements(a.y) + row * hidden + c, columns, y);
        for (std::int64_t i = 0; i < columns; i += 8)
          for (std::int64_t l = 0; l < 8; ++l) lanes[(i / 8 % 2) * 8 + l] += dout[i + l] * y[i + l];
      }
      if (a.dy != nullptr)
        kernels.scale_round(spec.dtype, dout, weight, columns,
                            static_cast<std::uint16_t*>(a.dy) + row * hidden + c);
    }
    if (gradient == nullptr) return;
    float sum = 0.0f;
    for (const float lane : lanes) sum += lane;
    gradient[at] = sum;
  };
  each_task(impl_->team, impl_->worth_copying(tokens * slots), (tokens + kTaskRows - 1) / kTaskRows,
            [&](std::int64_t task, int) {
              for (std::int64_t t = task * kTaskRows; t < std::min(tokens, (task + 1) * kTaskRows); ++t)
                for (std::int64_t j = 0; j < slots; ++j) one_slot(t, j);
            });
  return {};
}

}  // namespace varmoe::cpu
