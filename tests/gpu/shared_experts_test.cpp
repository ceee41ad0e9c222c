#include <doctest/doctest.h>

#include <string>

#include "gpu/device_layer.hpp"

// Shared experts: rows that every token makes beside its routed ones, with weight 1 or sigmoid(x·w_g).

namespace {

using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

varmoe::LayerSpec mixed_spec(std::vector<std::int64_t> shared, bool gate) {
  varmoe::LayerSpec spec = varmoe::uniform_spec(264, 12, 96, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = e % 3 == 0 ? 40 : e % 3 == 1 ? 96 : 136;
  spec.shared_widths = std::move(shared);
  spec.shared_gate = gate;
  return spec;
}

const std::vector<std::vector<std::int64_t>> kWidths = {{200}, {96, 328}, {8, 136, 64}};

void check_tokens(const oracle::RandomCase& c, const std::string& group,
                  std::initializer_list<std::int64_t> counts, varmoe::LayerOptions options = {},
                  varmoe::Engine* engine = nullptr) {
  gpu::DeviceLayer layer(c, options, engine);
  for (const std::int64_t tokens : counts) {
    CAPTURE(tokens);
    // Each bucket with a config of its own.
    gpu::must(layer.layer().prepare(gpu::buckets({tokens})), "prepare");
    gpu::RunOptions run;
    run.tokens = tokens;
    run.ids_64 = tokens % 2 == 1;
    gpu::check_case(group, layer, run);
  }
}

}  // namespace

TEST_CASE("small: shared experts in every layout and dtype with and without a gate") {
  std::uint64_t seed = 1;
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        for (const auto& widths : kWidths) {
          for (const bool gate : {false, true}) {
            auto spec = mixed_spec(widths, gate);
            spec.dtype = dtype;
            spec.fc1_layout = spec.fc2_layout = layout;
            spec.gate_order = order;
            CAPTURE(varmoe::kernel_signature(spec));
            oracle::CaseOptions options;
            options.tokens = 70;
            options.seed = ++seed;
            options.accumulate = seed % 3 == 0;
            options.x_stride = spec.hidden_size + 8 * static_cast<std::int64_t>(seed % 3);
            options.out_stride = spec.hidden_size + 8 * static_cast<std::int64_t>(seed % 2);
            const auto c = oracle::make_case(spec, options);
            check_tokens(c, dtype == DType::bf16 ? "shared experts, bf16" : "shared experts, fp16", {3, 70});
          }
        }
      }
    }
  }
}

TEST_CASE("small: shared experts without tokens write nothing") {
  oracle::CaseOptions options;
  options.tokens = 4;
  const auto c = oracle::make_case(mixed_spec({96, 40}, true), options);
  gpu::DeviceLayer layer(c);
  gpu::RunOptions run;
  run.tokens = 0;
  for (const std::uint16_t v : layer.forward_twice(run)) CHECK(v == 0xffff);
}

TEST_CASE("small: shared experts beside skewed and invalid and empty routed experts") {
  for (const oracle::Routing routing : {oracle::Routing::uniform, oracle::Routing::zipf,
                                        oracle::Routing::one_expert, oracle::Routing::half_on_one}) {
    for (const bool gate : {false, true}) {
      CAPTURE(oracle::to_string(routing));
      oracle::CaseOptions options;
      options.tokens = 1200;
      options.routing = routing;
      options.invalid_fraction = 0.2;
      options.duplicate_fraction = 0.1;
      options.empty_every = 3;
      const auto c = oracle::make_case(mixed_spec({200, 64}, gate), options);
      check_tokens(c, "shared experts, skewed routing", {1, 64, 1200});
    }
  }
  // No token has a routed expert: the shared ones alone remain.
  oracle::CaseOptions none;
  none.tokens = 130;
  none.invalid_fraction = 2;
  const auto c = oracle::make_case(mixed_spec({200}, true), none);
  check_tokens(c, "shared experts, skewed routing", {130});
}

TEST_CASE("small: shared experts in chunks and with a device-side token count and on few SMs") {
  for (const bool gate : {false, true}) {
    for (const std::int64_t tokens : {300, 2500}) {
      oracle::CaseOptions options;
      options.tokens = tokens;
      const auto c = oracle::make_case(mixed_spec({136, 328}, gate), options);
      varmoe::LayerOptions bounded, limited;
      bounded.max_workspace_bytes = std::size_t{1} << 20;
      limited.max_sms = 3;
      for (const varmoe::LayerOptions& layer_options : {varmoe::LayerOptions{}, bounded, limited}) {
        gpu::DeviceLayer layer(c, layer_options);
        for (const std::int64_t live : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, tokens / 2 + 1}) {
          CAPTURE(tokens);
          CAPTURE(live);
          gpu::RunOptions run;
          run.device_tokens = live;
          gpu::check_case("shared experts, chunks and counts", layer, run);
        }
      }
    }
  }
}

TEST_CASE("small: shared experts of more widths than can be compiled in") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 24, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 24));
  spec.shared_widths = {408, 64};
  spec.shared_gate = true;
  oracle::CaseOptions options;
  options.tokens = 700;
  options.routing = oracle::Routing::zipf;
  const auto c = oracle::make_case(spec, options);
  check_tokens(c, "shared experts, runtime widths", {1, 64, 700});
}

TEST_CASE("small: a token of a batch invariant layer with shared experts alone and in company") {
  auto spec = mixed_spec({200, 64}, true);
  spec.batch_invariant = true;
  oracle::CaseOptions options;
  options.tokens = 2000;
  options.routing = oracle::Routing::zipf;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  std::vector<std::uint16_t> alone;
  for (const std::int64_t tokens : {1, 2, 64, 300, 2000}) {
    CAPTURE(tokens);
    gpu::must(layer.layer().prepare(gpu::buckets({tokens})), "prepare");
    gpu::RunOptions run;
    run.tokens = tokens;
    auto row = layer.forward_twice(run);
    row.resize(static_cast<std::size_t>(spec.hidden_size));
    if (alone.empty()) alone = row;
    CHECK(row == alone);
  }
}

TEST_CASE("small: a router in front of a layer with shared experts") {
  auto spec = mixed_spec({96}, true);
  oracle::CaseOptions options;
  options.tokens = 40;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  varmoe::RouterSpec routes;
  routes.num_experts = spec.num_experts();
  routes.top_k = spec.top_k;
  auto router = gpu::must(gpu::engine().create_router(routes), "create_router");
  // Logits whose top k are the case's own ids would be laborious; every token's are equal, so that it goes to
  // experts 0, 1 and 2 with a third each.
  const std::vector<float> logits(static_cast<std::size_t>(40 * spec.num_experts()), 0.0f);
  auto device_logits = gpu::must(
      varmoe::cuda::DeviceBuffer::allocate(gpu::device(), logits.size() * sizeof(float)), "allocate");
  gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), device_logits.address(), logits.data(),
                                         logits.size() * sizeof(float)),
            "upload");
  varmoe::ForwardArgs forward = layer.args({});
  varmoe::RouteArgs route;
  route.tokens = 40;
  route.logits = device_logits.data();
  route.topk_ids = static_cast<std::int32_t*>(const_cast<void*>(forward.topk_ids));
  route.topk_weights = const_cast<float*>(forward.topk_weights);
  route.stream = forward.stream;
  layer.poison_out();
  gpu::must(varmoe::route_and_forward(router, route, layer.layer(), forward), "route_and_forward");
  const auto out = layer.download_out();
  auto expected = oracle::make_case(spec, options);
  for (std::size_t i = 0; i < expected.ids64.size(); ++i) {
    expected.ids64[i] = static_cast<std::int64_t>(i % 3);
    expected.topk_weights[i] = 1.0f / static_cast<float>(spec.num_experts());
  }
  const auto sample = oracle::sample_tokens(40, 40);
  const auto compared = oracle::compare_rows(spec.dtype, expected.reference(sample), out.data(), c.out_stride,
                                             spec.hidden_size, sample);
  CHECK_MESSAGE(compared.pass, compared.text());
}

TEST_CASE("small: shared experts in every main loop and gather") {
  if (gpu::device()->attributes().compute_major != 9) return;
  const auto c = oracle::make_case(mixed_spec({200, 72}, true), {.tokens = 900});
  const std::string
      wgmma = "schedule=wgmma,block_k=64,ctas_per_sm=1,warps_m=1,warps_n=8,block_n=128,stages=4,",
      pingpong = "schedule=wgmma_pingpong,block_k=64,ctas_per_sm=1,warps_m=2,warps_n=4,block_n=128,stages=4,",
      portable = "schedule=mma_sync,block_k=64,ctas_per_sm=1,cluster=1,stages=3,";
  struct Pair {
    std::string fc1, fc2;
  };
  for (const Pair& tiles :
       {Pair{wgmma + "block_m=128,cluster=1,gather=fused", wgmma + "block_m=64,cluster=1"},
        Pair{wgmma + "block_m=64,cluster=2,gather=fused", pingpong + "block_m=48,cluster=2"},
        Pair{wgmma + "block_m=128,cluster=1,gather=copy", wgmma + "block_m=128,cluster=1"},
        Pair{pingpong + "block_m=48,cluster=1,gather=fused", pingpong + "block_m=96,cluster=1"},
        Pair{portable + "block_m=64,block_n=128,warps_m=2,warps_n=4,gather=fused",
             portable + "block_m=16,block_n=64,warps_m=1,warps_n=4"}}) {
    CAPTURE(tiles.fc1);
    CAPTURE(tiles.fc2);
    varmoe::EngineOptions options;
    options.cache_dir = gpu::cache_dir();
    options.fc1_config = tiles.fc1;
    options.fc2_config = tiles.fc2;
    options.log = [](varmoe::LogLevel, std::string_view) {};
    auto engine = gpu::must(varmoe::Engine::create(options), "Engine::create");
    check_tokens(c, "shared experts, every main loop", {3, 900}, {}, &engine);
  }
}

TEST_CASE("shared experts of real layers match the oracle from one token to thousands") {
  // DeepSeek-V2-Lite, Qwen2-MoE-A2.7B, GLM-4.5-Air's sizes with fewer experts, Llama-4's layout.
  auto deepseek = varmoe::uniform_spec(2048, 64, 1408, 6);
  deepseek.shared_widths = {2816};
  auto qwen = varmoe::uniform_spec(2048, 60, 1408, 4);
  qwen.shared_widths = {5632};
  qwen.shared_gate = true;
  auto glm = varmoe::uniform_spec(4096, 32, 1408, 8);
  glm.shared_widths = {1408};
  auto llama = varmoe::uniform_spec(2560, 8, 2048, 1);
  llama.shared_widths = {2048};
  llama.fc1_layout = llama.fc2_layout = WeightLayout::kn;
  llama.dtype = DType::fp16;
  for (const auto& spec : {deepseek, qwen, glm, llama}) {
    CAPTURE(varmoe::tuning_signature(spec));
    oracle::CaseOptions options;
    options.tokens = 4096;
    options.routing = oracle::Routing::zipf;
    const auto c = oracle::make_case(spec, options);
    check_tokens(
        c, spec.dtype == DType::bf16 ? "shared experts of models, bf16" : "shared experts of models, fp16",
        {1, 3, 64, 1000, 4096});
  }
}
