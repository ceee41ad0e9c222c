// Which layers one launch can do, and when it is predicted to.
#include "model/one_launch.hpp"

#include <doctest/doctest.h>

#include <string>

#include "model/cost_model.hpp"

using namespace varmoe;

namespace {

const model::DeviceProfile& h200() {
  static const model::DeviceProfile profile = [] {
    auto found = model::find_profile("h200");
    REQUIRE(found.ok());
    return *found;
  }();
  return profile;
}

LayerSpec qwen3_30b() {
  return uniform_spec(2048, 128, 768, 8);
}

std::string refusal(const LayerSpec& spec, const OneLaunchConfig& config,
                    const model::DeviceProfile& device) {
  const Status status = model::check_one_launch(spec, config, device);
  return status ? "" : status.error().message();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a config that asks for no whole-layer kernel is sound for every layer and device") {
  LayerSpec kn = qwen3_30b();
  kn.fc1_layout = WeightLayout::kn;
  auto a100 = model::find_profile("a100-80gb");
  REQUIRE(a100.ok());
  CHECK(refusal(kn, {}, *a100).empty());
}

TEST_CASE("what is out of range is refused by name, value and choices") {
  CHECK(contains(refusal(qwen3_30b(), {4, 2}, h200()), "max_tokens is 4; must be 0, 8 or 16"));
  CHECK(contains(refusal(qwen3_30b(), {8, 0}, h200()), "teams is 0; must be 1 or 2"));
  CHECK(contains(refusal(qwen3_30b(), {8, 3}, h200()), "teams is 3; must be 1 or 2"));
  auto small = model::find_profile("rtx-5090");
  REQUIRE(small.ok());
  CHECK(contains(refusal(qwen3_30b(), {8, 2}, *small), "shared memory; a block has 101376"));
}

TEST_CASE("kn weights, batch invariance and GPUs without a copy engine are refused with the reason") {
  LayerSpec kn = qwen3_30b();
  kn.fc2_layout = WeightLayout::kn;
  CHECK(contains(refusal(kn, {8, 2}, h200()), "nk weights"));
  LayerSpec invariant = qwen3_30b();
  invariant.batch_invariant = true;
  CHECK(contains(refusal(invariant, {8, 2}, h200()), "batch_invariant"));
  LayerSpec biased = qwen3_30b();
  biased.bias = true;
  CHECK(contains(refusal(biased, {8, 2}, h200()), "knows no biases; set max_tokens to 0"));
  CHECK(refusal(biased, {}, h200()).empty());
  CHECK(model::predict_one_launch(biased, 1, h200()).max_tokens == 0);
  LayerSpec weighted = qwen3_30b();
  weighted.weight_on_input = true;
  CHECK(contains(refusal(weighted, {8, 2}, h200()), "weights on the input"));
  CHECK(model::predict_one_launch(weighted, 1, h200()).max_tokens == 0);
  CHECK(model::predict_one_launch(qwen3_30b(), 1, h200()).max_tokens == 8);
  auto a100 = model::find_profile("a100-80gb");
  REQUIRE(a100.ok());
  CHECK(contains(refusal(qwen3_30b(), {8, 2}, *a100), "needs sm_90"));
}

TEST_CASE("one launch is predicted for few tokens and few bytes of weights, with most teams that fit") {
  CHECK(model::predict_one_launch(qwen3_30b(), 1, h200()) == OneLaunchConfig{8, 2});
  CHECK(model::predict_one_launch(qwen3_30b(), 8, h200()) == OneLaunchConfig{8, 2});
  CHECK(model::predict_one_launch(qwen3_30b(), 16, h200()).max_tokens == 0);
  const LayerSpec mixtral = uniform_spec(4096, 8, 14336, 2);
  CHECK(model::predict_one_launch(mixtral, 1, h200()).max_tokens == 0);
  auto small = model::find_profile("rtx-5090");
  REQUIRE(small.ok());
  CHECK(model::predict_one_launch(qwen3_30b(), 1, *small) == OneLaunchConfig{8, 1});
  LayerSpec kn = qwen3_30b();
  kn.fc1_layout = WeightLayout::kn;
  CHECK(model::predict_one_launch(kn, 1, h200()).max_tokens == 0);
}

TEST_CASE("the predicted config of a layer has it, and is sound") {
  const LayerConfig config = model::predict_layer_config(qwen3_30b(), 1, h200());
  CHECK(config.one_launch.max_tokens == 8);
  CHECK(model::one_launch_smem_bytes(qwen3_30b(), config.one_launch) <= h200().smem_per_block);
  CHECK(model::predict_layer_config(qwen3_30b(), 4096, h200()).one_launch.max_tokens == 0);
}
