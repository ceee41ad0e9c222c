#include "model/config_space.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/gemm_fields.hpp"
#include "model/one_launch.hpp"

namespace varmoe::model {
namespace {

constexpr std::int64_t kElementBytes = 2;
constexpr std::int32_t kMinThreads = 64, kMaxThreads = 256;
constexpr std::int32_t kMaxWarpColumns = 128;

Error bad_config(std::string message) {
  return Error(ErrorCode::invalid_config, std::move(message));
}

std::int64_t threads(const GemmConfig& c) {
  return std::int64_t{32} * c.warps_m * c.warps_n;
}

/// Columns that one k row of a kn tile spans contiguously; 0 when the stage's weights are nk.
std::int32_t contiguous_columns(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  const WeightLayout layout = stage == GemmStage::fc1 ? spec.fc1_layout : spec.fc2_layout;
  if (layout != WeightLayout::kn) return 0;
  const bool apart = stage == GemmStage::fc1 && spec.gated() && spec.gate_order != GateOrder::interleaved;
  return apart ? c.block_n / 2 : c.block_n;
}

/// Each field alone.
Status check_fields(const GemmConfig& c) {
  if (c.schedule > Schedule::wgmma_pingpong) {
    return bad_config(fmt::format("schedule is {}; must be mma_sync, wgmma or wgmma_pingpong",
                                  static_cast<int>(c.schedule)));
  }
  if (c.gather > GatherMode::copy) {
    return bad_config(fmt::format("gather is {}; must be fused or copy", static_cast<int>(c.gather)));
  }
  for (const GemmField& field : gemm_fields()) {
    const std::int32_t value = c.*field.member;
    if (!field.takes(value))
      return bad_config(fmt::format("{} is {}; must be {}", field.key, value, field.allowed()));
  }
  return {};
}

/// Weight rows that one consumer warpgroup of a wgmma kernel multiplies.
std::int32_t wgmma_group_rows(const GemmConfig& c) {
  return c.schedule == Schedule::wgmma_pingpong ? c.block_n : c.block_n / 2;
}

/// The one value that a field has in a schedule.
Status check_fixed(const GemmConfig& c, const char* field, std::int32_t value, std::int32_t fixed) {
  if (value == fixed) return {};
  return bad_config(
      fmt::format("{} is {}; schedule={} takes {} only", field, value, to_string(c.schedule), fixed));
}

bool whole_stages(const LayerSpec& spec) {
  const auto classes = width_classes(spec);
  return std::all_of(classes.begin(), classes.end(), [](const WidthClass& c) { return c.width % 64 == 0; });
}

/// What leaves an epilogue without spills, found by compiling every candidate in every layout.
std::int64_t most_wgmma_accumulators(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  if (stage == GemmStage::fc2) return kMaxWgmmaAccumulators;
  if (spec.activation == Activation::gelu_erf || spec.activation == Activation::gelu_erf_mul)
    return kMaxWgmmaErfAccumulators;
  const bool plain_sums = !spec.bias && !spec.weight_on_input;
  const bool roomy =
      spec.gated() && c.schedule == Schedule::wgmma && spec.fc1_layout == WeightLayout::nk && plain_sums;
  return roomy ? kMaxWgmmaGatedAccumulators : kMaxWgmmaAccumulators;
}

/// What the fields of a wgmma config must be together, on any device.
Status check_wgmma_shape(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  const bool pingpong = c.schedule == Schedule::wgmma_pingpong;
  if (auto s = check_fixed(c, "block_k", c.block_k, 64); !s) return s;
  if (auto s = check_fixed(c, "warps_m", c.warps_m, pingpong ? 2 : 1); !s) return s;
  if (auto s = check_fixed(c, "warps_n", c.warps_n, pingpong ? 4 : 8); !s) return s;
  if (auto s = check_fixed(c, "ctas_per_sm", c.ctas_per_sm, 1); !s) return s;
  if (c.block_m % c.row_step != 0) {
    return bad_config(fmt::format("block_m is {}; must be a multiple of row_step={}", c.block_m, c.row_step));
  }
  const bool apart = stage == GemmStage::fc1 && contiguous_columns(spec, stage, c) * 2 == c.block_n;
  const std::int32_t multiple = (pingpong ? 64 : 128) * (apart ? 2 : 1);
  if (c.block_n % multiple != 0) {
    return bad_config(fmt::format("block_n is {}; schedule={}{} takes multiples of {}", c.block_n,
                                  to_string(c.schedule), apart ? " with gate and up apart in kn weights" : "",
                                  multiple));
  }
  if (pingpong && c.block_n > 128) {
    return bad_config(fmt::format("block_n is {}; schedule=wgmma_pingpong takes at most 128", c.block_n));
  }
  if (stage == GemmStage::fc1 && tile_columns(spec, stage, c) % 64 != 0 && !whole_stages(spec)) {
    return bad_config(
        fmt::format("block_n is {}: tiles of {} columns of h leave parts of its last 64 unwritten where an "
                    "expert's width is no "
                    "multiple of 64; must be a multiple of 128",
                    c.block_n, tile_columns(spec, stage, c)));
  }
  const std::int64_t most = most_wgmma_accumulators(spec, stage, c);
  if (accumulators_per_thread(c) > most) {
    return bad_config(fmt::format("block_m={},block_n={} are {} accumulators a thread; at most {}", c.block_m,
                                  c.block_n, accumulators_per_thread(c), most));
  }
  return {};
}

/// kn tiles keep more addresses alive than nk ones: what of them spills, found by compiling every candidate
/// (tests/kernels/sweep_configs.cpp).
Status check_kn_shape(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  if (contiguous_columns(spec, stage, c) == 0) return {};
  if (accumulators_per_thread(c) >= 96 && c.stages < 3) {
    return bad_config(fmt::format("stages is {}; kn weights with {} accumulators a thread need at least 3",
                                  c.stages, accumulators_per_thread(c)));
  }
  // Fragment addresses are stepped by xor only where a warp's columns are a power of two.
  const std::int32_t columns = c.block_n / c.warps_n;
  if ((columns & (columns - 1)) != 0 && (columns > 48 || c.block_k > 64)) {
    return bad_config(fmt::format(
        "block_n={},block_k={} with warps_n={}: for kn weights a warp's {} columns, no power of two, "
        "may be 48 at most, and block_k 64",
        c.block_n, c.block_k, c.warps_n, columns));
  }
  return {};
}

/// What the fields must be together, on any device.
Status check_shape(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  if (uses_wgmma(c)) return check_wgmma_shape(spec, stage, c);
  if (auto s = check_fixed(c, "cluster", c.cluster, 1); !s) return s;
  if (c.block_m < 16 || (c.block_m & (c.block_m - 1)) != 0) {
    return bad_config(
        fmt::format("block_m is {}; schedule=mma_sync takes one of 16, 32, 64, 128, 256", c.block_m));
  }
  if (threads(c) < kMinThreads || threads(c) > kMaxThreads) {
    return bad_config(fmt::format("warps_m={},warps_n={} are {} threads; must be from {} to {}", c.warps_m,
                                  c.warps_n, threads(c), kMinThreads, kMaxThreads));
  }
  if (c.block_m % (16 * c.warps_m) != 0) {
    return bad_config(fmt::format("block_m is {}; with warps_m={} must be a multiple of {}", c.block_m,
                                  c.warps_m, 16 * c.warps_m));
  }
  if (c.block_n % (16 * c.warps_n) != 0) {
    return bad_config(fmt::format("block_n is {}; with warps_n={} must be a multiple of {}", c.block_n,
                                  c.warps_n, 16 * c.warps_n));
  }
  if (const std::int32_t columns = contiguous_columns(spec, stage, c); columns % 32 != 0) {
    return bad_config(
        fmt::format("block_n is {}; kn weights would be read {} columns at a time, which must be a multiple "
                    "of 32",
                    c.block_n, columns));
  }
  if (auto status = check_kn_shape(spec, stage, c); !status) return status;
  // Wide warp tiles keep too many addresses and column blocks alive beside their accumulators: they spill.
  if (c.block_n / c.warps_n > kMaxWarpColumns) {
    return bad_config(fmt::format("block_n is {}; with warps_n={} a warp has {} columns; at most {}",
                                  c.block_n, c.warps_n, c.block_n / c.warps_n, kMaxWarpColumns));
  }
  if (threads(c) < 128 && accumulators_per_thread(c) >= 48) {
    return bad_config(fmt::format(
        "block_m={},block_n={} over {} threads are {} accumulators a thread; 48 and more need 128 "
        "threads",
        c.block_m, c.block_n, threads(c), accumulators_per_thread(c)));
  }
  if (accumulators_per_thread(c) > kMaxAccumulators) {
    return bad_config(
        fmt::format("block_m={},block_n={} over {} threads are {} accumulators a thread; at most {}",
                    c.block_m, c.block_n, threads(c), accumulators_per_thread(c), kMaxAccumulators));
  }
  return {};
}

Status check_wgmma_device(const LayerSpec& spec, GemmStage stage, const GemmConfig& c,
                          const DeviceProfile& device) {
  if (device.compute_major != 9) {
    return bad_config(fmt::format("schedule={} needs a Hopper GPU (sm_90a); {} is {}", to_string(c.schedule),
                                  device.name, device.arch));
  }
  const std::int64_t smem = wgmma_smem_bytes(spec, stage, c);
  if (smem > device.smem_per_block) {
    return bad_config(
        fmt::format("stages={} of block_m={},block_n={} take {} bytes of shared memory; a block of {} has {}",
                    c.stages, c.block_m, c.block_n, smem, device.name, device.smem_per_block));
  }
  return {};
}

Status check_device(const LayerSpec& spec, GemmStage stage, const GemmConfig& c,
                    const DeviceProfile& device) {
  if (uses_wgmma(c)) return check_wgmma_device(spec, stage, c, device);
  if (spec.batch_invariant && device.compute_major == 9) {
    return bad_config(
        "schedule=mma_sync is not for batch_invariant layers on a Hopper GPU, whose other token counts run "
        "on "
        "wgmma: the two add up a step of K in different orders; must be wgmma or wgmma_pingpong");
  }
  const std::int64_t smem = gemm_smem_bytes(c) + gemm_extra_smem_bytes(c);
  if (smem > device.smem_per_block) {
    return bad_config(fmt::format(
        "stages={} of block_m={},block_n={},block_k={} take {} bytes of shared memory; a block of "
        "{} has {}",
        c.stages, c.block_m, c.block_n, c.block_k, smem, device.name, device.smem_per_block));
  }
  const auto over = [&](std::string_view what, std::int64_t needed, std::int64_t available) {
    return bad_config(fmt::format("ctas_per_sm is {}; that many blocks take {} {} of an SM, and {} has {}",
                                  c.ctas_per_sm, needed, what, device.name, available));
  };
  const std::int64_t blocks = c.ctas_per_sm;
  if (blocks * (smem + kReservedSmemPerBlock) > device.smem_per_sm) {
    return over("bytes of shared memory", blocks * (smem + kReservedSmemPerBlock), device.smem_per_sm);
  }
  const std::int64_t registers = (accumulators_per_thread(c) + kGemmExtraRegisters) * threads(c);
  if (blocks * registers > device.regs_per_sm)
    return over("registers", blocks * registers, device.regs_per_sm);
  if (blocks * threads(c) > device.threads_per_sm)
    return over("threads", blocks * threads(c), device.threads_per_sm);
  return {};
}

Status check_block_threads(const char* kernel, std::int32_t block_threads) {
  if (block_threads >= 32 && block_threads <= 1024 && block_threads % 32 == 0) return {};
  return bad_config(
      fmt::format("{}.block_threads is {}; must be a multiple of 32 from 32 to 1024", kernel, block_threads));
}

}  // namespace

std::int64_t gemm_smem_bytes(const GemmConfig& c) {
  return std::int64_t{c.stages} * (std::int64_t{c.block_m} + c.block_n) * c.block_k * kElementBytes;
}

std::int64_t gemm_extra_smem_bytes(const GemmConfig& c) {
  return std::max(std::int64_t{16} * c.block_m, std::int64_t{512});
}

std::int64_t wgmma_staging_bytes(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  const std::int64_t columns = wgmma_group_rows(c) / (stage == GemmStage::fc1 && spec.gated() ? 2 : 1);
  // epilogue/store_transposed.cuh: two buffers.
  return 2 * (columns > 64 ? 16 : 32) * columns * kElementBytes;
}

std::int64_t wgmma_smem_bytes(const LayerSpec& spec, GemmStage stage, const GemmConfig& c) {
  // mma/sm90_pipeline.cuh: ring, staging of two groups, four tile slots of 32 bytes, their row offsets,
  // barriers, a cluster's tickets.
  constexpr std::int64_t kSlots = 4;
  const bool gathers = stage == GemmStage::fc1 && c.gather == GatherMode::fused;
  const std::int64_t offsets = gathers ? kSlots * ((c.block_m + 31) / 32 * 32) * 4 : 0;
  return gemm_smem_bytes(c) + 2 * wgmma_staging_bytes(spec, stage, c) + kSlots * 32 + offsets +
         (2 * std::int64_t{c.stages} + (gathers ? 3 : 2) * kSlots + 2) * 8 +
         (c.cluster > 1 ? 8 * (8 + 4) : 0);
}

std::int64_t accumulators_per_thread(const GemmConfig& c) {
  if (c.schedule == Schedule::wgmma_pingpong) return std::int64_t{c.block_m} * c.block_n / 128;
  return std::int64_t{c.block_m} * c.block_n / std::max<std::int64_t>(threads(c), 1);
}

std::int32_t resident_blocks(const GemmConfig& c, const DeviceProfile& device) {
  if (uses_wgmma(c)) return 1;  // by registers: every one of the SM's is the block's
  const std::int64_t smem = gemm_smem_bytes(c) + gemm_extra_smem_bytes(c);
  if (smem > device.smem_per_block) return 0;
  const std::int64_t by_smem = device.smem_per_sm / (smem + kReservedSmemPerBlock);
  const std::int64_t by_threads = device.threads_per_sm / threads(c);
  const std::int64_t by_registers =
      device.regs_per_sm / ((accumulators_per_thread(c) + kGemmExtraRegisters) * threads(c));
  return static_cast<std::int32_t>(std::min({by_smem, by_threads, by_registers}));
}

std::int32_t tile_columns(const LayerSpec& spec, GemmStage stage, const GemmConfig& config) {
  return stage == GemmStage::fc1 && spec.gated() ? config.block_n / 2 : config.block_n;
}

Status check_gemm_shape(const LayerSpec& spec, GemmStage stage, const GemmConfig& config) {
  if (auto status = check_fields(config); !status) return status;
  return check_shape(spec, stage, config);
}

Status check_gemm_config(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                         const DeviceProfile& device) {
  if (auto status = check_gemm_shape(spec, stage, config); !status) return status;
  return check_device(spec, stage, config, device);
}

Status check_layer_config(const LayerSpec& spec, const LayerConfig& config, const DeviceProfile& device) {
  const auto named = [](const char* kernel, const Status& status) {
    return Error(status.error().code(), fmt::format("{}: {}", kernel, status.error().message()));
  };
  if (auto status = check_gemm_config(spec, GemmStage::fc1, config.fc1, device); !status)
    return named("fc1", status);
  if (auto status = check_gemm_config(spec, GemmStage::fc2, config.fc2, device); !status)
    return named("fc2", status);
  // Only fc1 by wgmma writes the zeroes that fc2's last stage reads beyond a width.
  if (uses_wgmma(config.fc2) && !uses_wgmma(config.fc1)) {
    for (const WidthClass& c : width_classes(spec)) {
      if (c.width % 64 == 0) continue;
      return bad_config(
          fmt::format("fc2: schedule={} with fc1: schedule=mma_sync takes expert widths that are multiples "
                      "of 64; one is {}",
                      to_string(config.fc2.schedule), c.width));
    }
  }
  if (auto status = check_block_threads("sort", config.sort.block_threads); !status) return status;
  if (auto status = check_block_threads("gather", config.gather.block_threads); !status) return status;
  if (auto status = check_block_threads("combine", config.combine.block_threads); !status) return status;
  if (config.sort.single_block_rows < 0 || config.sort.single_block_rows > kMaxSingleBlockRows) {
    return bad_config(fmt::format("sort.single_block_rows is {}; must be from 0 to {}",
                                  config.sort.single_block_rows, kMaxSingleBlockRows));
  }
  return check_one_launch(spec, config.one_launch, device);
}

}  // namespace varmoe::model
