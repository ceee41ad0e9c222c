#include "engine/config_choice.hpp"

#include <doctest/doctest.h>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "varmoe/layer_spec.hpp"

using namespace varmoe;

namespace {

model::DeviceProfile h200() {
  auto profile = model::find_profile("h200");
  REQUIRE(profile.ok());
  return *profile;
}

engine::ConfigChooser chooser(const engine::OverrideTexts& texts) {
  auto made = engine::ConfigChooser::create(h200(), texts);
  REQUIRE_MESSAGE(made.ok(), (made.ok() ? "" : made.error().message()));
  return *std::move(made);
}

const LayerSpec kSpec = uniform_spec(2048, 128, 768, 8);

}  // namespace

TEST_CASE("without overrides the cost model chooses") {
  const auto choice = chooser({}).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->source == ConfigSource::predicted);
  CHECK(choice->config == model::predict_layer_config(kSpec, 64, h200()));
}

TEST_CASE("an override replaces the keys it names and no others") {
  const LayerConfig predicted = model::predict_layer_config(kSpec, 64, h200());
  const int stages = predicted.fc1.stages == 2 ? 3 : 2;
  engine::OverrideTexts texts;
  texts.api_fc1 = "stages=" + std::to_string(stages);
  const auto choice = chooser(texts).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->source == ConfigSource::override_);
  LayerConfig expected = predicted;
  expected.fc1.stages = stages;
  CHECK(choice->config == expected);
}

TEST_CASE("the API goes before the environment, and a stage's variable before the one for both") {
  engine::OverrideTexts texts;
  texts.env_both = "raster=2";
  texts.env_fc1 = "raster=4";
  auto choice = chooser(texts).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->config.fc1.raster == 4);
  CHECK(choice->config.fc2.raster == 2);
  texts.api_fc1 = "raster=1";
  choice = chooser(texts).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->config.fc1.raster == 1);
  CHECK(choice->config.fc2.raster == 2);
  // A text of the API replaces the environment's for that stage altogether.
  texts.api_fc2 = "stages=2";
  choice = chooser(texts).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->config.fc2.raster == model::predict_layer_config(kSpec, 64, h200()).fc2.raster);
}

TEST_CASE("an override limited to token ranges leaves other buckets to the cost model") {
  engine::OverrideTexts texts;
  texts.api_fc2 = "tokens=1-64,raster=1";
  const auto with = chooser(texts);
  const auto small = with.choose(kSpec, 64), large = with.choose(kSpec, 128);
  REQUIRE(small.ok());
  REQUIRE(large.ok());
  CHECK(small->source == ConfigSource::override_);
  CHECK(small->config.fc2.raster == 1);
  CHECK(large->source == ConfigSource::predicted);
}

TEST_CASE("gather in a text for both stages speaks of fc1 alone") {
  engine::OverrideTexts texts;
  texts.env_both = "gather=copy";
  const auto choice = chooser(texts).choose(kSpec, 4096);
  REQUIRE_MESSAGE(choice.ok(), (choice.ok() ? "" : choice.error().message()));
  CHECK(choice->config.fc1.gather == GatherMode::copy);
  CHECK(choice->config.fc2.gather == GatherMode::fused);
}

TEST_CASE("fault 24: a config outside the space is refused before anything is compiled, with the choices") {
  engine::OverrideTexts texts;
  texts.env_fc1 = "block_m=16,warps_m=4";
  const auto choice = chooser(texts).choose(kSpec, 64);
  REQUIRE_FALSE(choice.ok());
  CHECK(choice.error().code() == ErrorCode::invalid_config);
  const std::string& message = choice.error().message();
  CHECK_MESSAGE(message.find("VARMOE_FC1_CONFIG") != std::string::npos, message);
  CHECK_MESSAGE(message.find("block_m=16,warps_m=4") != std::string::npos, message);
  CHECK_MESSAGE(message.find("at 64 tokens") != std::string::npos, message);
  // A value that no config may have is refused when the text is read.
  texts.env_fc1 = "block_m=44";
  const auto refused = engine::ConfigChooser::create(h200(), texts);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code() == ErrorCode::invalid_environment);
  CHECK_MESSAGE(refused.error().message().find("VARMOE_FC1_CONFIG") != std::string::npos,
                refused.error().message());
  CHECK_MESSAGE(refused.error().message().find("a multiple of 8 from 8 to 256") != std::string::npos,
                refused.error().message());
}

TEST_CASE("fault 24: a config above the device's limits is refused") {
  engine::OverrideTexts texts;
  texts.api_fc2 = "block_m=256,block_n=256,block_k=128,stages=8,warps_m=2,warps_n=8";
  const auto choice = chooser(texts).choose(kSpec, 64);
  REQUIRE_FALSE(choice.ok());
  CHECK(choice.error().code() == ErrorCode::invalid_config);
  CHECK(choice.error().message().find("EngineOptions::fc2_config") != std::string::npos);
}

TEST_CASE("fault 42: a text that does not parse is refused with its origin") {
  engine::OverrideTexts texts;
  texts.env_both = "block_q=1";
  auto made = engine::ConfigChooser::create(h200(), texts);
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code() == ErrorCode::invalid_environment);
  CHECK(made.error().message().find("VARMOE_CONFIG") != std::string::npos);
  CHECK(made.error().message().find("block_q") != std::string::npos);
  texts = {};
  texts.api_fc1 = "block_m=many";
  made = engine::ConfigChooser::create(h200(), texts);
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code() == ErrorCode::invalid_config);
  CHECK(made.error().message().find("EngineOptions::fc1_config") != std::string::npos);
}
