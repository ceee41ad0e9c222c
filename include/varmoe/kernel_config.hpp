#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"

/// What the tuner chooses, per kernel. Any config inside the config space is right for any number of tokens.
namespace varmoe {

/// Which main loop a GEMM kernel has.
enum class Schedule : std::uint8_t {
  mma_sync,        ///< portable: mma.sync + ldmatrix + cp.async, sm_80 and newer
  wgmma,           ///< Hopper (sm_90a): wgmma, copy engine, two warpgroups on one tile
  wgmma_pingpong,  ///< Hopper: two warpgroups on alternate tiles, one storing while the other multiplies
};

/// How fc1 reads its rows of x.
enum class GatherMode : std::uint8_t {
  fused,  ///< straight from x through the row index
  copy,   ///< from a copy made by the gather kernel
};

/// Config of a grouped GEMM (fc1 or fc2). The wgmma schedules take block_k = 64, warps_m = 1, warps_n = 8 (ping-pong: 2 and 4) and
/// ctas_per_sm = 1; row_step and cluster are theirs alone.
struct GemmConfig {
  Schedule schedule = Schedule::mma_sync;
  std::int32_t block_m = 128;      ///< routed rows per tile
  std::int32_t block_n = 128;      ///< weight rows per tile; a gated fc1 spends half on gate and half on up
  std::int32_t block_k = 64;       ///< elements per pipeline stage along K
  std::int32_t stages = 3;         ///< pipeline depth
  std::int32_t warps_m = 2;        ///< warps along block_m
  std::int32_t warps_n = 2;        ///< warps along block_n
  std::int32_t ctas_per_sm = 1;    ///< resident blocks per SM that registers are limited for
  std::int32_t raster = 8;         ///< row tiles per group of the L2 raster; 1 walks each row tile alone
  /// Rows of a tile are multiplied in steps of this many; an expert's tiles are equally tall but for it.
  std::int32_t row_step = 16;
  std::int32_t cluster = 1;  ///< 2: two blocks on neighbouring row tiles of an expert share each weight tile by multicast
  GatherMode gather = GatherMode::fused;  ///< fc1 only
  bool operator==(const GemmConfig&) const = default;
};

struct SortConfig {
  std::int32_t block_threads = 1024;  ///< multiple of 32
  /// Up to this many routed rows one launch of one block sorts; above, two launches of many blocks.
  std::int32_t single_block_rows = 3072;
  bool operator==(const SortConfig&) const = default;
};

struct GatherConfig {
  std::int32_t block_threads = 256;
  bool operator==(const GatherConfig&) const = default;
};

struct CombineConfig {
  std::int32_t block_threads = 256;
  bool operator==(const CombineConfig&) const = default;
};

/// The whole layer in one launch, for few tokens: sm_90 and newer, nk weights, not batch_invariant.
struct OneLaunchConfig {
  std::int32_t max_tokens = 0;  ///< up to this many tokens (8 or 16) one launch does it all; 0: never
  std::int32_t teams = 2;       ///< of four warps, each with a slot for weights under way: 1 or 2
  bool operator==(const OneLaunchConfig&) const = default;
};

/// Configs of every kernel of a layer's forward.
struct LayerConfig {
  GemmConfig fc1, fc2;
  SortConfig sort;
  GatherConfig gather;
  CombineConfig combine;
  OneLaunchConfig one_launch;  ///< the kernels above serve more tokens than its
  bool operator==(const LayerConfig&) const = default;
};

/// Where a config came from, best first: how a look-up was answered.
enum class ConfigSource : std::uint8_t { override_, tuned, predicted };

/// "schedule=wgmma,block_m=256,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,raster=8,row_step=16,cluster=1,gather=fused": the grammar of
/// VARMOE_FC1_CONFIG, of the API and of the command line. Every key, in this order.
VARMOE_API std::string to_string(const GemmConfig& config);

/// A partial config: keys left out keep the base's value (but schedule=mma_sync alone means cluster=1 as well), and an optional token range "tokens=1-64" limits where it applies.
struct GemmOverride {
  std::string text;  ///< as given, validated
  std::int64_t min_tokens = 0;
  std::int64_t max_tokens = INT64_MAX;
  /// The base with the named keys replaced.
  VARMOE_API GemmConfig apply(GemmConfig base) const;
};

/// Parses the grammar above; several overrides are separated by ';'. An error names key, value and choices.
VARMOE_API Result<std::vector<GemmOverride>> parse_gemm_overrides(std::string_view text);

VARMOE_API const char* to_string(Schedule) noexcept;
VARMOE_API const char* to_string(GatherMode) noexcept;
VARMOE_API const char* to_string(ConfigSource) noexcept;

}  // namespace varmoe
