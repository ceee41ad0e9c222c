#pragma once

#include <cstdint>
#include <vector>

#include "model/device_profile.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// Which configs exist. A config outside is rejected before anything is compiled.
namespace varmoe::model {

/// Bumped by hand when the meaning of a config changes; part of tuning records.
inline constexpr int kConfigSpaceVersion = 5;

enum class GemmStage : std::uint8_t { fc1, fc2 };

/// Whether the schedule is one of Hopper's.
constexpr bool uses_wgmma(const GemmConfig& config) {
  return config.schedule != Schedule::mma_sync;
}
/// wgmma: what one consumer warpgroup's epilogue stages its rows in.
std::int64_t wgmma_staging_bytes(const LayerSpec& spec, GemmStage stage, const GemmConfig& config);
/// Dynamic shared memory of a wgmma kernel: kernels_src/mma/sm90_pipeline.cuh lays it out, and the emitted
/// source asserts that this agrees.
std::int64_t wgmma_smem_bytes(const LayerSpec& spec, GemmStage stage, const GemmConfig& config);
/// h's row length in elements: the widest expert's, in whole stages of 64 (wgmma reads fc2's K by the stage).
constexpr std::int64_t h_columns(std::int64_t max_width) {
  return (max_width + 63) / 64 * 64;
}

/// Dynamic shared memory of a GEMM kernel's pipeline: stages·(block_m + block_n)·block_k·2 bytes.
std::int64_t gemm_smem_bytes(const GemmConfig& config);

/// Shared memory that a GEMM kernel may use beside its pipeline (16 bytes a tile row for indices and weights,
/// at least 512); set aside when configs are checked.
std::int64_t gemm_extra_smem_bytes(const GemmConfig& config);
/// What the hardware takes of an SM's shared memory for each resident block.
inline constexpr std::int64_t kReservedSmemPerBlock = 1024;
/// Registers a thread needs beside its accumulators: fragments, addresses, loop state.
inline constexpr std::int64_t kGemmExtraRegisters = 96;
inline constexpr std::int64_t kMaxAccumulators = 128;
/// wgmma: what leaves an epilogue without spills. Gated: fc1 of nk weights by two groups on one tile. Erf:
/// fc1 with either exact GELU.
inline constexpr std::int64_t kMaxWgmmaAccumulators = 160, kMaxWgmmaGatedAccumulators = 192,
                              kMaxWgmmaErfAccumulators = 144;

/// Accumulators (fp32 registers) of one thread: block_m·block_n / threads.
std::int64_t accumulators_per_thread(const GemmConfig& config);
/// Blocks that an SM of this device holds at once, by shared memory, registers and threads; 0: none.
std::int32_t resident_blocks(const GemmConfig& config, const DeviceProfile& device);
/// Output columns of fc1 or fc2 that a tile covers: block_n, or half of it for a gated fc1 (half gate, half
/// up).
std::int32_t tile_columns(const LayerSpec& spec, GemmStage stage, const GemmConfig& config);

/// Inside the space and the device's limits; invalid_config names the field, its value, and the choices.
/// each field alone: gemm_fields().
/// wgmma (sm_90a): block_m a multiple of row_step; block_k 64; warps_m and warps_n say who works on what: 1
/// and 8, ping-pong 2 and 4;
///   ctas_per_sm 1; cluster 1 or 2; block_n a multiple of 128 (ping-pong 64), 256 at most; ping-pong 128 at most; at most
///   kMaxWgmma…Accumulators accumulators a thread; whole stages of h in each tile of fc1 where widths are no
///   multiples of 64; a gated fc1 of kn weights whose gate and up lie apart: twice that multiple; ring,
///   staging and tables within smem_per_block.
/// mma_sync (cluster 1):
///  - each field alone: block_m ∈ {16,32,64,128,256}; block_n a multiple of 16, 32…256; block_k ∈
///  {32,64,128}; stages 2…8;
///    warps_m ∈ {1,2,4}; warps_n ∈ {1,2,4,8}; ctas_per_sm 1…8; raster 1…64;
///  - 2 to 8 warps (64…256 threads); block_m a multiple of 16·warps_m; block_n a multiple of 16·warps_n (so
///  that a gated
///    fc1's halves give each warp a multiple of 8 columns);
///  - kn weights: the columns that one k row of the tile spans contiguously are a multiple of 32: block_n, or
///  block_n / 2
///    for a gated fc1 whose gate and up lie apart;
///  - at most kMaxAccumulators accumulators a thread, 47 with 64 threads; at most 128 columns a warp (more
///  would spill);
///  - kn weights: 3 stages from 96 accumulators on; where a warp's columns are no power of two, at most 48
///  and block_k ≤ 64;
///  - not for batch_invariant layers on Hopper: one main loop for every token count;
///  - pipeline and extra shared memory within smem_per_block, and ctas_per_sm blocks within the SM's shared
///  memory (each
///    with its reserved KiB), registers ((accumulators + kGemmExtraRegisters) a thread) and threads.
Status check_gemm_config(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                         const DeviceProfile& device);
/// The part of check_gemm_config that no device decides: what a kernel can be emitted for.
Status check_gemm_shape(const LayerSpec& spec, GemmStage stage, const GemmConfig& config);
/// Both GEMMs; fc2 by wgmma with widths that are no multiples of 64: fc1 by wgmma too, with tiles of a
/// multiple of 64 columns of h, since it writes the zeroes that fc2's last stage reads; block_threads of
/// sort, gather and combine a multiple of 32 from 32 to 1024; single_block_rows from 0 to
/// kMaxSingleBlockRows; one_launch as check_one_launch has it.
Status check_layer_config(const LayerSpec& spec, const LayerConfig& config, const DeviceProfile& device);
inline constexpr std::int32_t kMaxSingleBlockRows = 65536;

/// The most candidates that gemm_candidates gives.
inline constexpr std::size_t kMaxGemmCandidates = 600;
/// The configs worth trying: a grid over the space, without what is dominated (thin warp tiles beside square
/// ones, shallow pipelines for short tiles), in a fixed order. Each passes check_gemm_config. Never empty for
/// a valid spec and a device with at least 48 KiB of shared memory per block.
std::vector<GemmConfig> gemm_candidates(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device);

}  // namespace varmoe::model
