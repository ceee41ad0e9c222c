// A router's backward pass through the C API, on the CPU.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "varmoe/varmoe.h"

namespace {

bool last_error_has(const std::string& part) {
  return std::string(varmoe_last_error()).find(part) != std::string::npos;
}

/// Two experts, k = 1, sigmoid; x [2, 8] and a weight [2, 8] of its own.
struct Gradient {
  varmoe_engine* engine = nullptr;
  varmoe_router_spec router;
  varmoe_router_gradient_spec spec;
  varmoe_router_gradient* gradient = nullptr;
  Gradient() {
    varmoe_engine_options options;
    REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
    options.device = VARMOE_CPU_DEVICE;
    options.cpu_threads = 1;
    REQUIRE(varmoe_engine_create(&options, &engine) == VARMOE_OK);
    REQUIRE(varmoe_router_spec_init(&router, sizeof router) == VARMOE_OK);
    router.num_experts = 2;
    router.top_k = 1;
    router.scoring = VARMOE_SCORING_SIGMOID;
    router.scaling_factor = 4;
    router.hidden_size = 8;
    router.logit_bias = 1;
    REQUIRE(varmoe_router_gradient_spec_init(&spec, sizeof spec) == VARMOE_OK);
    spec.router = &router;
    spec.losses = 1 << VARMOE_LOSS_Z | 1 << VARMOE_LOSS_LOAD_BALANCE | 1 << VARMOE_LOSS_GROUP_BALANCE |
                  1 << VARMOE_LOSS_COMPUTE;
    REQUIRE_MESSAGE(varmoe_router_gradient_create(engine, &spec, &gradient) == VARMOE_OK,
                    varmoe_last_error());
  }
  ~Gradient() {
    varmoe_router_gradient_destroy(gradient);
    varmoe_engine_destroy(engine);
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;
};

}  // namespace

TEST_CASE("C: a router's gradient of weights and of each loss") {
  const Gradient of;
  CHECK(varmoe_router_gradient_prepare(of.gradient, nullptr, nullptr) == VARMOE_OK);
  std::size_t bytes = 7;
  CHECK(varmoe_router_gradient_workspace_bytes(of.gradient, 100, &bytes) == VARMOE_OK);
  CHECK(bytes == 0);
  const float logits[4] = {0, 0, std::log(3.0f), 0}, dweights[2] = {1, -2}, means[2] = {0.5f, 0.5f};
  const std::int64_t ids[2] = {1, 0};
  const std::int32_t counts[2] = {2, 0}, widths[2] = {8, 24};
  std::vector<float> out(6);
  varmoe_router_gradient_args args;
  REQUIRE(varmoe_router_gradient_args_init(&args, sizeof args) == VARMOE_OK);
  args.tokens = 2;
  args.logits = logits;
  args.topk_ids = ids;
  args.id_type = VARMOE_ID_INT64;
  args.dtopk_weights = dweights;
  args.dlogits = out.data();
  args.dlogit_stride = 3;
  args.tokens_per_expert = counts;
  args.mean_scores = means;
  args.expert_widths = widths;
  REQUIRE_MESSAGE(varmoe_router_gradient_compute(of.gradient, &args) == VARMOE_OK, varmoe_last_error());
  CHECK(out[0] == 0.0f);
  CHECK(out[1] == doctest::Approx(4 * 0.5 * 0.5));
  CHECK(out[3] == doctest::Approx(-2.0 * 4 * 0.75 * 0.25));
  CHECK(out[4] == 0.0f);
  // Each loss alone.
  args.dtopk_weights = nullptr;
  const auto run = [&](float varmoe_router_gradient_args::*coefficient) {
    varmoe_router_gradient_args one = args;
    one.*coefficient = 1;
    REQUIRE_MESSAGE(varmoe_router_gradient_compute(of.gradient, &one) == VARMOE_OK, varmoe_last_error());
    return out;
  };
  using Args = varmoe_router_gradient_args;
  // log 2 and log 4 over two tokens, times softmax.
  CHECK(run(&Args::z_coefficient)[1] == doctest::Approx(std::log(2.0) / 2));
  CHECK(run(&Args::z_coefficient)[3] == doctest::Approx(std::log(4.0) * 0.75));
  // V = (2, 0): of token 0, u = 1/2 each, 1 - s = 1/2, V - mean = 1 and -1.
  CHECK(run(&Args::load_balance_coefficient)[0] == doctest::Approx(0.125));
  CHECK(run(&Args::load_balance_coefficient)[1] == doctest::Approx(-0.125));
  // Groups of one expert have no gradient.
  CHECK(run(&Args::group_balance_coefficient)[0] == doctest::Approx(0.0));
  // The first expert's term weighs 8 / 16.
  CHECK(run(&Args::compute_coefficient)[0] == doctest::Approx(0.0625));
  args.loss_tokens = 4;  // counts are half as large a share, and P is over twice as many tokens
  CHECK(run(&Args::load_balance_coefficient)[0] == doctest::Approx(0.125 / 4));
}

TEST_CASE("C: a router's gradient by x and by its weight") {
  const Gradient of;
  alignas(16) std::uint16_t x[16], weight[16], dx[16];
  alignas(16) float dweight[16];
  for (int i = 0; i < 16; ++i) {
    x[i] = i < 8 ? 0x3f80 : 0xc000;       // a token of ones, one of minus twos
    weight[i] = i < 8 ? 0x3f80 : 0x4000;  // an expert of ones, one of twos
    dx[i] = 0x3f80;
    dweight[i] = 100;
  }
  const float dlogits[4] = {0.5f, 0.25f, 2, -1};
  float bias[2] = {10, 20};
  varmoe_router_product_gradient_args args;
  REQUIRE(varmoe_router_product_gradient_args_init(&args, sizeof args) == VARMOE_OK);
  args.tokens = 2;
  args.dlogits = dlogits;
  args.x = x;
  args.weight = weight;
  args.dx = dx;
  args.dweight = dweight;
  args.dlogit_bias = bias;
  args.accumulate_dx = 1;
  REQUIRE_MESSAGE(varmoe_router_gradient_product(of.gradient, &args) == VARMOE_OK, varmoe_last_error());
  for (int i = 0; i < 8; ++i) {
    CHECK(dx[i] == 0x4000);      // 1 + 0.5 + 2 * 0.25
    CHECK(dx[8 + i] == 0x3f80);  // 1 + 2 - 2
    CHECK(dweight[i] == -3.5f);
    CHECK(dweight[8 + i] == 2.25f);
  }
  CHECK(bias[0] == 2.5f);
  CHECK(bias[1] == -0.75f);
  args.accumulate_dx = 0;
  args.accumulate_weight = 1;
  REQUIRE(varmoe_router_gradient_product(of.gradient, &args) == VARMOE_OK);
  CHECK(dx[0] == 0x3f80);
  CHECK(dweight[0] == -7.0f);
  CHECK(bias[1] == -1.5f);
}

TEST_CASE("C: a router's gradient refuses what is null, unknown or out of range by name") {
  const Gradient of;
  varmoe_router_gradient_args args;
  varmoe_router_gradient_args_init(&args, sizeof args);
  varmoe_router_product_gradient_args product;
  varmoe_router_product_gradient_args_init(&product, sizeof product);
  varmoe_router_gradient* none = nullptr;
  std::size_t bytes = 0;
#define REFUSED(call, text)                   \
  CHECK((call) == VARMOE_E_INVALID_ARGUMENT); \
  CHECK_MESSAGE(last_error_has(text), varmoe_last_error())
  REFUSED(varmoe_router_gradient_create(nullptr, &of.spec, &none), "engine is null");
  REFUSED(varmoe_router_gradient_create(of.engine, &of.spec, nullptr), "gradient is null");
  REFUSED(varmoe_router_gradient_create(of.engine, nullptr, &none), "varmoe_router_gradient_spec is null");
  REFUSED(varmoe_router_gradient_prepare(nullptr, nullptr, nullptr), "gradient is null");
  REFUSED(varmoe_router_gradient_workspace_bytes(nullptr, 1, &bytes), "gradient is null");
  REFUSED(varmoe_router_gradient_compute(nullptr, &args), "gradient is null");
  REFUSED(varmoe_router_gradient_compute(of.gradient, nullptr), "args is null");
  REFUSED(varmoe_router_gradient_product(nullptr, &product), "gradient is null");
  REFUSED(varmoe_router_gradient_product(of.gradient, nullptr), "args is null");
  varmoe_router_gradient_spec spec = of.spec;
  spec.router = nullptr;
  REFUSED(varmoe_router_gradient_create(of.engine, &spec, &none), "varmoe_router_spec is null");
  spec = of.spec;
  spec.dlogit_type = 3;
  REFUSED(varmoe_router_gradient_create(of.engine, &spec, &none), "dlogit_type = 3");
  spec = of.spec;
  spec.dweight_type = -1;
  REFUSED(varmoe_router_gradient_create(of.engine, &spec, &none), "dweight_type = -1");
  spec = of.spec;
  spec.losses = -1;
  CHECK(varmoe_router_gradient_create(of.engine, &spec, &none) == VARMOE_E_INVALID_SPEC);
  CHECK(none == nullptr);
  args.tokens = 1;
  REFUSED(varmoe_router_gradient_compute(of.gradient, &args), "logits is null");
  args.id_type = 4;
  REFUSED(varmoe_router_gradient_compute(of.gradient, &args), "id_type = 4");
  product.tokens = 1;
  REFUSED(varmoe_router_gradient_product(of.gradient, &product), "dlogits is null");
  product.struct_size = 8;
  REFUSED(varmoe_router_gradient_product(of.gradient, &product), "struct_size = 8");
#undef REFUSED
  varmoe_router_gradient_destroy(nullptr);
}
