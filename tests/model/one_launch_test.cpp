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
  CHECK(contains(refusal(qwen3_30b(), {4, 6}, h200()), "max_tokens is 4; must be 0, 8, 16, 32 or 64"));
  CHECK(contains(refusal(qwen3_30b(), {8, 3}, h200()), "stages is 3; must be from 4 to 8"));
  CHECK(contains(refusal(qwen3_30b(), {8, 9}, h200()), "stages is 9; must be from 4 to 8"));
  CHECK(contains(refusal(qwen3_30b(), {8, 8}, h200()), "shared memory; a block has 232448"));
}

TEST_CASE("kn weights, batch invariance and GPUs without a copy engine are refused with the reason") {
  LayerSpec kn = qwen3_30b();
  kn.fc2_layout = WeightLayout::kn;
  CHECK(contains(refusal(kn, {8, 6}, h200()), "nk weights"));
  LayerSpec invariant = qwen3_30b();
  invariant.batch_invariant = true;
  CHECK(contains(refusal(invariant, {8, 6}, h200()), "batch_invariant"));
  LayerSpec biased = qwen3_30b();
  biased.bias = true;
  CHECK(contains(refusal(biased, {8, 6}, h200()), "knows no biases; set max_tokens to 0"));
  CHECK(refusal(biased, {}, h200()).empty());
  CHECK(model::predict_one_launch(biased, 1, h200()).max_tokens == 0);
  LayerSpec weighted = qwen3_30b();
  weighted.weight_on_input = true;
  CHECK(contains(refusal(weighted, {8, 6}, h200()), "weights on the input"));
  CHECK(model::predict_one_launch(weighted, 1, h200()).max_tokens == 0);
  CHECK(model::predict_one_launch(qwen3_30b(), 1, h200()).max_tokens == 8);
  auto a100 = model::find_profile("a100-80gb");
  REQUIRE(a100.ok());
  CHECK(contains(refusal(qwen3_30b(), {8, 6}, *a100), "needs sm_90"));
}

TEST_CASE(
    "one launch is predicted for few tokens and few bytes of weights, with the deepest ring that fits") {
  CHECK(model::predict_one_launch(qwen3_30b(), 1, h200()) == OneLaunchConfig{8, 6});
  CHECK(model::predict_one_launch(qwen3_30b(), 8, h200()) == OneLaunchConfig{8, 6});
  CHECK(model::predict_one_launch(qwen3_30b(), 16, h200()).max_tokens == 0);
  const LayerSpec mixtral = uniform_spec(4096, 8, 14336, 2);
  CHECK(model::predict_one_launch(mixtral, 1, h200()).max_tokens == 0);
  LayerSpec many = uniform_spec(1024, 1024, 64, 32);
  CHECK(model::predict_one_launch(many, 1, h200()).stages ==
        5);  // tables of 1024 experts and 256 slots take a stage's room
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
