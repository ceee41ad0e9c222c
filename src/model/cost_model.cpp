#include "model/cost_model.hpp"

#include <algorithm>
#include <cmath>

#include "model/gradient_config.hpp"
#include "model/one_launch.hpp"
#include "model/routing_stats.hpp"

/// A roofline of one persistent grouped GEMM, with what bends it: tiles that rows and columns do not fill,
/// waves that SMs do not share evenly, shared-memory and L2 traffic per FLOP, bytes in flight, and fixed
/// costs per tile and launch. It ranks configs; its seconds are estimates.
namespace varmoe::model {
namespace {

constexpr double kElementBytes = 2;
/// Bytes an SM moves per clock: shared memory; L2 (a fair share when all SMs read); L2 at most.
constexpr double kSmemBytesPerClock = 128 * 0.9, kL2BytesPerClock = 24, kL2PeakBytesPerClock = 48;
constexpr double kMemoryLatency = 0.75e-6;  ///< s, loaded DRAM
constexpr double kL2Latency = 0.5e-6;       ///< s, loaded L2
constexpr double kTileFill = 1.0e-6;        ///< s until a tile's first stage has arrived
constexpr double kTileEpilogue = 0.2e-6;    ///< s of an epilogue beside its stores
constexpr double kStageSyncClocks = 60;     ///< barrier and wait of one pipeline stage
constexpr double kFewWarpsFactor = 1.03;
constexpr double kFusedGatherFactor = 1.04;  ///< main loop that gathers its rows

/// wgmma kernels, fitted to 1492 timings of an H200 (docs/performance.md); clocks are the profile's, which
/// the GPU exceeds when it is cool.
constexpr double kWgmmaStage = 64;
/// Routed rows (T·k) from which on the Hopper schedules are ahead; with fewer the portable path's smaller
/// tiles fill the SMs better (docs/performance.md, entry 21).
constexpr std::int64_t kFewestWgmmaRows = 64;
constexpr double kWgmmaShareOfPeak = 0.89;
constexpr double kWgmmaSmemBytesPerClock = 145, kWgmmaL2BytesPerClock = 60;
constexpr double kGatheredRowsPerClock = 0.2;
constexpr double kEpilogueElementsPerClock = 27.5;
/// Where the activation's backward follows (fc1 of a backward layer): not fitted. Eight elements of a thread
/// are some 230 instructions, which four schedulers issue for 32 threads each, four times in five.
constexpr double kBackwardElementsPerClock = 0.8 * 4 * 32 * 8 / 230.0;
constexpr double kWgmmaTileStart =
    0.16e-6;  ///< s from a tile's last product to the next one's first, beside the stores
/// A ring of three stages refills one while two are in use: measured beside four of the same height.
constexpr std::int32_t kWgmmaShortRing = 3;
constexpr double kWgmmaShortRingFactor = 1.06;
/// Ping-pong tiles of 64 weight rows by many routed rows: 1.1 to 1.6 times what 128 rows take, in eight
/// layers where this model had them alike.
constexpr double kWgmmaSlimTileRows = 64, kWgmmaSlimTileFactor = 1.2;
constexpr double kWgmmaStageSync = 0.01e-6;  ///< s of a stage's barriers that nothing hides

/// Two limits that overlap imperfectly: near the larger one, above it where they are close. The fourth root
/// of the sum of fourth powers, by square roots: this is called a thousand times for one answer.
double overlap(double a, double b) {
  return std::sqrt(std::sqrt(a * a * a * a + b * b * b * b));
}
/// Two rates of which the smaller limits.
double bottleneck(double a, double b) {
  return 1 / overlap(1 / a, 1 / b);
}

double ceil_div(double a, double b) {
  return std::ceil(a / b);
}

/// One GEMM stage of a layer for one T: what does not depend on the config.
class StageModel {
 public:
  StageModel(const LayerSpec& spec, GemmStage stage, std::int64_t tokens, const DeviceProfile& device)
      : spec_(spec),
        stage_(stage),
        device_(device),
        rows_(static_cast<double>(tokens) * static_cast<double>(spec.slots_per_token())),
        tokens_(static_cast<double>(tokens)),
        routing_(spec, tokens),
        every_token_(RoutingStats::of_every_token(tokens)) {
    for (const WidthClass& c : classes_of_widths(spec.expert_widths))
      groups_.push_back({c.width, c.count, false});
    for (const WidthClass& c : classes_of_widths(spec.shared_widths))
      groups_.push_back({c.width, c.count, true});
  }

  /// Of the fc1 of a backward layer: what its epilogue does.
  void turn_back(int halves) {
    // z and dz beside w·h, which is where h would be.
    more_bytes_per_element_ = 2 * halves * kElementBytes;
    epilogue_elements_per_clock_ = kBackwardElementsPerClock;
  }

  double seconds(const GemmConfig& config) const {
    return uses_wgmma(config) ? wgmma_seconds(config) : mma_sync_seconds(config);
  }

 private:
  /// Experts of one width that get alike many rows: routed ones T·k/E on average, shared ones T each.
  struct Group {
    std::int64_t width, count;
    bool shared;
  };
  /// Row tiles of an expert of either kind, and the rows that such a tile holds.
  struct Tiling {
    RowTiles tiles[2];
    double rows[2] = {0, 0};
    const RowTiles& of(const Group& g) const { return tiles[g.shared ? 1 : 0]; }
  };
  Tiling tiling(const GemmConfig& config) const {
    Tiling t;
    for (const bool shared : {false, true}) {
      if (shared && spec_.shared_widths.empty()) break;
      const RoutingStats& stats = shared ? every_token_ : routing_;
      t.tiles[shared] = stats.row_tiles(config.block_m, config.cluster);
      const double mean = t.tiles[shared].mean;
      t.rows[shared] = mean > 0 ? std::min<double>(config.block_m, stats.mean() / mean) : 0;
    }
    return t;
  }
  /// Of the mean tile, where `tile_cols` columns make one.
  double mean_rows(const Tiling& tiling, double tile_cols) const;

  double mma_sync_seconds(const GemmConfig& config) const;
  double wgmma_seconds(const GemmConfig& config) const;
  double columns(const Group& c) const {
    return static_cast<double>(stage_ == GemmStage::fc1 ? c.width : spec_.hidden_size);
  }
  double depth(const Group& c) const {
    return static_cast<double>(stage_ == GemmStage::fc1 ? spec_.hidden_size : c.width);
  }
  double weight_rows_per_column() const { return stage_ == GemmStage::fc1 && spec_.gated() ? 2 : 1; }

  double dram_bytes(const GemmConfig& config, const Tiling& tiling) const;
  /// Time in which each SM does one k step of one tile, `warps` of all its blocks being resident.
  double step_seconds(const GemmConfig& config, double filled_rows, double warps) const;

  const LayerSpec& spec_;
  GemmStage stage_;
  const DeviceProfile& device_;
  std::vector<Group> groups_;
  double rows_, tokens_;
  RoutingStats routing_, every_token_;
  double more_bytes_per_element_ = 0;  ///< of the output
  double epilogue_elements_per_clock_ = kEpilogueElementsPerClock;
};

double StageModel::mean_rows(const Tiling& tiling, double tile_cols) const {
  if (spec_.shared_widths.empty()) return tiling.rows[0];
  double tiles = 0, rows = 0;
  for (const Group& c : groups_) {
    const double count = static_cast<double>(c.count) * std::ceil(columns(c) / tile_cols) * tiling.of(c).mean;
    tiles += count;
    rows += count * tiling.rows[c.shared];
  }
  return tiles > 0 ? rows / tiles : 0;
}

double StageModel::dram_bytes(const GemmConfig& config, const Tiling& tiling) const {
  double bytes = 0;
  double mean_width = 0, shared_width = 0;
  for (const Group& c : groups_) {
    const double hit = c.shared ? every_token_.hit_share() : routing_.hit_share();
    const double row_tiles = tiling.of(c).mean;
    const double expert = columns(c) * depth(c) * weight_rows_per_column() * kElementBytes;
    // The row tiles of a raster group share what L2 holds; an expert too large for it is read again by each
    // group.
    const double groups = std::max(1.0, row_tiles / hit / config.raster);
    const double reads = expert > 0.5 * static_cast<double>(device_.l2_bytes) ? groups : 1.0;
    bytes += static_cast<double>(c.count) * hit * expert * reads;
    if (c.shared) {
      shared_width += static_cast<double>(c.count * c.width);
    } else {
      mean_width += static_cast<double>(c.count * c.width) / static_cast<double>(spec_.num_experts());
    }
  }
  const double hidden = static_cast<double>(spec_.hidden_size);
  // fc1 reads x and writes h; fc2 reads h and writes rows of H.
  const double h =
      (rows_ - tokens_ * static_cast<double>(spec_.num_shared())) * mean_width + tokens_ * shared_width;
  const double input = stage_ == GemmStage::fc1 ? std::min(tokens_, rows_) * hidden : h;
  const double output = stage_ == GemmStage::fc1 ? h : rows_ * hidden;
  return bytes + (input + output) * kElementBytes + output * more_bytes_per_element_;
}

double StageModel::step_seconds(const GemmConfig& config, double filled_rows, double warps) const {
  const double m = config.block_m, n = config.block_n, k = config.block_k;
  const double mma = 2 * m * n * k / (device_.mma_sync_flops / device_.sm_count);
  // Each warp reads its rows of A and of B; the pipeline writes both once.
  const double smem_bytes = ((config.warps_n + 1) * m + (config.warps_m + 1) * n) * k * kElementBytes;
  const double smem = smem_bytes / (kSmemBytesPerClock * device_.sm_clock);
  const double l2 = (filled_rows + n) * k * kElementBytes / (kL2BytesPerClock * device_.sm_clock);
  // Few warps hide little of each other's latency; 8 are the measure.
  const double hiding = (warps + 1) / warps * (8.0 / 9.0);
  return overlap(overlap(mma, smem) * hiding, l2);
}

double StageModel::mma_sync_seconds(const GemmConfig& config) const {
  const double sms = device_.sm_count;
  const double tile_cols = tile_columns(spec_, stage_, config);
  const Tiling tiling = this->tiling(config);
  const double filled_rows = mean_rows(tiling, tile_cols);

  double tiles = 0, steps = 0, most_steps = 0, tile_variance = 0;
  for (const Group& c : groups_) {
    const RowTiles& row_tiles = tiling.of(c);
    const double column_tiles = ceil_div(columns(c), tile_cols);
    const double count = static_cast<double>(c.count) * column_tiles * row_tiles.mean;
    const double class_steps = ceil_div(depth(c), config.block_k);
    tiles += count;
    steps += count * class_steps;
    most_steps = std::max(most_steps, class_steps);
    tile_variance += static_cast<double>(c.count) * column_tiles * column_tiles * row_tiles.variance;
  }
  if (tiles <= 0) return device_.launch_overhead;
  steps /= tiles;  // of the mean tile
  const double bytes_per_tile = dram_bytes(config, tiling) / tiles;
  const double warps = config.warps_m * config.warps_n;
  const double gather =
      stage_ == GemmStage::fc1 && config.gather == GatherMode::fused ? kFusedGatherFactor : 1;
  const double sync = kStageSyncClocks / device_.sm_clock;
  const double epilogue = kTileEpilogue + filled_rows * tile_cols *
                                              (kElementBytes + more_bytes_per_element_) /
                                              (kL2BytesPerClock * device_.sm_clock);
  const double stage_bytes =
      (config.stages - 1) * (config.block_n + filled_rows) * config.block_k * kElementBytes;

  // `count` tiles of n steps run at once, `blocks` on each of `active` SMs.
  const auto wave = [&](double count, double active, double blocks, double n) {
    const double step = step_seconds(config, filled_rows, blocks * warps) * gather;
    // A stage's data must have come by the time the pipeline is back at it, however little there is to
    // compute.
    const double round = overlap(blocks * step + sync, kL2Latency / (config.stages - 1));
    const double compute = n * round + kTileFill / blocks + blocks * epilogue;
    const double per_sm =
        std::min(blocks * stage_bytes / kMemoryLatency, kL2PeakBytesPerClock * device_.sm_clock);
    const double bandwidth = bottleneck(device_.bandwidth, active * per_sm);
    return overlap(compute, count * bytes_per_tile * (n / steps) / bandwidth);
  };
  const double resident = config.ctas_per_sm, slots = sms * resident;
  const double full_wave = wave(slots, sms, resident, steps);
  const auto total = [&](double count) {
    const double full = std::floor(count / slots);
    const double rest = count - full * slots;
    double time = full * full_wave;
    if (rest > 0) time += wave(rest, std::min(sms, std::ceil(rest)), std::ceil(rest / sms), steps);
    return time;
  };
  // Routing scatters the number of tiles, which blurs where a wave ends.
  const double spread = std::sqrt(tile_variance);
  double time = 0.25 * total(std::max(1.0, tiles - spread)) + 0.5 * total(std::max(1.0, tiles)) +
                0.25 * total(tiles + spread);
  // The longest tile may come last.
  if (most_steps > steps) time += 0.5 * (wave(1, 1, 1, most_steps) - wave(1, 1, 1, steps));
  if (stage_ == GemmStage::fc1 && config.gather == GatherMode::copy) {
    const double copied = rows_ * static_cast<double>(spec_.hidden_size) * kElementBytes;
    time += device_.launch_overhead + 2 * copied / device_.bandwidth;
  }
  // With two warps each issues twice the loads, and one barrier stops half of them.
  if (warps < 4) time *= kFewWarpsFactor;
  return time + device_.launch_overhead;
}

/// One persistent wgmma kernel: per tile, the tensor cores, shared memory and L2 of its stages, and what of
/// its epilogue shows; tiles are handed out by ticket, so the last wave is half a tile long on average.
double StageModel::wgmma_seconds(const GemmConfig& config) const {
  const double sms = device_.sm_count;
  const double n = config.block_n, tile_cols = tile_columns(spec_, stage_, config);
  const bool pingpong = config.schedule == Schedule::wgmma_pingpong;
  const Tiling tiling = this->tiling(config);
  if (tiling.tiles[0].mean <= 0) return device_.launch_overhead;
  const double clock = device_.sm_clock;
  const bool gathers = stage_ == GemmStage::fc1 && config.gather == GatherMode::fused;
  const double ring = config.stages <= kWgmmaShortRing ? kWgmmaShortRingFactor : 1;
  const double blocks = n / 64;

  // Of a tile of either kind of expert: one stage, and the epilogue.
  struct Tile {
    double step = 0, epilogue = 0;
  };
  const auto tile_of = [&](double rows) {
    const double m = std::min<double>(config.block_m, ceil_div(rows, config.row_step) * config.row_step);
    // One stage of 64: products; operands read by each instruction (64 weight rows by m routed rows) and
    // written once; what L2 delivers.
    const double mma = 2 * m * n * kWgmmaStage / (kWgmmaShareOfPeak * device_.tensor_flops / sms);
    const double smem_bytes =
        blocks * (64 + m) * kWgmmaStage * kElementBytes + (m + n) * kWgmmaStage * kElementBytes;
    const double smem = smem_bytes / (kWgmmaSmemBytesPerClock * clock);
    // The blocks of a cluster fetch their weights once.
    const double l2 =
        (m + n / config.cluster) * kWgmmaStage * kElementBytes / (kWgmmaL2BytesPerClock * clock);
    // Two warps copy gathered rows, this many a clock at best.
    const double gather = gathers ? m / (kGatheredRowsPerClock * clock) : 0;
    const double slim = n <= 64 && m > kWgmmaSlimTileRows ? kWgmmaSlimTileFactor : 1;
    const double step = (overlap(overlap(mma, smem), overlap(l2, gather)) + kWgmmaStageSync) * ring * slim;
    // Converting and storing m rows; a ping-pong kernel does so beside the other group's products.
    return Tile{step, kWgmmaTileStart + m * tile_cols / (epilogue_elements_per_clock_ * clock)};
  };
  const Tile of_kind[2] = {tile_of(tiling.rows[0]),
                           spec_.shared_widths.empty() ? Tile{} : tile_of(tiling.rows[1])};

  double tiles = 0, work = 0, longest = 0, longest_weights = 0;
  for (const Group& c : groups_) {
    const auto [step, epilogue] = of_kind[c.shared];
    const double count = static_cast<double>(c.count) * ceil_div(columns(c), tile_cols) * tiling.of(c).mean;
    longest_weights = std::max(longest_weights, n * depth(c) * kElementBytes);
    const double products = ceil_div(depth(c), kWgmmaStage) * step;
    const double tile =
        pingpong ? std::max(products, epilogue / 2) + kWgmmaTileStart / 2 : products + epilogue;
    tiles += count;
    work += count * tile;
    longest = std::max(longest, tile);
  }
  // What is in flight: the ring, less the stage in use.
  const double in_flight =
      (config.stages - 1) * (mean_rows(tiling, tile_cols) + n) * kWgmmaStage * kElementBytes;
  const double bandwidth = bottleneck(device_.bandwidth, std::min(sms, tiles) * in_flight / kMemoryLatency);
  const double compute = tiles <= sms ? longest : work / sms + 0.5 * work / tiles;
  // Where memory is the limit the last tiles have it to themselves, and an SM alone draws little of it.
  const double last_tile = longest_weights / (kWgmmaL2BytesPerClock * clock);
  double time = overlap(compute, dram_bytes(config, tiling) / bandwidth + last_tile) + kTileFill;
  if (stage_ == GemmStage::fc1 && config.gather == GatherMode::copy) {
    const double copied = rows_ * static_cast<double>(spec_.hidden_size) * kElementBytes;
    time += device_.launch_overhead + 2 * copied / device_.bandwidth;
  }
  return time + device_.launch_overhead;
}

GemmConfig best_config(const StageModel& model, const LayerSpec& spec, GemmStage stage,
                       const DeviceProfile& device, const auto& allowed) {
  GemmConfig best;
  double best_seconds = -1;
  for (const GemmConfig& config : gemm_candidates(spec, stage, device)) {
    if (!allowed(config)) continue;
    const double seconds = model.seconds(config);
    if (best_seconds >= 0 && !(seconds < best_seconds)) continue;
    best = config;
    best_seconds = seconds;
  }
  return best;
}

GemmConfig best_config(const LayerSpec& spec, GemmStage stage, std::int64_t tokens,
                       const DeviceProfile& device, const auto& allowed) {
  return best_config(StageModel(spec, stage, tokens, device), spec, stage, device, allowed);
}

/// Which candidates are worth rating for this many tokens.
auto worth_rating(const LayerSpec& spec, std::int64_t tokens) {
  // A batch_invariant layer has one main loop for every token count (check_gemm_config).
  // The tokens alone first: their product with the slots may not fit.
  const bool many = spec.batch_invariant || tokens >= kFewestWgmmaRows ||
                    tokens * spec.slots_per_token() >= kFewestWgmmaRows;
  const double rows = RoutingStats(spec, tokens).mean();
  return [many, rows](const GemmConfig& c) {
    // An expert of one row tile would leave the second block of each cluster without rows.
    return (many || !uses_wgmma(c)) && (c.cluster == 1 || rows > c.block_m);
  };
}

}  // namespace

Floor layer_floor(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device,
                  const std::vector<std::int64_t>& rows_per_expert) {
  const double hidden = static_cast<double>(spec.hidden_size);
  const double matrices = spec.gated() ? 3 : 2;
  const RoutingStats routing(spec, tokens);
  Floor floor;
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    double rows = routing.mean(), hit = routing.hit_share();
    if (e >= spec.num_experts()) {
      rows = static_cast<double>(std::max<std::int64_t>(tokens, 0));
      hit = rows > 0 ? 1 : 0;
    } else if (!rows_per_expert.empty()) {
      const auto at = static_cast<std::size_t>(e);
      rows = at < rows_per_expert.size() ? static_cast<double>(rows_per_expert[at]) : 0;
      hit = rows > 0 ? 1 : 0;
    }
    const double weights = matrices * hidden * static_cast<double>(spec.width_of(e));
    floor.flops += 2 * rows * weights;
    floor.bytes += hit * weights * kElementBytes;
  }
  floor.bytes += 2 * static_cast<double>(std::max<std::int64_t>(tokens, 0)) * hidden * kElementBytes;
  floor.seconds = std::max(floor.flops / device.tensor_flops, floor.bytes / device.bandwidth);
  return floor;
}

Floor backward_floor(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device,
                     std::int64_t gradient_bytes) {
  Floor floor = layer_floor(spec, tokens, device);
  const double row = static_cast<double>(std::max<std::int64_t>(tokens, 0)) *
                     static_cast<double>(spec.hidden_size) * kElementBytes;
  const double weights = floor.bytes - 2 * row;
  floor.flops *= 2;
  floor.bytes = weights * (1 + static_cast<double>(gradient_bytes) / kElementBytes) + 3 * row;
  floor.seconds = std::max(floor.flops / device.tensor_flops, floor.bytes / device.bandwidth);
  return floor;
}

double predict_gemm_seconds(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                            std::int64_t tokens, const DeviceProfile& device) {
  return StageModel(spec, stage, std::max<std::int64_t>(tokens, 1), device).seconds(config);
}

LayerConfig predict_layer_config(const LayerSpec& spec, std::int64_t bucket, const DeviceProfile& device) {
  LayerConfig config;
  const std::int64_t tokens = std::max<std::int64_t>(bucket, 1);
  const auto allowed = worth_rating(spec, tokens);
  config.one_launch = predict_one_launch(spec, tokens, device);
  config.fc1 = best_config(spec, GemmStage::fc1, tokens, device, allowed);
  config.fc2 = best_config(spec, GemmStage::fc2, tokens, device, allowed);
  if (check_layer_config(spec, config, device)) return config;
  // The only thing that two sound GEMMs disagree on: who writes the zeroes beyond a width.
  config.fc2 =
      best_config(spec, GemmStage::fc2, tokens, device, [](const GemmConfig& c) { return !uses_wgmma(c); });
  return config;
}

GemmConfig predict_dh_config(const LayerSpec& back, int halves, std::int64_t bucket,
                             const DeviceProfile& device) {
  const std::int64_t tokens = std::max<std::int64_t>(bucket, 1);
  StageModel model(back, GemmStage::fc1, tokens, device);
  model.turn_back(halves);
  const auto worth = worth_rating(back, tokens);
  return best_config(model, back, GemmStage::fc1, device,
                     [&](const GemmConfig& c) { return worth(c) && check_dh_config(back, c, device).ok(); });
}

}  // namespace varmoe::model
