#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "gpu/device_layer.hpp"
#include "gpu/evidence.hpp"

// The life of a layer as a server lives it: cold and warm prepare, many layers, moved weights, host cost.
// Times are recorded, not asserted.

namespace {

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

varmoe::Engine engine_on(const std::string& cache) {
  varmoe::EngineOptions options;
  options.cache_dir = cache;
  options.log = [](varmoe::LogLevel, std::string_view) {};
  return gpu::must(varmoe::Engine::create(options), "Engine::create");
}

}  // namespace

TEST_CASE("cold and warm prepare of a layer, and of 48 layers with shuffled widths") {
  const auto spec = varmoe::uniform_spec(2048, 128, 768, 8);
  const varmoe::PrepareOptions buckets = gpu::buckets({1, 8, 64, 512, 4096});
  const std::string cache = gpu::cache_dir() + "/life";
  {
    auto cold = engine_on(cache);
    auto layer = gpu::must(cold.create_layer(spec), "create_layer");
    const auto start = std::chrono::steady_clock::now();
    const auto report = gpu::must(layer.prepare(buckets), "prepare");
    gpu::record_number("prepare cold, 5 buckets, ms", milliseconds_since(start));
    for (const auto& kernel : report.kernels) {
      CAPTURE(kernel.name);
      CHECK(!kernel.hit);
      CHECK(kernel.spill_bytes == 0);
    }
    double slowest = 0;
    for (const auto& kernel : report.kernels) slowest = std::max(slowest, kernel.compile_ms);
    gpu::record_number("slowest compile (in parallel with others), ms", slowest);
  }
  {
    varmoe::EngineOptions options;
    options.cache_mode = varmoe::CacheMode::off;
    options.compile_threads = 1;
    auto alone = gpu::must(varmoe::Engine::create(options), "Engine::create");
    // Another E, so other texts: NVRTC has a cache of its own, and would answer from it.
    auto layer = gpu::must(alone.create_layer(varmoe::uniform_spec(2048, 120, 768, 8)), "create_layer");
    double slowest = 0;
    for (const auto& kernel : gpu::must(layer.prepare(buckets), "prepare").kernels) slowest = std::max(slowest, kernel.compile_ms);
    gpu::record_number("slowest compile (one at a time), ms", slowest);
  }
  {
    auto warm = engine_on(cache);
    auto layer = gpu::must(warm.create_layer(spec), "create_layer");
    const auto start = std::chrono::steady_clock::now();
    const auto report = gpu::must(layer.prepare(buckets), "prepare");
    gpu::record_number("prepare warm, 5 buckets, ms", milliseconds_since(start));
    for (const auto& kernel : report.kernels) CHECK(kernel.hit);
    CHECK(warm.counters().compiles == 0);
  }

  std::vector<varmoe::LayerSpec> layers;
  std::mt19937 random(3);
  for (int i = 0; i < 48; ++i) {
    auto pruned = varmoe::uniform_spec(2048, 128, 768, 8);
    for (std::size_t e = 0; e < 128; ++e)
      pruned.expert_widths[e] = 128 * (1 + static_cast<std::int64_t>(e % 6));
    std::shuffle(pruned.expert_widths.begin(), pruned.expert_widths.end(), random);
    layers.push_back(pruned);
  }
  for (const bool warm : {false, true}) {
    auto engine = engine_on(cache);
    const auto start = std::chrono::steady_clock::now();
    std::vector<varmoe::Layer> made;
    for (const auto& pruned : layers) {
      made.push_back(gpu::must(engine.create_layer(pruned), "create_layer"));
      gpu::must(made.back().prepare(buckets), "prepare");
    }
    gpu::record_number(warm ? "48 pruned layers warm, ms" : "48 pruned layers cold, ms",
                       milliseconds_since(start));
    gpu::record_number("48 pruned layers, kernels loaded",
                       static_cast<double>(engine.counters().kernels_loaded));
    // One class set: no more kernels than a single layer has.
    auto single = engine_on(cache);
    auto alone = gpu::must(single.create_layer(layers.front()), "create_layer");
    gpu::must(alone.prepare(buckets), "prepare");
    CHECK(engine.counters().kernels_loaded == single.counters().kernels_loaded);
  }
}

TEST_CASE("host cost of forward") {
  for (const std::int64_t tokens : {1, 4096}) {
    oracle::CaseOptions options;
    options.tokens = tokens;
    const auto c = oracle::make_case(varmoe::uniform_spec(256, 128, 128, 8), options);
    gpu::DeviceLayer layer(c);
    gpu::must(layer.layer().prepare(gpu::buckets({tokens})), "prepare");
    const auto args = layer.args({});
    const varmoe::cuda::ContextScope current(*gpu::device());  // as under a framework
    for (int i = 0; i < 20; ++i) gpu::must(layer.layer().forward(args), "forward");
    std::vector<double> costs;
    for (int round = 0; round < 51; ++round) {
      layer.synchronize();
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 20; ++i) gpu::must(layer.layer().forward(args), "forward");
      costs.push_back(milliseconds_since(start) * 1000 / 20);
    }
    std::sort(costs.begin(), costs.end());
    gpu::record_number("host cost of forward at " + std::to_string(tokens) + " tokens, median us",
                       costs[costs.size() / 2]);
  }
}

TEST_CASE("small: first use compiles, then the bucket is there") {
  oracle::CaseOptions options;
  options.tokens = 9;
  const auto c = oracle::make_case(varmoe::uniform_spec(72, 3, 40, 2), options);
  auto engine = engine_on(gpu::cache_dir() + "/first-use");
  gpu::DeviceLayer layer(c, {}, &engine);
  gpu::check_case("first use", layer);
  const auto after = engine.counters().compiles;
  CHECK(after > 0);
  gpu::check_case("first use", layer);
  CHECK(engine.counters().compiles == after);
}

TEST_CASE("small: weights may move: bind again") {
  oracle::CaseOptions options;
  options.tokens = 33;
  const auto spec = varmoe::uniform_spec(128, 4, 64, 2);
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  const auto before = layer.forward_twice();
  options.seed = 77;
  const auto other = oracle::make_case(spec, options);
  const auto upload = [](const oracle::Buffer16& b) {
    auto buffer = gpu::must(varmoe::cuda::DeviceBuffer::allocate(gpu::device(), b.bytes()), "allocate");
    gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), buffer.address(), b.data(), b.bytes()), "upload");
    return buffer;
  };
  const auto fc1 = upload(other.fc1), fc2 = upload(other.fc2);
  gpu::must(layer.layer().bind(gpu::must(other.weights(fc1.data(), nullptr, fc2.data()), "weights")), "bind");
  CHECK(layer.forward_twice() != before);
}
