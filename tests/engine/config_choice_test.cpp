#include "engine/config_choice.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/gradient_config.hpp"
#include "support/capture_log.hpp"
#include "support/temp_dir.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/store.hpp"
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

/// In the space, and not what the cost model would take.
LayerConfig tuned_config() {
  LayerConfig config = model::predict_layer_config(kSpec, 64, h200());
  config.fc1.raster = config.fc2.raster = 13;
  config.combine.block_threads = 128;
  return config;
}

std::size_t times(const test::CaptureLog& log, const std::string& text) {
  const auto lines = log.lines();
  return static_cast<std::size_t>(std::count_if(lines.begin(), lines.end(), [&](const auto& line) {
    return line.text.find(text) != std::string::npos;
  }));
}

/// A record of kSpec on the H200, saved and loaded again.
tuningdb::TuningSnapshot saved_records(const std::string& folder, std::int64_t tokens,
                                       const LayerConfig& config) {
  TuningRecord record;
  record.key = make_tuning_key(kSpec, tuningdb::tuning_device(h200()), tokens);
  record.config = config;
  record.us = 123;
  record.verified = true;
  record.epochs = tuningdb::current_epochs(config);
  record.config_space = model::kConfigSpaceVersion;
  record.date = "2026-11-21T12:00:00Z";
  const auto saved = tuningdb::TuningStore(folder, Log()).save({&record, 1});
  REQUIRE_MESSAGE(saved.ok(), (saved.ok() ? "" : saved.error().message()));
  tuningdb::TuningSources sources;
  sources.paths = {folder};
  sources.shipped = {};
  auto snapshot = tuningdb::TuningSnapshot::load(sources, Log());
  REQUIRE(snapshot.size() == 1);
  return snapshot;
}

/// In the space, and not what the cost model would take.
BackwardConfig tuned_products() {
  BackwardConfig config = model::predict_products(kSpec, 4096, h200());
  config.dh.raster = config.dx.raster = 13;
  config.fc1_gradient = {Schedule::wgmma, 128, 128, 3, GatherMode::copy};
  config.fc2_gradient = {Schedule::wgmma, 256, 64, 2, GatherMode::fused};
  return model::with_copies(config);
}

tuningdb::TuningSnapshot saved_backward(const std::string& folder, GradientType type) {
  TuningRecord record;
  record.key = make_backward_tuning_key(kSpec, tuningdb::tuning_device(h200()), 4096, type);
  record.backward = tuned_products();
  record.us = 123;
  record.verified = true;
  record.epochs = tuningdb::current_epochs(record.backward);
  record.config_space = model::kConfigSpaceVersion;
  record.date = "2026-11-21T12:00:00Z";
  const auto saved = tuningdb::TuningStore(folder, Log()).save({&record, 1});
  REQUIRE_MESSAGE(saved.ok(), (saved.ok() ? "" : saved.error().message()));
  tuningdb::TuningSources sources;
  sources.paths = {folder};
  sources.shipped = {};
  return tuningdb::TuningSnapshot::load(sources, Log());
}

BackwardConfig products(const engine::BackwardChoice& choice) {
  return {choice.config.fc1, choice.config.fc2, choice.fc1_gradient, choice.fc2_gradient};
}

}  // namespace

TEST_CASE("a backward pass without records and overrides is the cost model's") {
  const auto choice = chooser({}).choose_backward(kSpec, 4096, GradientType::layer_dtype);
  REQUIRE(choice.ok());
  CHECK(choice->source == ConfigSource::predicted);
  CHECK(choice->quality == MatchQuality::predicted);
  CHECK(products(*choice) == model::predict_products(kSpec, 4096, h200()));
}

TEST_CASE("a backward pass takes the record of its gradients, near ones too, and tells what it has not") {
  test::TempDir folder;
  const auto records = saved_backward(folder.path(), GradientType::fp32);
  REQUIRE(records.size() == 1);
  test::CaptureLog lines;
  auto made = engine::ConfigChooser::create(h200(), {}, records, lines.log());
  REQUIRE(made.ok());
  const auto exact = made->choose_backward(kSpec, 4096, GradientType::fp32);
  REQUIRE(exact.ok());
  CHECK(exact->source == ConfigSource::tuned);
  CHECK(exact->quality == MatchQuality::exact);
  CHECK(products(*exact) == tuned_products());
  CHECK(engine::to_string(*exact).find("tuned (exact, ") == 0);
  CHECK(times(lines, "backward") == 0);

  const auto near = made->choose_backward(kSpec, 8192, GradientType::fp32);
  REQUIRE(near.ok());
  CHECK(near->quality == MatchQuality::near_bucket);
  CHECK(products(*near) == tuned_products());
  CHECK(times(lines, "record of match quality \"near_bucket\"") == 1);

  for (int twice = 0; twice < 2; ++twice) {
    const auto other = made->choose_backward(kSpec, 4096, GradientType::layer_dtype);
    REQUIRE(other.ok());
    CHECK(other->source == ConfigSource::predicted);
  }
  CHECK(times(lines, "backward with bf16 gradients on NVIDIA H200: no tuning record in ") == 1);
  CHECK(times(lines, "--tokens 4096 --training") == 1);
  // A record of the backward pass says nothing of the forward.
  const auto forward = made->choose(kSpec, 4096);
  REQUIRE(forward.ok());
  CHECK(forward->source == ConfigSource::predicted);
}

TEST_CASE("overrides go before the record of a backward pass, key by key") {
  test::TempDir folder;
  const auto records = saved_backward(folder.path(), GradientType::layer_dtype);
  engine::OverrideTexts texts;
  texts.dx = {"tokens=1-4096,raster=7", "VARMOE_DX_CONFIG", ErrorCode::invalid_environment};
  texts.dw2 = {"stages=3", "EngineOptions::dw2_config", ErrorCode::invalid_config};
  auto made = engine::ConfigChooser::create(h200(), texts, records);
  REQUIRE(made.ok());
  const auto choice = made->choose_backward(kSpec, 4096, GradientType::layer_dtype);
  REQUIRE(choice.ok());
  BackwardConfig expected = tuned_products();
  expected.dx.raster = 7;
  expected.fc2_gradient.stages = 3;
  CHECK(products(*choice) == expected);
  CHECK(choice->source == ConfigSource::override_);
  CHECK(choice->quality == MatchQuality::exact);
  CHECK(engine::to_string(*choice).find("override (VARMOE_DX_CONFIG \"tokens=1-4096,raster=7\" and "
                                        "EngineOptions::dw2_config \"stages=3\") of tuned (exact, ") == 0);
  // The range of tokens limits the override, not the record.
  const auto beyond = made->choose_backward(kSpec, 8192, GradientType::layer_dtype);
  REQUIRE(beyond.ok());
  CHECK(beyond->config.fc2.raster == 13);
}

TEST_CASE("fault 24: an override that no backward kernel is made for is refused with its origin") {
  engine::OverrideTexts texts;
  texts.dx = {"schedule=mma_sync,block_m=64,block_n=64,block_k=128,stages=2,warps_m=2,warps_n=2",
              "VARMOE_DX_CONFIG", ErrorCode::invalid_environment};
  const auto choice = chooser(texts).choose_backward(kSpec, 64, GradientType::layer_dtype);
  REQUIRE_FALSE(choice.ok());
  CHECK(choice.error().message().find("VARMOE_DX_CONFIG") != std::string::npos);
  CHECK(choice.error().message().find("block_k is 128; must be at most 64 in a gated layer") !=
        std::string::npos);
}

TEST_CASE("without overrides the cost model chooses") {
  const auto choice = chooser({}).choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->source == ConfigSource::predicted);
  CHECK(choice->config == model::predict_layer_config(kSpec, 64, h200()));
}

TEST_CASE("a tuning record goes before the cost model; how well it fits is told") {
  const LayerConfig tuned = tuned_config();
  REQUIRE(tuned != model::predict_layer_config(kSpec, 64, h200()));
  test::TempDir folder;
  const auto records = saved_records(folder.path(), 64, tuned);
  test::CaptureLog lines;
  auto made = engine::ConfigChooser::create(h200(), {}, records, lines.log());
  REQUIRE(made.ok());

  const auto exact = made->choose(kSpec, 64);
  REQUIRE(exact.ok());
  CHECK(exact->source == ConfigSource::tuned);
  CHECK(exact->quality == MatchQuality::exact);
  CHECK(exact->config == tuned);
  CHECK(exact->record.find(folder.path()) != std::string::npos);
  CHECK(engine::to_string(*exact).find("tuned (exact, ") == 0);
  CHECK(times(lines, "record of match quality") == 0);

  for (const std::int64_t near : {32, 128}) {
    const auto choice = made->choose(kSpec, near);
    REQUIRE(choice.ok());
    CHECK(choice->quality == MatchQuality::near_bucket);
    CHECK(choice->config == tuned);
  }
  CHECK(times(lines, "record of match quality \"near_bucket\"") == 2);

  for (int twice = 0; twice < 2; ++twice) {
    const auto far = made->choose(kSpec, 1024);
    REQUIRE(far.ok());
    CHECK(far->source == ConfigSource::predicted);
    CHECK(far->quality == MatchQuality::predicted);
    CHECK(far->config == model::predict_layer_config(kSpec, 1024, h200()));
  }
  CHECK(times(lines, "no tuning record in") == 1);
}

TEST_CASE("an override replaces keys of a tuning record's config and keeps the others") {
  const LayerConfig tuned = tuned_config();
  test::TempDir folder;
  engine::OverrideTexts texts;
  texts.api_fc2 = "raster=2";
  auto made = engine::ConfigChooser::create(h200(), texts, saved_records(folder.path(), 64, tuned));
  REQUIRE(made.ok());
  const auto choice = made->choose(kSpec, 64);
  REQUIRE(choice.ok());
  CHECK(choice->source == ConfigSource::override_);
  CHECK(choice->quality == MatchQuality::exact);
  CHECK(choice->changed_by == "EngineOptions::fc2_config \"raster=2\"");
  CHECK(engine::to_string(*choice).find(
            "override (EngineOptions::fc2_config \"raster=2\") of tuned (exact, ") == 0);
  LayerConfig expected = tuned;
  expected.fc2.raster = 2;
  CHECK(choice->config == expected);
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
