#include <doctest/doctest.h>

#include "gpu/device_layer.hpp"
#include "model/named_sets.hpp"

// Layers whose experts differ in width: the named sets, and class sets too rich to compile in.

TEST_CASE("the named variable-width sets match the oracle") {
  for (const auto& set : varmoe::model::named_sets()) {
    const bool gated = set.spec.gated();
    for (const std::int64_t hidden : {std::int64_t{256}, set.spec.hidden_size}) {
      if (gated && hidden == 256) continue;
      const auto spec = gpu::must(varmoe::model::named_set(set.name, hidden), "named_set");
      oracle::CaseOptions options;
      options.tokens = 4096;
      options.seed = 11;
      const auto c = oracle::make_case(spec, options);
      gpu::DeviceLayer layer(c);
      for (const std::int64_t tokens : {1, 3, 64, 1000, 4096}) {
        CAPTURE(set.name);
        CAPTURE(hidden);
        CAPTURE(tokens);
        gpu::RunOptions run;
        run.tokens = tokens;
        gpu::check_case("variable-width sets, bf16", layer, run);
      }
    }
  }
}

TEST_CASE("small: more widths than can be compiled in use the runtime-width kernels") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 40, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 40));
  oracle::CaseOptions options;
  options.tokens = 700;
  options.routing = oracle::Routing::zipf;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  const auto report = gpu::must(layer.layer().prepare(gpu::buckets({1, 700})), "prepare");
  for (const auto& kernel : report.kernels) {
    if (kernel.stage == "fc1" || kernel.stage == "fc2") CHECK(kernel.runtime_width);
    CHECK(kernel.spill_bytes == 0);
  }
  for (const std::int64_t tokens : {1, 64, 700}) {
    gpu::RunOptions run;
    run.tokens = tokens;
    gpu::check_case("runtime-width kernels", layer, run);
  }
}

TEST_CASE("small: two layers with one class set in other orders share their kernels") {
  auto spec = varmoe::uniform_spec(128, 6, 64, 2);
  spec.expert_widths = {64, 128, 64, 192, 128, 64};
  auto shuffled = spec;
  shuffled.expert_widths = {192, 128, 64, 64, 128, 128};
  oracle::CaseOptions options;
  options.tokens = 50;
  const auto a = oracle::make_case(spec, options), b = oracle::make_case(shuffled, options);
  gpu::DeviceLayer first(a), second(b);
  gpu::check_case("variable widths, small", first);
  const auto loaded = gpu::engine().counters().kernels_loaded;
  gpu::check_case("variable widths, small", second);
  CHECK(gpu::engine().counters().kernels_loaded == loaded);
}
