#include "emit/routing.hpp"

#include <doctest/doctest.h>

#include <set>

#include "emit/closed_text.hpp"
#include "emit/emit_case.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

EmittedKernel must_route(const RouterSpec& spec) {
  auto kernel = emit::emit_router(spec);
  REQUIRE_MESSAGE(kernel.ok(), (kernel.ok() ? "" : kernel.error().message()));
  return *std::move(kernel);
}

}  // namespace

TEST_CASE("router and alignment text is closed too") {
  for (const RouterMethod& method : router_methods()) check_closed(must_route(router_of(method, 256, 8)));
  for (const Stage stage : {Stage::align_single, Stage::align_count, Stage::align_scatter}) {
    auto kernel = emit::emit_align({64, 128}, stage);
    REQUIRE(kernel.ok());
    check_closed(*kernel);
    CHECK(kernel->entry_name.rfind(std::string("varmoe_") + emit::to_string(stage) + "_t", 0) == 0);
  }
}

TEST_CASE("routers that compute the same share a kernel, and no others do") {
  RouterSpec mixtral;
  mixtral.num_experts = 8;
  mixtral.top_k = 2;
  mixtral.renormalize = true;
  RouterSpec gpt_oss = mixtral;
  gpt_oss.renormalize = false;
  gpt_oss.order = ScoreOrder::after_top_k;
  CHECK(must_route(mixtral).entry_name == must_route(gpt_oss).entry_name);
  RouterSpec llama = mixtral, plain = mixtral;
  llama.scoring = plain.scoring = Scoring::sigmoid;
  llama.weight_on_input = true;
  CHECK(must_route(llama).entry_name == must_route(plain).entry_name);

  std::set<std::string> names;
  std::size_t count = 0;
  for (const RouterMethod& method : router_methods()) {
    if (method.spec.weight_on_input || method.spec.order == ScoreOrder::after_top_k) continue;
    for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      for (const std::int64_t experts : {64, 128}) {
        for (const std::int64_t top_k : {1, 6}) {
          names.insert(must_route(router_of(method, experts, top_k, type)).entry_name);
          ++count;
        }
      }
    }
  }
  CHECK(names.size() == count);
}

TEST_CASE("a router that multiplies itself: its text is closed and what its product knows keys it") {
  RouterSpec spec = router_of(router_methods().at(1), 64, 6);
  spec.hidden_size = 2048;
  const auto names = [](const RouterSpec& s) {
    auto all = emit::emit_router_kernels(s);
    REQUIRE_MESSAGE(all.ok(), (all.ok() ? "" : all.error().message()));
    std::vector<std::string> of;
    for (const EmittedKernel& kernel : *all) {
      check_closed(kernel);
      of.push_back(kernel.entry_name);
    }
    return of;
  };
  const auto base = names(spec);
  REQUIRE(base.size() == 3);
  CHECK(base[0].rfind("varmoe_route_t128_", 0) == 0);
  CHECK(base[1].rfind("varmoe_router_gemv_t32_", 0) == 0);
  CHECK(base[2].rfind("varmoe_router_gemm_t128_", 0) == 0);
  // The kernel that sums partial products is another than the one that is given logits.
  CHECK(base[0] != must_route(router_of(router_methods().at(1), 64, 6)).entry_name);
  std::set<std::string> products = {base[1], base[2]};
  for (const auto& change : std::vector<void (*)(RouterSpec&)>{
           [](RouterSpec& s) { s.hidden_size = 2056; }, [](RouterSpec& s) { s.input_type = DType::fp16; },
           [](RouterSpec& s) { s.weight_type = LogitType::fp32; },
           [](RouterSpec& s) { s.num_experts = 128; }}) {
    RouterSpec other = spec;
    change(other);
    const auto of = names(other);
    CHECK(products.insert(of[1]).second);
    CHECK(products.insert(of[2]).second);
  }
  // How experts are chosen is nothing to the product, and a bias is bound at run time.
  RouterSpec sigmoid = spec;
  sigmoid.scoring = Scoring::sigmoid;
  sigmoid.logit_bias = true;
  CHECK(names(sigmoid)[1] == base[1]);
  CHECK(names(sigmoid)[2] == base[2]);
}

TEST_CASE("router statistics: two kernels of closed text") {
  auto all = emit::emit_router_statistics({64, 6, LogitType::bf16, Scoring::sigmoid});
  REQUIRE(all.ok());
  REQUIRE(all->size() == 2);
  for (const EmittedKernel& kernel : *all) check_closed(kernel);
  CHECK((*all)[0].stage == Stage::statistics_blocks);
  CHECK((*all)[1].stage == Stage::statistics_total);
  CHECK(emit::emit_router_statistics({0, 1}).error().code() == ErrorCode::invalid_spec);
}

TEST_CASE("a router's gradient: closed text and a kernel for each part that the spec has") {
  const auto kernels = [](const RouterGradientSpec& spec) {
    auto all = emit::emit_router_gradient(spec);
    REQUIRE_MESSAGE(all.ok(), (all.ok() ? "" : all.error().message()));
    for (const EmittedKernel& kernel : *all) check_closed(kernel);
    return *std::move(all);
  };
  const auto stages = [&](const RouterGradientSpec& spec) {
    std::vector<Stage> found;
    for (const EmittedKernel& kernel : kernels(spec)) found.push_back(kernel.stage);
    return found;
  };
  std::set<std::string> names;
  for (const RouterMethod& method : router_methods())
    names.insert(kernels({router_of(method, 64, 6)})[0].entry_name);
  // Bias, groups and where the weight multiplies are of no consequence once experts are chosen; softmax with
  // a bias alone is not softmax over the chosen when renormalised: the router's own kernel is not either.
  CHECK(names.size() == 9);
  RouterGradientSpec spec{router_of(router_methods().at(1), 60, 4)};
  CHECK(stages(spec) == std::vector<Stage>{Stage::router_dlogits});
  spec.losses = loss_bit(RouterLoss::z);
  CHECK(stages(spec) == std::vector<Stage>{Stage::router_dlogits});
  const std::string with_z = kernels(spec)[0].entry_name;
  spec.losses |= loss_bit(RouterLoss::compute);
  CHECK(stages(spec) == std::vector<Stage>{Stage::router_dlogits, Stage::router_loss_terms});
  CHECK(kernels(spec)[1].block_threads == 64);
  CHECK(kernels(spec)[0].entry_name != with_z);
  const auto before = kernels(spec);
  spec.router.hidden_size = 128;
  CHECK(stages(spec) == std::vector<Stage>{Stage::router_dlogits, Stage::router_loss_terms, Stage::router_dx,
                                           Stage::router_dweight});
  CHECK(same_kernel(kernels(spec)[0], before[0]));
  const auto whole = kernels(spec);
  spec.dweight_type = LogitType::bf16;
  CHECK(kernels(spec)[3].entry_name != whole[3].entry_name);
  spec.losses = 16;
  CHECK(emit::emit_router_gradient(spec).error().code() == ErrorCode::invalid_spec);
}

TEST_CASE("the block size is bound at run time: aligners of equal E share kernels") {
  const auto a = emit::emit_align({64, 16}, Stage::align_single),
             b = emit::emit_align({64, 128}, Stage::align_single);
  REQUIRE((a.ok() && b.ok()));
  CHECK(same_kernel(*a, *b));
  const auto few = emit::emit_align({8, 128}, Stage::align_single),
             many = emit::emit_align({1024, 128}, Stage::align_single);
  REQUIRE((few.ok() && many.ok()));
  CHECK(few->block_threads == 1024);
  CHECK(many->dynamic_smem_bytes <= 99 * 1024);
}

TEST_CASE("what no router or alignment is, is refused") {
  RouterSpec spec;
  CHECK(emit::emit_router(spec).error().code() == ErrorCode::invalid_spec);
  CHECK(emit::emit_align({0, 128}, Stage::align_single).error().code() == ErrorCode::invalid_spec);
  CHECK(emit::emit_align({8, 128}, Stage::route).error().code() == ErrorCode::internal);
  KernelRequest request;
  request.stage = Stage::route;
  request.block_threads = 128;
  CHECK(emit::emit_kernel(pruned_spec(), request).error().code() == ErrorCode::internal);
}
