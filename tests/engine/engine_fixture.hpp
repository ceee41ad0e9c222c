#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/env.hpp"
#include "cuda/stream.hpp"
#include "engine/engine_impl.hpp"
#include "support/capture_log.hpp"
#include "support/fake_cuda.hpp"
#include "support/fake_nvrtc.hpp"
#include "support/temp_dir.hpp"
#include "varmoe/engine.hpp"

/// Engines on the fake driver and the fake NVRTC, each test with an empty environment and a cache folder of
/// its own.
namespace varmoe::test {

inline LayerSpec small_spec() {
  return uniform_spec(128, 8, 64, 2);
}

/// The class set {64, 128, 192}, its experts arranged by `turn`.
inline LayerSpec pruned_spec(int turn = 0) {
  LayerSpec spec = uniform_spec(128, 12, 64, 2);
  const std::int64_t widths[] = {64, 128, 192};
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = widths[(e * 7 + static_cast<std::size_t>(turn)) % 3];
  return spec;
}

/// Memory that stands for a layer's weights, of which forwards on the fake driver read nothing.
inline Weights fake_weights(const LayerSpec& spec, std::uintptr_t base = 0x10000) {
  auto weights = Weights::blocks(spec, reinterpret_cast<const void*>(base),
                                 reinterpret_cast<const void*>(base + (1 << 28)));
  REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
  return *std::move(weights);
}

/// 256-byte aligned host memory that serves as x, out, ids, … of forwards whose kernels do not run.
class Arena {
 public:
  explicit Arena(std::size_t bytes = std::size_t{64} << 20)
      : memory_(static_cast<std::byte*>(std::aligned_alloc(256, bytes)), &std::free), bytes_(bytes) {}
  void* take(std::size_t bytes) {
    void* p = memory_.get() + used_;
    used_ += (bytes + 255) / 256 * 256;
    REQUIRE(used_ <= bytes_);
    return p;
  }

 private:
  std::unique_ptr<std::byte, decltype(&std::free)> memory_;
  std::size_t bytes_, used_ = 0;
};

/// Sound arguments for `tokens`.
inline ForwardArgs make_args(Arena& arena, const Layer& layer, std::int64_t tokens, void* stream = nullptr) {
  const auto rows = static_cast<std::size_t>(tokens > 0 ? tokens : 1);
  const auto hidden = static_cast<std::size_t>(layer.spec().hidden_size),
             k = static_cast<std::size_t>(layer.spec().top_k);
  const auto needed = layer.workspace_bytes(tokens);
  REQUIRE_MESSAGE(needed.ok(), (needed.ok() ? "" : needed.error().message()));
  ForwardArgs args;
  args.tokens = tokens;
  args.x = arena.take(rows * hidden * 2);
  args.topk_ids = arena.take(rows * k * 8);
  args.topk_weights = static_cast<float*>(arena.take(rows * k * 4));
  args.out = arena.take(rows * hidden * 2);
  args.workspace = arena.take(*needed);
  args.workspace_bytes = *needed;
  args.stream = stream;
  return args;
}

class EngineFixture {
 public:
  EngineFixture() {
    fake_cuda::reset();
    fake_nvrtc::reset();
    options.cache_dir = folder.path();
    options.nvrtc_lib = VARMOE_FAKE_NVRTC;
    options.compile_threads = 4;
    options.log = [lines = lines_](LogLevel level, std::string_view text) {
      const std::lock_guard lock(lines->mutex);
      lines->all.push_back({level, std::string(text)});
    };
    environment.log = LogLevel::info;
  }
  ~EngineFixture() {
    fake_cuda::reset();
    fake_nvrtc::reset();
  }

  engine::EngineSeams seams() const {
    engine::EngineSeams s;
    s.driver_library = VARMOE_FAKE_CUDA;
    s.environment = &environment;
    return s;
  }
  Result<Engine> try_engine() const { return EngineAccess::create(options, seams()); }
  Engine make_engine() const {
    auto created = try_engine();
    REQUIRE_MESSAGE(created.ok(), (created.ok() ? "" : created.error().message()));
    return *std::move(created);
  }
  static Layer make_layer(Engine& engine, const LayerSpec& spec, const LayerOptions& layer_options = {}) {
    auto layer = engine.create_layer(spec, layer_options);
    REQUIRE_MESSAGE(layer.ok(), (layer.ok() ? "" : layer.error().message()));
    return *std::move(layer);
  }
  static Layer make_bound_layer(Engine& engine, const LayerSpec& spec,
                                const LayerOptions& layer_options = {}) {
    Layer layer = make_layer(engine, spec, layer_options);
    require_ok(layer.bind(fake_weights(spec)));
    return layer;
  }
  static PrepareReport prepare(Layer& layer, std::vector<std::int64_t> tokens) {
    PrepareOptions prepare_options;
    prepare_options.tokens = std::move(tokens);
    auto report = layer.prepare(prepare_options);
    REQUIRE_MESSAGE(report.ok(), (report.ok() ? "" : report.error().message()));
    return *std::move(report);
  }
  template <class T>
  static void require_ok(const Result<T>& result) {
    REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message()));
  }
  /// Lines logged so far that contain `text`.
  int said(const std::string& text) const {
    const std::lock_guard lock(lines_->mutex);
    int n = 0;
    for (const auto& line : lines_->all) n += line.second.find(text) != std::string::npos ? 1 : 0;
    return n;
  }
  std::size_t lines_logged() const {
    const std::lock_guard lock(lines_->mutex);
    return lines_->all.size();
  }

  TempDir folder;
  EngineOptions options;
  Environment environment;

 private:
  struct Lines {
    std::mutex mutex;
    std::vector<std::pair<LogLevel, std::string>> all;
  };
  std::shared_ptr<Lines> lines_ = std::make_shared<Lines>();
};

/// Kernels of the launches since fake_cuda::clear_launches(): the stage in each entry name
/// "varmoe_<stage>_…".
inline std::vector<std::string> launched_kernels() {
  std::vector<std::string> names;
  for (const auto& launch : fake_cuda::launches()) names.push_back(launch.name);
  return names;
}

}  // namespace varmoe::test
