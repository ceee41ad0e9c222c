// Routers and block aligners through the C API, on the CPU.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "oracle/router_case.hpp"
#include "support/router_methods.hpp"
#include "varmoe/varmoe.h"

using namespace varmoe;

namespace {

bool last_error_has(const std::string& part) {
  return std::string(varmoe_last_error()).find(part) != std::string::npos;
}

varmoe_router_spec c_spec(const RouterSpec& s) {
  varmoe_router_spec c;
  REQUIRE(varmoe_router_spec_init(&c, sizeof c) == VARMOE_OK);
  c.num_experts = s.num_experts;
  c.top_k = s.top_k;
  c.logit_type = static_cast<int32_t>(s.logit_type);
  c.scoring = static_cast<int32_t>(s.scoring);
  c.order = static_cast<int32_t>(s.order);
  c.renormalize = s.renormalize ? 1 : 0;
  c.epsilon = s.epsilon;
  c.scaling_factor = s.scaling_factor;
  c.correction_bias = s.correction_bias ? 1 : 0;
  c.group_score = static_cast<int32_t>(s.group_score);
  c.num_groups = s.num_groups;
  c.top_groups = s.top_groups;
  c.outside_groups = static_cast<int32_t>(s.outside_groups);
  c.weight_on_input = s.weight_on_input ? 1 : 0;
  return c;
}

struct CpuEngine {
  varmoe_engine* engine = nullptr;
  CpuEngine() {
    varmoe_engine_options options;
    REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
    options.device = VARMOE_CPU_DEVICE;
    options.cpu_threads = 1;
    REQUIRE(varmoe_engine_create(&options, &engine) == VARMOE_OK);
  }
  ~CpuEngine() { varmoe_engine_destroy(engine); }
  CpuEngine(const CpuEngine&) = delete;
  CpuEngine& operator=(const CpuEngine&) = delete;
};

}  // namespace

TEST_CASE("C: a router of every method routes as the oracle does") {
  const CpuEngine cpu;
  for (const auto& method : test::router_methods()) {
    const RouterSpec spec = test::router_of(method, 64, 6);
    const auto c = oracle::make_router_case(spec, 9, oracle::Logits::normal, 2, 4);
    const varmoe_router_spec given = c_spec(spec);
    varmoe_router* router = nullptr;
    REQUIRE_MESSAGE(varmoe_router_create(cpu.engine, &given, &router) == VARMOE_OK, varmoe_last_error());
    varmoe_report* report = nullptr;
    CHECK(varmoe_router_prepare(router, nullptr, &report) == VARMOE_OK);
    CHECK(varmoe_report_kernel_count(report) == 0);
    varmoe_report_destroy(report);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(9 * spec.top_k));
    std::vector<float> weights(ids.size()), scores(9 * 64);
    varmoe_route_args args;
    REQUIRE(varmoe_route_args_init(&args, sizeof args) == VARMOE_OK);
    args.tokens = 9;
    args.logits = c.logits.data();
    args.logit_stride = c.stride;
    args.correction_bias = c.bias.empty() ? nullptr : c.bias.data();
    args.topk_ids = ids.data();
    args.topk_weights = weights.data();
    args.scores = scores.data();
    REQUIRE_MESSAGE(varmoe_router_route(router, &args) == VARMOE_OK, varmoe_last_error());
    CAPTURE(method.name);
    CHECK(c.problem(ids.data(), weights.data(), 9) == "");
    CHECK(c.scores_problem(scores.data(), 9) == "");
    varmoe_router_destroy(router);
  }
}

TEST_CASE("C: a router that multiplies itself and its statistics") {
  const CpuEngine cpu;
  varmoe_router_spec spec;
  REQUIRE(varmoe_router_spec_init(&spec, sizeof spec) == VARMOE_OK);
  CHECK(spec.weight_type == VARMOE_LOGITS_BF16);
  spec.num_experts = 2;
  spec.top_k = 1;
  spec.hidden_size = 8;
  spec.logit_bias = 1;
  varmoe_router* router = nullptr;
  REQUIRE_MESSAGE(varmoe_router_create(cpu.engine, &spec, &router) == VARMOE_OK, varmoe_last_error());
  std::size_t bytes = 7;
  CHECK(varmoe_router_workspace_bytes(router, 100, &bytes) == VARMOE_OK);
  CHECK(bytes == 0);
  alignas(16) std::uint16_t x[16], weight[16];
  for (int i = 0; i < 16; ++i) {
    x[i] = i < 8 ? 0x3f80 : 0xbf80;       // a token of ones, one of minus ones
    weight[i] = i < 8 ? 0x3f80 : 0x4000;  // an expert of ones, one of twos
  }
  const float bias[2] = {0.5f, 0.0f};
  std::int32_t ids[2];
  float weights[2], logits[4];
  varmoe_route_args args;
  REQUIRE(varmoe_route_args_init(&args, sizeof args) == VARMOE_OK);
  args.tokens = 2;
  args.x = x;
  args.weight = weight;
  args.logit_bias = bias;
  args.logits_out = logits;
  args.topk_ids = ids;
  args.topk_weights = weights;
  REQUIRE_MESSAGE(varmoe_router_route(router, &args) == VARMOE_OK, varmoe_last_error());
  CHECK(std::vector<float>(logits, logits + 4) == std::vector<float>{8.5f, 16.0f, -7.5f, -16.0f});
  CHECK(ids[0] == 1);
  CHECK(ids[1] == 0);
  // A caller of the first version, whose structs end earlier, gets no product.
  varmoe_route_args_init(&args, offsetof(varmoe_route_args, x));
  args.tokens = 1;
  args.topk_ids = ids;
  args.topk_weights = weights;
  CHECK(varmoe_router_route(router, &args) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("x is null"));
  varmoe_router_destroy(router);

  varmoe_router_statistics_spec of;
  REQUIRE(varmoe_router_statistics_spec_init(&of, sizeof of) == VARMOE_OK);
  of.num_experts = 2;
  of.top_k = 1;
  varmoe_router_statistics* statistics = nullptr;
  REQUIRE(varmoe_router_statistics_create(cpu.engine, &of, &statistics) == VARMOE_OK);
  CHECK(varmoe_router_statistics_prepare(statistics, nullptr, nullptr) == VARMOE_OK);
  CHECK(varmoe_router_statistics_workspace_bytes(statistics, 2, &bytes) == VARMOE_OK);
  std::int32_t counts[2];
  float losses[4];
  varmoe_router_statistics_args sums;
  REQUIRE(varmoe_router_statistics_args_init(&sums, sizeof sums) == VARMOE_OK);
  const float even[4] = {0, 0, 0, 0};
  sums.tokens = 2;
  sums.logits = even;
  sums.topk_ids = ids;
  sums.tokens_per_expert = counts;
  sums.losses = losses;
  REQUIRE_MESSAGE(varmoe_router_statistics_compute(statistics, &sums) == VARMOE_OK, varmoe_last_error());
  CHECK(counts[0] == 1);
  CHECK(counts[1] == 1);
  CHECK(losses[1] == 1.0f);
  sums.id_type = 2;
  CHECK(varmoe_router_statistics_compute(statistics, &sums) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("id_type = 2"));
  varmoe_router_statistics_destroy(statistics);
  of.scoring = 5;
  CHECK(varmoe_router_statistics_create(cpu.engine, &of, &statistics) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("scoring = 5"));
  CHECK(varmoe_router_workspace_bytes(nullptr, 1, &bytes) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(varmoe_router_statistics_compute(nullptr, &sums) == VARMOE_E_INVALID_ARGUMENT);
  varmoe_router_statistics_destroy(nullptr);
}

TEST_CASE("C: a block aligner, its sizes and its defaults") {
  const CpuEngine cpu;
  varmoe_align_spec spec;
  REQUIRE(varmoe_align_spec_init(&spec, sizeof spec) == VARMOE_OK);
  CHECK(spec.block_size == 128);
  spec.num_experts = 4;
  spec.block_size = 2;
  varmoe_block_aligner* aligner = nullptr;
  REQUIRE(varmoe_block_aligner_create(cpu.engine, &spec, &aligner) == VARMOE_OK);
  CHECK(varmoe_block_aligner_prepare(aligner, nullptr, nullptr) == VARMOE_OK);
  const std::vector<std::int64_t> ids = {2, 0, -1, 2, 5, 2, 0, 3};
  CHECK(varmoe_sorted_ids_size(4, 2, 8) == 12);
  CHECK(varmoe_aligned_blocks(2, 12) == 6);
  CHECK(varmoe_sorted_ids_size(0, 2, 8) == 0);
  std::size_t bytes = 7;
  CHECK(varmoe_block_aligner_workspace_bytes(aligner, 8, &bytes) == VARMOE_OK);
  CHECK(bytes == 0);
  std::vector<std::int32_t> sorted(12), experts(6);
  std::int32_t padded = 0;
  varmoe_align_args args;
  REQUIRE(varmoe_align_args_init(&args, sizeof args) == VARMOE_OK);
  args.rows = 8;
  args.topk_ids = ids.data();
  args.id_type = VARMOE_ID_INT64;
  args.sorted_token_ids = sorted.data();
  args.expert_ids = experts.data();
  args.num_tokens_post_pad = &padded;
  REQUIRE_MESSAGE(varmoe_block_aligner_align(aligner, &args) == VARMOE_OK, varmoe_last_error());
  CHECK(padded == 8);
  CHECK(sorted == std::vector<std::int32_t>{1, 6, 0, 3, 5, 8, 7, 8, 8, 8, 8, 8});
  CHECK(experts == std::vector<std::int32_t>{0, 2, 2, 3, -1, -1});
  args.id_type = 9;
  CHECK(varmoe_block_aligner_align(aligner, &args) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("id_type = 9"));
  varmoe_block_aligner_destroy(aligner);
}

TEST_CASE("C: what is null, out of range or no enumerator is refused by name") {
  const CpuEngine cpu;
  RouterSpec sound;
  sound.num_experts = 8;
  sound.top_k = 2;
  varmoe_router_spec spec = c_spec(sound);
  varmoe_router* router = nullptr;
  varmoe_block_aligner* aligner = nullptr;
  varmoe_route_args route;
  varmoe_route_args_init(&route, sizeof route);
  varmoe_forward_args forward;
  varmoe_forward_args_init(&forward, sizeof forward);
  std::size_t bytes = 0;
#define REFUSED(call, text)                   \
  CHECK((call) == VARMOE_E_INVALID_ARGUMENT); \
  CHECK_MESSAGE(last_error_has(text), varmoe_last_error())
  REFUSED(varmoe_router_create(nullptr, &spec, &router), "engine is null");
  REFUSED(varmoe_router_create(cpu.engine, &spec, nullptr), "router is null");
  REFUSED(varmoe_router_create(cpu.engine, nullptr, &router), "varmoe_router_spec is null");
  REFUSED(varmoe_router_prepare(nullptr, nullptr, nullptr), "router is null");
  REFUSED(varmoe_router_route(nullptr, &route), "router is null");
  REFUSED(varmoe_block_aligner_create(cpu.engine, nullptr, &aligner), "varmoe_align_spec is null");
  REFUSED(varmoe_block_aligner_prepare(nullptr, nullptr, nullptr), "aligner is null");
  REFUSED(varmoe_block_aligner_workspace_bytes(nullptr, 1, &bytes), "aligner is null");
  REFUSED(varmoe_block_aligner_align(nullptr, nullptr), "aligner is null");
  REFUSED(varmoe_router_spec_init(nullptr, sizeof spec), "varmoe_router_spec");
  REFUSED(varmoe_route_args_init(&route, 8), "struct_size = 8");
  spec.scoring = 2;
  REFUSED(varmoe_router_create(cpu.engine, &spec, &router), "scoring = 2");
  CHECK(router == nullptr);
  spec = c_spec(sound);
  spec.top_k = 9;
  CHECK(varmoe_router_create(cpu.engine, &spec, &router) == VARMOE_E_INVALID_SPEC);
  CHECK(last_error_has("top_k is 9"));
  spec = c_spec(sound);
  spec.weight_on_input = 1;
  REQUIRE(varmoe_router_create(cpu.engine, &spec, &router) == VARMOE_OK);
  varmoe_route_args_init(&route, sizeof route);
  route.tokens = 1;
  REFUSED(varmoe_router_route(router, nullptr), "args is null");
  REFUSED(varmoe_router_route(router, &route), "logits is null");

  varmoe_layer_spec layer_spec;
  varmoe_layer_spec_init(&layer_spec, sizeof layer_spec);
  const std::vector<int64_t> widths(8, 64);
  layer_spec.hidden_size = 64;
  layer_spec.expert_widths = widths.data();
  layer_spec.num_experts = widths.size();
  layer_spec.top_k = 2;
  varmoe_layer* layer = nullptr;
  REQUIRE(varmoe_layer_create(cpu.engine, &layer_spec, nullptr, &layer) == VARMOE_OK);
  REFUSED(varmoe_route_and_forward(router, &route, nullptr, &forward), "layer is null");
  CHECK(varmoe_route_and_forward(router, &route, layer, &forward) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("weight_on_input"));
#undef REFUSED
  varmoe_layer_destroy(layer);
  varmoe_router_destroy(router);
  varmoe_router_destroy(nullptr);
  varmoe_block_aligner_destroy(nullptr);
}
