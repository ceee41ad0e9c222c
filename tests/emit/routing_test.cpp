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
