#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// The engine: create → create_layer → prepare → bind → forward.
namespace varmoe {

enum class LogLevel : std::uint8_t { trace, debug, info, warn, error, off };
/// Receives one line at a time, without newline; may be called from any thread.
using LogCallback = std::function<void(LogLevel, std::string_view)>;

enum class CacheMode : std::uint8_t { rw, ro, off };
enum class JitMode : std::uint8_t {
  on,           ///< a missing kernel is compiled
  cached_only,  ///< a missing kernel is an error (not_prepared)
};

enum class TuneMode : std::uint8_t {
  replay,  ///< tuning records are looked up and used; nothing is measured
  off,     ///< no records: configs are the cost model's
  online,  ///< measure while serving: not in this version (unsupported)
};

/// The device number of the CPU backend.
inline constexpr int kCpuDevice = -1;

/// Everything left empty or unset falls back to the VARMOE_* variable, then to the default.
struct EngineOptions {
  int device = 0;                          ///< CUDA device ordinal, or kCpuDevice
  std::string cache_dir;                   ///< writable cubin cache; VARMOE_CACHE_DIR
  std::optional<CacheMode> cache_mode;     ///< VARMOE_CACHE
  std::optional<std::uint64_t> cache_max_bytes;  ///< VARMOE_CACHE_MAX_SIZE
  std::vector<std::string> cubin_path;     ///< read-only prebuilt layers, first wins; VARMOE_CUBIN_PATH
  std::optional<JitMode> jit;              ///< VARMOE_JIT
  std::string nvrtc_lib;                   ///< VARMOE_NVRTC_LIB
  std::string dump_dir;                    ///< VARMOE_DUMP_DIR
  int compile_threads = 0;                 ///< VARMOE_COMPILE_THREADS; 0: one per core
  std::vector<std::string> tuning_db;      ///< folders or files of tuning records, absolute paths, first wins; before VARMOE_TUNING_DB
  std::optional<TuneMode> tune;            ///< VARMOE_TUNE; default replay
  std::string fc1_config, fc2_config;      ///< tile overrides; VARMOE_FC1_CONFIG, VARMOE_FC2_CONFIG, VARMOE_CONFIG
  /// The same of a TrainingLayer's backward products: dout·W2 and dz·W1 (the grammar of fc1_config), dW1 and dW2
  /// ("schedule=wgmma,block_m=128,block_n=256,stages=4,gather=fused"); VARMOE_DH_CONFIG, …
  std::string dh_config, dx_config, dw1_config, dw2_config;
  int cpu_threads = 0;                     ///< CPU backend only; 0: one per core
  LogCallback log;                         ///< null: stderr
};

/// Monotonic counters of an engine.
struct Counters {
  std::uint64_t cache_hits = 0;      ///< kernels taken from memory, disk or a read-only layer
  std::uint64_t cache_misses = 0;
  std::uint64_t compiles = 0;
  std::uint64_t kernels_loaded = 0;  ///< distinct kernels resident on the device
  std::uint64_t module_bytes = 0;    ///< bytes of the cubins loaded
  std::uint64_t forwards = 0;
  std::uint64_t configs_override = 0, configs_tuned = 0, configs_predicted = 0;
};

struct LayerOptions {
  /// Upper bound of the workspace; tokens are then processed in chunks. 0: no bound.
  std::size_t max_workspace_bytes = 0;
  /// Upper bound of SMs that a launch occupies (MPS, green contexts). 0: all. A config with cluster=2 takes two at least.
  int max_sms = 0;
};

struct PrepareOptions {
  /// Token counts to prepare for; each is rounded up to its token bucket. Empty: all buckets of [min_tokens, max_tokens].
  std::vector<std::int64_t> tokens;
  std::int64_t min_tokens = 1;
  std::int64_t max_tokens = 4096;
  /// Called after each kernel with (done, total), from a compile thread.
  std::function<void(std::size_t, std::size_t)> progress = nullptr;
  /// Set to true from any thread to stop between kernels; prepare then returns `cancelled`, keeping what is done.
  const std::atomic<bool>* cancel = nullptr;
};

/// One kernel of a prepare.
struct KernelReport {
  std::string stage;          ///< "sort_single", "sort_count", "sort_scatter", "gather", "fc1", "fc2", "combine", "whole_layer"; "route"; "align_single", …
  std::string name;           ///< entry name: stage, config, key digest
  std::string key;            ///< cubin key, hex
  std::string config;         ///< text of its config
  std::vector<std::int64_t> token_buckets;  ///< buckets that use it
  ConfigSource config_source = ConfigSource::predicted;
  bool runtime_width = false;
  bool hit = false;           ///< taken from a cache, not compiled
  std::string origin;         ///< "memory", "disk", "readonly:<path>", "compiled"
  int registers = 0;          ///< per thread
  int spill_bytes = 0;        ///< stores + loads
  int static_smem_bytes = 0;
  int dynamic_smem_bytes = 0;
  double compile_ms = 0;      ///< of the compile that made it, now or earlier
  std::string error;          ///< empty when it is ready
};

struct PrepareReport {
  std::vector<KernelReport> kernels;
  double total_ms = 0;
};

enum class IdType : std::uint8_t { int32, int64 };

/// What becomes of the rows of `out` whose token has no expert here (expert parallelism).
enum class AbsentTokens : std::uint8_t {
  write_zeros,  ///< zeroes are written; with accumulate, added
  untouched,    ///< neither read nor written
};

/// Arguments of one forward. Pointers are device pointers on a GPU engine, host pointers on the CPU engine.
struct ForwardArgs {
  std::int64_t tokens = 0;             ///< T; 0 is allowed and does nothing
  const void* x = nullptr;             ///< [T, H], spec dtype, 16-byte aligned
  std::int64_t x_stride = 0;           ///< elements between rows; 0: H; multiple of 8
  const void* topk_ids = nullptr;      ///< [T, k] contiguous; −1 or ≥ E contributes zero
  IdType id_type = IdType::int32;
  const float* topk_weights = nullptr; ///< [T, k] contiguous, fp32
  void* out = nullptr;                 ///< [T, H], spec dtype, 16-byte aligned; must not overlap x
  std::int64_t out_stride = 0;         ///< elements between rows; 0: H; multiple of 8
  bool accumulate = false;             ///< out += result instead of out = result
  /// Optional device-side token count n ≤ T: rows at and beyond n are neither read nor written. int32, 4-byte aligned.
  const std::int32_t* token_count = nullptr;
  /// Optional, expert parallelism: topk_ids name experts of the whole model, and this maps them to the layer's. Device-side int32
  /// [num_global_experts], 4-byte aligned: the layer's expert 0 … E−1, or anything else where another rank has it. Then an id contributes
  /// zero when it is outside 0 … num_global_experts−1 or mapped to none. Read on every forward: experts may move without a prepare.
  const std::int32_t* expert_map = nullptr;
  std::int64_t num_global_experts = 0; ///< entries of expert_map, 1 … 2^31−1; ignored without one
  AbsentTokens absent_tokens = AbsentTokens::write_zeros;
  void* workspace = nullptr;           ///< 256-byte aligned; needs no initial contents; not shared by concurrent forwards
  std::size_t workspace_bytes = 0;     ///< ≥ Layer::workspace_bytes(tokens)
  void* stream = nullptr;              ///< CUstream / cudaStream_t; null: the legacy default stream. CPU: ignored
};

/// Arguments of Layer::up, the up-projection alone: h = activation(x · W1ᵀ) of each row, rows by expert. Pointers as in
/// ForwardArgs. S: LayerSpec::num_shared(), whose experts count as the last ones and as each token's last slots.
struct UpArgs {
  std::int64_t tokens = 0;             ///< T; 0 is allowed and does nothing
  const void* x = nullptr;             ///< [T, H], spec dtype, 16-byte aligned
  std::int64_t x_stride = 0;           ///< elements between rows; 0: H; multiple of 8
  const void* topk_ids = nullptr;      ///< [T, k] contiguous; −1 or ≥ E makes no row
  IdType id_type = IdType::int32;
  /// [T·(k + S), h_stride], spec dtype, 16-byte aligned; must overlap neither x nor the workspace. Row r of expert e holds I_e
  /// columns; those up to the next multiple of 64 may be overwritten, and neither the others nor rows beyond the last are.
  void* h = nullptr;
  /// Elements between rows; multiple of 8, at least the widest of all experts rounded up to 64. 0: that.
  std::int64_t h_stride = 0;
  std::int32_t* expert_offsets = nullptr;  ///< [E + S + 1]: expert e has rows offsets[e] … offsets[e + 1]; the last: all rows
  std::int32_t* slot_row = nullptr;        ///< [T, k + S]: row of each slot, or −1; in ascending slot within an expert
  /// Optional device-side token count n ≤ T, as ForwardArgs has it: slots at and beyond n are not written.
  const std::int32_t* token_count = nullptr;
  void* workspace = nullptr;           ///< as ForwardArgs
  std::size_t workspace_bytes = 0;     ///< ≥ Layer::workspace_bytes(tokens)
  void* stream = nullptr;
};

class Layer;
class Router;
class BlockAligner;
class RouterStatistics;
class RouterGradient;
class TrainingLayer;
class Blocks;
struct RouterSpec;
struct AlignSpec;
struct RouterStatisticsSpec;
struct RouterGradientSpec;
struct TrainingOptions;
struct BlocksOptions;
struct EngineAccess;

/// One device's kernels and caches. Thread-safe. Keep it alive while any captured graph of its layers is used.
class VARMOE_API Engine {
 public:
  static Result<Engine> create(const EngineOptions& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  Result<Layer> create_layer(const LayerSpec& spec, const LayerOptions& options = {});
  /// Logits → topk_ids and topk_weights (varmoe/router.hpp).
  Result<Router> create_router(const RouterSpec& spec);
  /// moe_align_block_size (varmoe/router.hpp).
  Result<BlockAligner> create_block_aligner(const AlignSpec& spec);
  /// Counts and auxiliary losses of a router, for trainers (varmoe/router_statistics.hpp).
  Result<RouterStatistics> create_router_statistics(const RouterStatisticsSpec& spec);
  /// From the gradients of topk_weights and of auxiliary losses to those of logits, x and the router's weight (varmoe/router_gradient.hpp).
  Result<RouterGradient> create_router_gradient(const RouterGradientSpec& spec);
  /// A layer with its backward pass (varmoe/training.hpp).
  Result<TrainingLayer> create_training_layer(const LayerSpec& spec, const TrainingOptions& options);
  /// A layer's parts, each usable alone (varmoe/blocks.hpp).
  Result<Blocks> create_blocks(const LayerSpec& spec, const BlocksOptions& options);
  Counters counters() const noexcept;
  /// "NVIDIA H200, sm_90a, 132 SMs, driver 13.0" or "CPU, 8 threads".
  std::string device_description() const;

  struct Impl;

 private:
  friend struct EngineAccess;
  explicit Engine(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

/// A layer on an engine. Layers may outlive the Engine object (they share its state). Thread-safe: `forward` may run
/// concurrently with itself (distinct workspaces) and with `prepare`; `bind` must not run concurrently with `forward`.
class VARMOE_API Layer {
 public:
  Layer(Layer&&) noexcept;
  Layer& operator=(Layer&&) noexcept;
  ~Layer();

  const LayerSpec& spec() const noexcept;

  /// Compiles or loads every kernel of the named buckets, in parallel; all kernels are resident when it returns.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});

  /// Records where the weights lie (one small device table). May be repeated after the weights moved: the table is written in
  /// place, so captured graphs follow it, and earlier forwards must have finished.
  Status bind(const Weights& weights);

  /// Bytes of workspace that a forward of `tokens` needs (monotonic in tokens, until max_workspace_bytes bounds it).
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;

  /// Enqueues the layer on args.stream. On the prepared path: no host synchronisation, allocation, file access, lock, log
  /// line, environment look-up or compile; can be captured in a CUDA graph. Without `prepare`, the first use of a bucket
  /// prepares it there and then (one log line), unless the stream is capturing: then any prepared bucket serves, else
  /// `not_prepared`. Once `prepare` has run, forward compiles nothing: the nearest prepared bucket serves any T.
  Status forward(const ForwardArgs& args) noexcept;

  /// Enqueues sort and fc1 alone, with the kernels, rules and promises of `forward`: for those who do something of their own
  /// between the projections. All tokens go in one piece: more than max_workspace_bytes allows at a time are `unsupported`.
  Status up(const UpArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit Layer(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
