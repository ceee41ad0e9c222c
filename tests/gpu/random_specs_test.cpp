#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "gpu/device_layer.hpp"

// Random layers: E 1–512, k 1–16, widths any multiples of 8 from 8 to 4096, hidden multiples of 8 from 64, T
// 0–5000, everything else drawn too. VARMOE_GPU_SHARD=i/n runs every n-th (compiling takes most of the time,
// so shards run side by side).

namespace {

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }
  /// Log-uniform in [low, high].
  std::int64_t log_between(double low, double high) {
    const double u = static_cast<double>(random_() >> 11) * 0x1p-53;
    return static_cast<std::int64_t>(std::llround(low * std::pow(high / low, u)));
  }

 private:
  std::mt19937_64 random_;
};

oracle::RandomCase random_case(std::uint64_t seed) {
  Draw d(seed);
  varmoe::LayerSpec spec;
  spec.activation = static_cast<varmoe::Activation>(d.below(10));
  spec.dtype = d.below(3) == 0 ? varmoe::DType::fp16 : varmoe::DType::bf16;
  spec.fc1_layout = d.below(2) ? varmoe::WeightLayout::kn : varmoe::WeightLayout::nk;
  spec.fc2_layout = d.below(3)   ? spec.fc1_layout
                    : d.below(2) ? varmoe::WeightLayout::kn
                                 : varmoe::WeightLayout::nk;
  spec.gate_order = static_cast<varmoe::GateOrder>(d.below(3));
  spec.top_k = 1 + d.below(16);
  const std::int64_t experts = d.log_between(1, 512);
  // What the host fills in about a second bounds hidden size and widths together.
  constexpr double kMaxElements = 2.5e8;
  spec.hidden_size = 8 * d.log_between(8, 640);
  const double room = kMaxElements / (3.0 * static_cast<double>(spec.hidden_size * experts));
  const auto widest = static_cast<std::int64_t>(std::min(4096.0, std::max(64.0, room)));
  const std::int64_t classes = d.below(3) == 0 ? 1 : d.below(3) == 0 ? 40 : 1 + d.below(8);
  std::vector<std::int64_t> widths;
  for (std::int64_t i = 0; i < classes; ++i) widths.push_back(8 * (1 + d.below(widest / 8)));
  for (std::int64_t e = 0; e < experts; ++e)
    spec.expert_widths.push_back(widths[static_cast<std::size_t>(d.below(classes))]);

  oracle::CaseOptions o;
  o.seed = seed;
  o.tokens = d.below(12) == 0 ? 0 : d.log_between(1, 5000);
  o.routing = static_cast<oracle::Routing>(d.below(4));
  o.invalid_fraction = d.below(3) == 0 ? 0.2 : 0;
  o.duplicate_fraction = d.below(4) == 0 ? 0.2 : 0;
  o.empty_every = d.below(3) == 0 && experts > 1 ? 2 : 0;
  o.accumulate = d.below(4) == 0;
  o.x_stride = spec.hidden_size + 8 * d.below(3);
  o.out_stride = spec.hidden_size + 8 * d.below(3);
  const bool kn = spec.fc1_layout == varmoe::WeightLayout::kn && spec.fc2_layout == varmoe::WeightLayout::kn;
  const bool interleaved = spec.gate_order == varmoe::GateOrder::interleaved && spec.gated();
  for (;;) {
    o.storage = static_cast<oracle::Storage>(d.below(7));
    const bool packed = o.storage == oracle::Storage::packed || o.storage == oracle::Storage::packed_joint;
    if (packed && !kn) continue;
    if (interleaved && (o.storage == oracle::Storage::packed || o.storage == oracle::Storage::by_hand))
      continue;
    break;
  }
  spec.bias = d.below(4) == 0;
  spec.weight_on_input = d.below(5) == 0;
  return oracle::make_case(spec, o);
}

}  // namespace

TEST_CASE("300 random layers match the oracle") {
  int shard = 0, shards = 1;
  if (const char* text = std::getenv("VARMOE_GPU_SHARD")) {
    REQUIRE(std::sscanf(text, "%d/%d", &shard, &shards) == 2);
  }
  for (int i = shard; i < 300; i += shards) {
    CAPTURE(i);
    const auto c = random_case(5000 + static_cast<std::uint64_t>(i));
    gpu::DeviceLayer layer(c);
    gpu::RunOptions run;
    run.ids_64 = i % 2 == 0;
    if (i % 5 == 0) run.device_tokens = c.options.tokens * 2 / 3;
    gpu::check_case(c.spec.dtype == varmoe::DType::bf16 ? "random specs, bf16" : "random specs, fp16", layer,
                    run);
  }
}
