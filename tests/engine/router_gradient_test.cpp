// RouterGradient on the fake driver and on the CPU.
#include "varmoe/router_gradient.hpp"

#include <cmath>
#include <vector>

#include "engine_fixture.hpp"
#include "oracle/router_gradient_case.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct GradientFixture : EngineFixture {
  static RouterGradientSpec whole_spec() {
    RouterGradientSpec spec{test::router_of(test::router_methods().at(1), 64, 6), 15};
    spec.router.hidden_size = 192;
    return spec;
  }
  static RouterGradient make(Engine& engine, const RouterGradientSpec& spec) {
    auto gradient = engine.create_router_gradient(spec);
    REQUIRE_MESSAGE(gradient.ok(), (gradient.ok() ? "" : gradient.error().message()));
    return *std::move(gradient);
  }
  RouterGradientArgs args(const RouterGradient& gradient, std::int64_t tokens) {
    const RouterSpec& spec = gradient.spec().router;
    const auto t = static_cast<std::size_t>(tokens), e = static_cast<std::size_t>(spec.num_experts),
               k = static_cast<std::size_t>(spec.top_k);
    RouterGradientArgs a;
    a.tokens = tokens;
    a.logits = arena.take(t * e * 4);
    a.topk_ids = arena.take(t * k * 4);
    a.dtopk_weights = static_cast<const float*>(arena.take(t * k * 4));
    a.dlogits = arena.take(t * e * 4);
    a.tokens_per_expert = static_cast<const std::int32_t*>(arena.take(e * 4));
    a.mean_scores = static_cast<const float*>(arena.take(e * 4));
    a.workspace_bytes = *gradient.workspace_bytes(tokens);
    a.workspace = arena.take(a.workspace_bytes + 1);
    return a;
  }
  RouterProductGradientArgs product_args(const RouterGradient& gradient, std::int64_t tokens) {
    const RouterSpec& spec = gradient.spec().router;
    const auto t = static_cast<std::size_t>(tokens), e = static_cast<std::size_t>(spec.num_experts),
               h = static_cast<std::size_t>(spec.hidden_size);
    RouterProductGradientArgs a;
    a.tokens = tokens;
    a.dlogits = static_cast<const float*>(arena.take(t * e * 4));
    a.x = arena.take(t * h * 2);
    a.weight = arena.take(e * h * 2);
    a.dx = arena.take(t * h * 2);
    a.dweight = arena.take(e * h * 4);
    return a;
  }
  test::Arena arena;
};

struct CpuGradientFixture : GradientFixture {
  CpuGradientFixture() { options.device = kCpuDevice; }
};

bool begins(const std::string& text, const char* with) {
  return text.rfind(with, 0) == 0;
}

template <class Args, class Run, class Change>
std::string refusal(Args args, const Run& run, const Change& change) {
  change(args);
  const Status status = run(args);
  return status ? std::string("accepted") : status.error().message();
}

bool has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE_FIXTURE(GradientFixture, "a router gradient is one launch, or two with a loss of mean scores") {
  Engine engine = make_engine();
  RouterGradient gradient = make(engine, whole_spec());
  const auto report = gradient.prepare();
  require_ok(report);
  CHECK(report->kernels.size() == 4);
  CHECK(*gradient.workspace_bytes(1000) == 64 * 4);
  RouterGradientArgs sound = args(gradient, 37);
  fake_cuda::clear_launches();
  require_ok(gradient.compute(sound));
  sound.coefficients[0] = 0.5f;
  require_ok(gradient.compute(sound));
  auto launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  for (const auto& launch : launches) {
    CHECK(begins(launch.name, "varmoe_router_dlogits_t128_"));
    CHECK(launch.grid[0] == 10);
    CHECK(launch.programmatic);
  }
  sound.coefficients[3] = 0.5f;
  fake_cuda::clear_launches();
  require_ok(gradient.compute(sound));
  launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  CHECK(begins(launches[0].name, "varmoe_router_loss_terms_t64_"));
  CHECK(launches[0].grid[0] == 1);
  CHECK(begins(launches[1].name, "varmoe_router_dlogits_t128_"));
  require_ok(gradient.compute({}));  // no tokens
  // A spec without such losses needs neither kernel nor workspace.
  RouterGradientSpec few{whole_spec().router, loss_bit(RouterLoss::z)};
  few.router.hidden_size = 0;
  RouterGradient plain = make(engine, few);
  CHECK(plain.prepare()->kernels.size() == 1);
  CHECK(*plain.workspace_bytes(1000) == 0);
}

TEST_CASE_FIXTURE(GradientFixture, "a router gradient's product is a launch for each side") {
  Engine engine = make_engine();
  RouterGradientSpec spec = whole_spec();
  spec.router.logit_bias = true;
  RouterGradient gradient = make(engine, spec);
  require_ok(gradient.prepare());
  RouterProductGradientArgs both = product_args(gradient, 130);
  fake_cuda::clear_launches();
  require_ok(gradient.product(both));
  auto launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  CHECK(begins(launches[0].name, "varmoe_router_dx_t128_"));
  CHECK(launches[0].grid[0] == 3);
  CHECK(launches[0].grid[1] == 3);
  CHECK(begins(launches[1].name, "varmoe_router_dweight_t128_"));
  CHECK(launches[1].grid[0] == 3);
  CHECK(launches[1].grid[1] == 1);
  fake_cuda::clear_launches();
  both.dweight = nullptr;
  both.x = nullptr;
  require_ok(gradient.product(both));
  both.dx = nullptr;
  both.weight = nullptr;
  require_ok(gradient.product(both));  // nothing asked for
  both.dlogit_bias = static_cast<float*>(arena.take(64 * 4));
  require_ok(gradient.product(both));
  launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  CHECK(begins(launches[0].name, "varmoe_router_dx_t128_"));
  CHECK(begins(launches[1].name, "varmoe_router_dweight_t128_"));
  CHECK(launches[1].grid[0] == 1);
  // Without tokens the weight's gradient becomes zero all the same.
  RouterProductGradientArgs none;
  none.dx = arena.take(16);
  none.dweight = arena.take(64 * 192 * 4);
  fake_cuda::clear_launches();
  require_ok(gradient.product(none));
  REQUIRE(fake_cuda::launches().size() == 1);
  CHECK(begins(fake_cuda::launches()[0].name, "varmoe_router_dweight_t128_"));
}

TEST_CASE_FIXTURE(GradientFixture, "a router gradient's mistakes are named") {
  Engine engine = make_engine();
  RouterGradient gradient = make(engine, whole_spec());
  require_ok(gradient.prepare());
  RouterGradientArgs sound = args(gradient, 9);
  sound.coefficients[2] = 1;
  using Args = RouterGradientArgs;
  const auto compute = [&](auto change) {
    return refusal(
        sound, [&](const Args& a) { return gradient.compute(a); }, change);
  };
  CHECK(compute([](Args&) {}) == "accepted");
  fake_cuda::clear_launches();
  CHECK(compute([](Args& a) { a.logits = nullptr; }) == "RouterGradientArgs: logits is null");
  CHECK(has(compute([](Args& a) { a.tokens = -1; }), "tokens = -1: must be from 0 to"));
  CHECK(has(compute([](Args& a) { a.tokens = INT32_MAX / 6 + 1; }), "must be from 0 to"));
  CHECK(has(compute([](Args& a) { a.logit_stride = 63; }), "logit_stride = 63"));
  CHECK(has(compute([](Args& a) { a.dlogit_stride = 63; }), "dlogit_stride = 63"));
  CHECK(has(compute([](Args& a) { a.id_type = static_cast<IdType>(7); }), "id_type = 7"));
  CHECK(has(compute([](Args& a) { a.topk_ids = nullptr; }), "topk_ids is null"));
  CHECK(has(compute([](Args& a) { a.dlogits = nullptr; }), "dlogits is null"));
  CHECK(has(compute([](Args& a) { a.tokens_per_expert = nullptr; }), "tokens_per_expert is null"));
  CHECK(has(compute([](Args& a) { a.mean_scores = nullptr; }), "mean_scores is null"));
  CHECK(has(compute([](Args& a) { a.coefficients[1] = std::nanf(""); }), "coefficients[1] = nan"));
  CHECK(has(compute([](Args& a) { a.loss_tokens = -1; }), "loss_tokens = -1"));
  CHECK(has(compute([](Args& a) { a.workspace = nullptr; }), "workspace_bytes = 0: 64 experts need 256"));
  CHECK(compute([](Args& a) {
          a.workspace = nullptr;  // nothing is needed without a loss of mean scores
          a.coefficients[2] = 0;
          a.tokens_per_expert = nullptr;
          a.mean_scores = nullptr;
          a.dtopk_weights = nullptr;
          a.topk_ids = nullptr;
        }) == "accepted");
  fake_cuda::clear_launches();

  const RouterProductGradientArgs whole = product_args(gradient, 9);
  using Product = RouterProductGradientArgs;
  const auto product = [&](auto change) {
    return refusal(
        whole, [&](const Product& a) { return gradient.product(a); }, change);
  };
  CHECK(product([](Product& a) { a.dlogits = nullptr; }) == "RouterProductGradientArgs: dlogits is null");
  CHECK(has(product([](Product& a) { a.x = nullptr; }), "x is null"));
  CHECK(has(product([](Product& a) { a.weight = nullptr; }), "weight is null"));
  CHECK(has(product([](Product& a) { a.dx_stride = 196; }),
            "dx_stride = 196: must be 0 (hidden_size), or a multiple of 8"));
  CHECK(has(product([](Product& a) { a.dweight_stride = 184; }), "dweight_stride = 184"));
  CHECK(has(product([](Product& a) { a.dlogit_stride = 5; }), "dlogit_stride = 5"));
  CHECK(has(product([](Product& a) { a.tokens = -2; }), "tokens = -2"));
  CHECK(has(product([](Product& a) { a.dx = static_cast<char*>(a.dx) + 4; }), "16-byte aligned"));
  float bias[64];
  CHECK(has(product([&](Product& a) { a.dlogit_bias = bias; }), "dlogit_bias must be null"));
  CHECK(fake_cuda::launches().empty());

  RouterGradientSpec wrong = whole_spec();
  wrong.losses = 32;
  CHECK(engine.create_router_gradient(wrong).error().message().find("losses is 0x20") != std::string::npos);
  wrong = whole_spec();
  wrong.dlogit_type = LogitType::bf16;
  CHECK(engine.create_router_gradient(wrong).error().code() == ErrorCode::invalid_spec);
  CHECK(engine.create_router_gradient({}).error().code() == ErrorCode::invalid_spec);
  RouterGradientSpec given = whole_spec();
  given.router.hidden_size = 0;
  given.losses = loss_bit(RouterLoss::z);
  RouterGradient no_product = make(engine, given);
  CHECK(no_product.product(whole).error().code() == ErrorCode::unsupported);
  sound.coefficients[2] = 0;
  sound.coefficients[1] = 2;
  CHECK(has(no_product.compute(sound).error().message(),
            "coefficients[1] = 2: must be 0, RouterGradientSpec::losses lacks"));
  CHECK_FALSE(no_product.workspace_bytes(-1).ok());
  RouterGradient moved = std::move(no_product);
  CHECK(has(no_product.compute(sound).error().message(), "moved from"));  // NOLINT(bugprone-use-after-move)
}

TEST_CASE_FIXTURE(CpuGradientFixture, "the CPU engine computes a router's gradient through the same calls") {
  Engine engine = make_engine();
  RouterGradient gradient = make(engine, whole_spec());
  CHECK(gradient.prepare()->kernels.empty());
  CHECK(*gradient.workspace_bytes(1000) == 0);
  const auto c = oracle::make_gradient_case(gradient.spec(), 7, oracle::Logits::normal, 3);
  RouterGradientArgs a = args(gradient, 7);
  a.logits = c.router.logits.data();
  a.topk_ids = c.ids.data();
  a.id_type = IdType::int64;
  a.dtopk_weights = c.dweights.data();
  std::copy_n(c.coefficients, kRouterLosses, a.coefficients);
  a.tokens_per_expert = c.counts.data();
  a.mean_scores = c.means.data();
  a.expert_widths = c.widths.data();
  a.workspace = nullptr;
  std::vector<std::byte> dlogits(7 * 64 * 4);
  a.dlogits = dlogits.data();
  require_ok(gradient.compute(a));
  CHECK(c.problem(dlogits, 64, 7) == "");

  const auto p = oracle::make_product_gradient_case(gradient.spec(), 7, 4);
  RouterProductGradientArgs b = product_args(gradient, 7);
  const auto copy = [&](const std::vector<std::byte>& bytes) {
    void* to = arena.take(bytes.size());
    std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(to));
    return to;
  };
  b.dlogits = p.dlogits.data();
  b.x = copy(p.product.x.bytes);
  b.weight = copy(p.product.weight.bytes);
  require_ok(gradient.product(b));
  const auto read = [](const void* from, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(from);
    return std::vector<std::byte>(first, first + bytes);
  };
  CHECK(p.dx_problem(read(b.dx, 7 * 192 * 2), 7, false) == "");
  CHECK(p.dweight_problem(read(b.dweight, 64 * 192 * 4), 7, false) == "");
}
