#include "cpu/blocks.hpp"

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "cpu/kernels.hpp"
#include "cpu/segments.hpp"
#include "cpu/slots.hpp"
#include "cpu/team.hpp"
#include "cpu/tiles.hpp"

namespace varmoe::cpu {
namespace {

constexpr std::int64_t kTaskRows = 8;  ///< of gather and combine

const std::uint16_t* elements(const void* p) {
  return static_cast<const std::uint16_t*>(p);
}

/// Where each part of a workspace lies; offsets in bytes, 256-byte aligned.
struct Layout {
  std::size_t begin = 0, count = 0, rows = 0, tasks = 0, scratch = 0, total_bytes = 0;
  Layout(std::int64_t experts, int threads) noexcept {
    const auto take = [&](std::size_t bytes) {
      const std::size_t at = total_bytes;
      total_bytes = (at + bytes + 255) / 256 * 256;
      return at;
    };
    const std::size_t numbers = (static_cast<std::size_t>(experts) + 1) * sizeof(std::int64_t);
    begin = take(numbers);
    count = take(numbers);
    rows = take(numbers);
    tasks = take(numbers);
    scratch = take(static_cast<std::size_t>(threads) * kTileScratch * sizeof(float));
  }
};

/// Tasks 0 … count − 1, each taken by one of the threads.
template <class Task>
void each_task(Team& team, int active, std::int64_t count, const Task& task) noexcept {
  struct Work {
    const Task& task;
    std::int64_t count;
    std::atomic<std::int64_t> next{0};
  } work{task, count};
  team.run(
      active,
      [](void* context, int member) {
        Work& w = *static_cast<Work*>(context);
        for (std::int64_t i; (i = w.next.fetch_add(1, std::memory_order_relaxed)) < w.count;)
          w.task(i, member);
      },
      &work);
}

}  // namespace

struct CpuBlocks::Impl {
  Impl(LayerSpec s, const Kernels& k, int threads) : spec(std::move(s)), kernels(k), team(threads) {}

  /// up or down: `tile(t, begin, scratch)` for every tile of rows and outputs; `begin`: the first row of its
  /// expert less that of the numbering without gaps, in which tiles are.
  template <class OutputsOf, class OnTile>
  void products(const RowsByExpert& by_expert, void* workspace, std::int64_t depth, int widest_tile,
                const OutputsOf& outputs_of, const OnTile& on_tile) noexcept {
    const std::int64_t all = spec.all_experts();
    const Layout layout(all, team.size());
    const auto numbers = [&](std::size_t at) {
      return reinterpret_cast<std::int64_t*>(static_cast<std::byte*>(workspace) + at);
    };
    std::int64_t *begin = numbers(layout.begin), *count = numbers(layout.count), *rows = numbers(layout.rows),
                 *tasks = numbers(layout.tasks);
    read_segments(by_expert, all, begin, count);
    rows[0] = 0;
    double outputs = 0;
    for (std::int64_t e = 0; e < all; ++e) {
      rows[e + 1] = rows[e] + count[e];
      outputs += static_cast<double>(count[e]) * static_cast<double>(outputs_of(e));
    }
    const int active = team.worth(outputs * static_cast<double>(depth));
    // Narrower tasks until there are enough for every thread; an output's sum does not depend on its task.
    int tile = widest_tile;
    for (;; tile /= 2) {
      plan_tiles(all, rows, tile, outputs_of, tasks);
      if (active == 1 || tile <= 32 || tasks[all] >= 4 * static_cast<std::int64_t>(active)) break;
    }
    each_task(team, active, tasks[all], [&](std::int64_t task, int member) {
      const Tile t = tile_at(all, rows, tile, outputs_of, tasks, task);
      float* scratch = reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + layout.scratch) +
                       static_cast<std::size_t>(member) * kTileScratch;
      on_tile(t, begin[t.expert] - rows[t.expert], scratch);
    });
  }

  /// Members for copying so many rows.
  int worth_copying(std::int64_t rows) const noexcept {
    return team.worth(static_cast<double>(rows) * static_cast<double>(spec.hidden_size));
  }

  LayerSpec spec;
  const Kernels& kernels;
  std::vector<ExpertWeights> experts;  ///< routed, then shared
  Team team;
};

CpuBlocks::CpuBlocks(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuBlocks::~CpuBlocks() = default;

Result<std::unique_ptr<CpuBlocks>> CpuBlocks::create(const LayerSpec& spec, int threads) try {
  const int count = threads > 0 ? std::min(threads, 1024) : available_cores();
  const auto kernels = kernels_named({});
  if (!kernels) return kernels.error();
  return std::unique_ptr<CpuBlocks>(new CpuBlocks(std::make_unique<Impl>(spec, **kernels, count)));
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "no host memory for CPU building blocks");
}

void CpuBlocks::bind(const Weights& weights) {
  impl_->experts = weights.experts;
  impl_->experts.insert(impl_->experts.end(), weights.shared.begin(), weights.shared.end());
}

std::size_t CpuBlocks::workspace_bytes(std::int64_t) const noexcept {
  return Layout(impl_->spec.all_experts(), impl_->team.size()).total_bytes;
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
        for (int m = 0; m < t.rows; ++m)
          store_h(spec, kernels, t, sums, m,
                  static_cast<std::uint16_t*>(a.h) + (first + m) * h_stride + t.first_output);
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
