// The kernel that does the whole layer: what its text holds and what it follows from.
#include <functional>
#include <utility>
#include <vector>

#include "emit/closed_text.hpp"
#include "emit/emit_case.hpp"
#include "model/one_launch.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

KernelRequest whole_layer(std::int32_t tokens = 8, std::int32_t teams = 2) {
  KernelRequest request;
  request.stage = Stage::whole_layer;
  request.one_launch = {tokens, teams};
  return request;
}

}  // namespace

TEST_CASE("fault 23: the whole-layer kernel's text is closed, for the largest and smallest layers too") {
  LayerSpec most = uniform_spec(kMaxHidden, kMaxExperts, kMaxWidth, kMaxTopK, Activation::swiglu_oai);
  most.expert_widths[3] = 8;
  for (const LayerSpec& spec : {pruned_spec(), most, uniform_spec(kMinHidden, 1, 8, 1, Activation::relu2)})
    check_closed(must_emit(spec, whole_layer()));
}

TEST_CASE("name, block and shared memory of the whole-layer kernel follow from its config") {
  for (const std::int32_t tokens : {8, 16}) {
    for (const std::int32_t teams : {1, 2}) {
      const EmittedKernel kernel = must_emit(pruned_spec(), whole_layer(tokens, teams));
      CHECK(contains(kernel.entry_name,
                     "varmoe_whole_layer_t" + std::to_string(tokens) + "g" + std::to_string(teams) + "_"));
      CHECK(kernel.block_threads == 32 * (4 * teams + 1));
      CHECK(kernel.dynamic_smem_bytes == model::one_launch_smem_bytes(pruned_spec(), {tokens, teams}));
      CHECK(kernel.ctas_per_sm == 1);
    }
  }
}

TEST_CASE("fault 37: the whole-layer kernel depends on H, E, k, activation and dtype, and not on widths") {
  using Change = std::function<void(LayerSpec&)>;
  const std::vector<std::pair<bool, Change>> changes = {
      {true, [](LayerSpec& s) { s.hidden_size = 1032; }},
      {true, [](LayerSpec& s) { s.top_k = 3; }},
      {true, [](LayerSpec& s) { s.expert_widths.push_back(128); }},
      {true, [](LayerSpec& s) { s.dtype = DType::fp16; }},
      {true, [](LayerSpec& s) { s.activation = Activation::gelu_tanh_mul; }},
      {false, [](LayerSpec& s) { s.expert_widths = {8, 16, 24, 32, 40, 48}; }},
      {false, [](LayerSpec& s) { s.gate_order = GateOrder::interleaved; }},
  };
  const EmittedKernel base = must_emit(pruned_spec(), whole_layer());
  for (const auto& [matters, change] : changes) {
    LayerSpec spec = pruned_spec();
    change(spec);
    CHECK(same_kernel(must_emit(spec, whole_layer()), base) == !matters);
  }
}

TEST_CASE("the whole-layer kernel is asked for where a config has it, beside the kernels for more tokens") {
  LayerConfig config;
  const auto without = emit::required_kernels(pruned_spec(), config, 8, false);
  config.one_launch.max_tokens = 8;
  const auto with = emit::required_kernels(pruned_spec(), config, 8, false);
  REQUIRE(with.size() == without.size() + 1);
  CHECK(with.back() == whole_layer(8, config.one_launch.teams));
}

TEST_CASE("layers and configs that the whole-layer kernel does not take are refused") {
  const auto refused = [](const LayerSpec& spec, const KernelRequest& request) {
    const auto kernel = emit::emit_kernel(spec, request);
    REQUIRE_FALSE(kernel.ok());
    return kernel.error();
  };
  LayerSpec kn = pruned_spec(), invariant = pruned_spec();
  kn.fc2_layout = WeightLayout::kn;
  invariant.batch_invariant = true;
  CHECK(refused(kn, whole_layer()).code() == ErrorCode::unsupported);
  CHECK(refused(invariant, whole_layer()).code() == ErrorCode::unsupported);
  CHECK(refused(pruned_spec(), whole_layer(0)).code() == ErrorCode::invalid_config);
  CHECK(refused(pruned_spec(), whole_layer(12)).code() == ErrorCode::invalid_config);
  CHECK(refused(pruned_spec(), whole_layer(8, 3)).code() == ErrorCode::invalid_config);
}
