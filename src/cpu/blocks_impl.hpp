#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/blocks.hpp"
#include "cpu/gradients.hpp"
#include "cpu/kernels.hpp"
#include "cpu/segments.hpp"
#include "cpu/slots.hpp"
#include "cpu/team.hpp"
#include "cpu/tiles.hpp"

/// What the building blocks on the CPU share: forward (blocks.cpp) and backward (blocks_backward.cpp).
namespace varmoe::cpu {

inline const std::uint16_t* elements(const void* p) {
  return static_cast<const std::uint16_t*>(p);
}

/// Where each part of a workspace lies; offsets in bytes, 256-byte aligned.
struct BlocksLayout {
  std::size_t begin = 0, count = 0, rows = 0, tasks = 0, scratch = 0, total_bytes = 0;
  BlocksLayout(std::int64_t experts, int threads) noexcept {
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

/// Where a row of z and dz has its halves, in elements. Without a gate there is `up` alone, at 0.
struct BlockRow {
  std::int64_t whole, up;  ///< columns of one half with the zeros behind them; where the second half begins
  BlockRow(const LayerSpec& spec, std::int64_t expert) noexcept
      : whole((spec.width_of(expert) + 63) / 64 * 64), up(spec.gated() ? whole : 0) {}
};

struct CpuBlocks::Impl {
  Impl(LayerSpec s, GradientType type, const Kernels& k, int threads)
      : spec(std::move(s)), gradient_type(type), kernels(k), team(threads) {}

  /// up or down: `tile(t, begin, scratch)` for every tile of rows and outputs; `begin`: the first row of its
  /// expert less that of the numbering without gaps, in which tiles are.
  template <class OutputsOf, class OnTile>
  void products(const RowsByExpert& by_expert, void* workspace, std::int64_t depth, int widest_tile,
                const OutputsOf& outputs_of, const OnTile& on_tile) noexcept {
    const std::int64_t all = spec.all_experts();
    const BlocksLayout layout(all, team.size());
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
  GradientType gradient_type;
  const Kernels& kernels;
  std::vector<ExpertWeights> experts;  ///< routed, then shared
  Gradients gradients;
  Team team;
};

}  // namespace varmoe::cpu
