#include "emit/emit_case.hpp"
#include "emit/sort_shape.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

/// pruned_spec with two of its experts shared.
LayerSpec shared_spec() {
  LayerSpec spec = pruned_spec();
  spec.shared_widths = {spec.expert_widths[4], spec.expert_widths[5]};
  spec.expert_widths.resize(4);
  spec.top_k = 3;
  return spec;
}

}  // namespace

TEST_CASE("to gather and GEMMs shared experts are experts as others; sort and combine know them") {
  const LayerSpec shared = shared_spec();
  LayerSpec routed = pruned_spec();
  routed.top_k = 5;
  for (const Stage stage : kStages) {
    CAPTURE(emit::to_string(stage));
    const bool same = stage == Stage::gather || is_gemm(stage);
    CHECK(same_kernel(must_emit(shared, stage), must_emit(routed, stage)) == same);
  }
  const std::string sort = must_emit(shared, Stage::sort_single).text;
  CHECK(contains(sort, "kExperts = 6;"));
  CHECK(contains(sort, "kTopK = 5;"));
  CHECK(contains(sort, "kSharedExperts = 2;"));
  CHECK(contains(sort, "kSharedGate = false;"));
  CHECK_FALSE(contains(sort, "kHidden"));
  const std::string combine = must_emit(shared, Stage::combine).text;
  CHECK(contains(combine, "kTopK = 5;"));
  CHECK(contains(combine, "kSharedExperts = 2;"));
  CHECK(contains(must_emit(routed, Stage::combine).text, "kSharedExperts = 0;"));
}

TEST_CASE("a shared gate changes sort and combine alone") {
  const LayerSpec shared = shared_spec();
  LayerSpec gate = shared;
  gate.shared_gate = true;
  for (const Stage stage : kStages) {
    CAPTURE(emit::to_string(stage));
    const bool same = stage == Stage::gather || is_gemm(stage);
    CHECK(same_kernel(must_emit(shared, stage), must_emit(gate, stage)) == same);
  }
  const std::string sort = must_emit(gate, Stage::sort_count).text;
  CHECK(contains(sort, "kSharedGate = true;"));
  CHECK(contains(sort, "kHidden = 1024;"));
  CHECK(contains(sort, "Element::bf16"));
}

TEST_CASE("which experts are shared binds at run time: equal class sets and counts share kernels") {
  const LayerSpec a = shared_spec();
  LayerSpec b = a;
  b.expert_widths = {512, 512, 128, 128};
  b.shared_widths = {128, 256};
  for (const Stage stage : kStages) CHECK(same_kernel(must_emit(a, stage), must_emit(b, stage)));
}

TEST_CASE("rows of shared experts count where the sort's form and shared memory are chosen") {
  const LayerSpec spec = shared_spec();
  LayerConfig config;
  config.sort.single_block_rows = 1000;
  CHECK(emit::required_kernels(spec, config, 200, false).size() == 4);
  CHECK(emit::required_kernels(spec, config, 201, false).size() == 6);
  CHECK(must_emit(spec, Stage::sort_single).dynamic_smem_bytes == emit::sort_smem_bytes(6, 256));
}

TEST_CASE("the whole-layer kernel is refused for shared experts") {
  KernelRequest request = request_of(Stage::whole_layer);
  request.one_launch = {8, 2};
  const auto kernel = emit::emit_kernel(shared_spec(), request);
  REQUIRE_FALSE(kernel.ok());
  CHECK(kernel.error().code() == ErrorCode::unsupported);
  CHECK(contains(kernel.error().message(), "takes no shared experts"));
}
