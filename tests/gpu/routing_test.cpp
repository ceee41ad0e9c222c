#include <doctest/doctest.h>

#include "gpu/device_layer.hpp"

// Routings that break careless kernels, device-side token counts, chunks, and limits on SMs.

namespace {

varmoe::LayerSpec mixed_spec() {
  auto spec = varmoe::uniform_spec(256, 24, 128, 4);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = e % 3 == 0 ? 64 : e % 3 == 1 ? 128 : 200;
  return spec;
}

}  // namespace

TEST_CASE("small: skewed, invalid, duplicate and absent experts") {
  for (const oracle::Routing routing : {oracle::Routing::uniform, oracle::Routing::zipf,
                                        oracle::Routing::one_expert, oracle::Routing::half_on_one}) {
    for (const std::int64_t tokens : {1, 130, 3000}) {
      CAPTURE(static_cast<int>(routing));
      oracle::CaseOptions options;
      options.tokens = tokens;
      options.routing = routing;
      options.invalid_fraction = 0.15;
      options.duplicate_fraction = 0.1;
      options.empty_every = 3;
      const auto c = oracle::make_case(mixed_spec(), options);
      gpu::DeviceLayer layer(c);
      gpu::check_case("skewed and invalid routing", layer);
    }
  }
}

TEST_CASE("small: every id invalid gives exact zeroes") {
  oracle::CaseOptions options;
  options.tokens = 40;
  options.invalid_fraction = 2;
  const auto c = oracle::make_case(mixed_spec(), options);
  gpu::DeviceLayer layer(c);
  gpu::check_case("skewed and invalid routing", layer);
}

TEST_CASE("small: no tokens at all") {
  oracle::CaseOptions options;
  options.tokens = 4;
  const auto c = oracle::make_case(mixed_spec(), options);
  gpu::DeviceLayer layer(c);
  gpu::RunOptions run;
  run.tokens = 0;
  const auto out = layer.forward_twice(run);
  for (const std::uint16_t v : out) CHECK(v == 0xffff);
}

TEST_CASE("small: many rows are sorted by two launches, on few SMs too") {
  for (const std::int64_t tokens : {1025, 2500}) {
    for (const int sms : {0, 1}) {
      CAPTURE(tokens);
      CAPTURE(sms);
      oracle::CaseOptions options;
      options.tokens = tokens;
      options.routing = oracle::Routing::zipf;
      options.invalid_fraction = 0.1;
      const auto c = oracle::make_case(mixed_spec(), options);
      varmoe::LayerOptions limited;
      limited.max_sms = sms;
      gpu::DeviceLayer layer(c, limited);
      gpu::check_case("sort", layer);
    }
  }
}

TEST_CASE("many rows are sorted: from the first that take two launches to more than a thread keeps") {
  auto spec = varmoe::uniform_spec(64, 300, 16, 8);
  for (const oracle::Routing routing : {oracle::Routing::uniform, oracle::Routing::half_on_one}) {
    for (const std::int64_t tokens : {383, 384, 385, 1024, 1031, 4096, 20000, 70000}) {
      CAPTURE(static_cast<int>(routing));
      CAPTURE(tokens);
      oracle::CaseOptions options;
      options.tokens = tokens;
      options.routing = routing;
      const auto c = oracle::make_case(spec, options);
      gpu::DeviceLayer layer(c);
      gpu::check_case("sort", layer);
    }
  }
}

TEST_CASE("small: a device-side token count") {
  for (const std::int64_t tokens : {300, 1100}) {  // one launch sorts, two launches sort
    for (const std::int64_t live : {std::int64_t{0}, std::int64_t{1}, tokens / 2 + 1, tokens, tokens + 7}) {
      CAPTURE(tokens);
      CAPTURE(live);
      oracle::CaseOptions options;
      options.tokens = tokens;
      const auto c = oracle::make_case(mixed_spec(), options);
      gpu::DeviceLayer layer(c);
      gpu::RunOptions run;
      run.device_tokens = live;
      gpu::check_case("device-side token count", layer, run);
    }
  }
}

TEST_CASE("small: a bounded workspace works in chunks, with and without a token count") {
  oracle::CaseOptions options;
  options.tokens = 900;
  const auto c = oracle::make_case(mixed_spec(), options);
  varmoe::LayerOptions bounded;
  bounded.max_workspace_bytes = std::size_t{1} << 20;
  gpu::DeviceLayer layer(c, bounded);
  CHECK(gpu::must(layer.layer().workspace_bytes(900), "workspace_bytes") <= bounded.max_workspace_bytes);
  gpu::check_case("chunks", layer);
  gpu::RunOptions run;
  run.device_tokens = 500;
  gpu::check_case("chunks", layer, run);
}

TEST_CASE("small: held to few SMs") {
  oracle::CaseOptions options;
  options.tokens = 600;
  const auto c = oracle::make_case(mixed_spec(), options);
  varmoe::LayerOptions limited;
  limited.max_sms = 3;
  gpu::DeviceLayer layer(c, limited);
  gpu::check_case("max_sms", layer);
}

TEST_CASE("64-bit addressing: weights and rows beyond 2^31 elements") {
  // h alone has 65536·8·4224 = 2.2e9 elements; fc1 of 288 experts 2.5e9.
  auto spec = varmoe::uniform_spec(1024, 288, 4224, 8);
  oracle::CaseOptions options;
  options.tokens = 65536;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  gpu::RunOptions run;
  run.sample = 24;
  gpu::check_case("64-bit addressing", layer, run);
}
