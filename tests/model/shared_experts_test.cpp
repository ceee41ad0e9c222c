// Shared experts in specs, signatures, weights, model files and predictions.
#include <doctest/doctest.h>

#include <string>

#include "model/cost_model.hpp"
#include "model/model_config.hpp"
#include "model/one_launch.hpp"
#include "model/routing_stats.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

using namespace varmoe;

namespace {

LayerSpec shared_spec() {
  LayerSpec spec = uniform_spec(256, 6, 64, 2);
  spec.expert_widths[1] = 128;
  spec.shared_widths = {192, 64};
  return spec;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const void* at(std::uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}

model::DeviceProfile h200() {
  auto profile = model::find_profile("h200");
  REQUIRE(profile.ok());
  return *profile;
}

model::ModelConfig read(const std::string& text, bool shared) {
  model::ReadOptions options;
  options.dtype = DType::bf16;
  options.shared_experts = shared;
  auto config = model::read_model_text(text, "config.json", options);
  REQUIRE_MESSAGE(config.ok(), (config.ok() ? "" : config.error().message()));
  return *std::move(config);
}

bool has_note(const model::ModelConfig& config, const std::string& part) {
  for (const std::string& note : config.notes)
    if (contains(note, part)) return true;
  return false;
}

}  // namespace

TEST_CASE("counts and widths of routed, shared and all experts") {
  const LayerSpec spec = shared_spec();
  REQUIRE(spec.validate().ok());
  CHECK(spec.num_experts() == 6);
  CHECK(spec.num_shared() == 2);
  CHECK(spec.all_experts() == 8);
  CHECK(spec.slots_per_token() == 4);
  CHECK(spec.width_of(1) == 128);
  CHECK(spec.width_of(5) == 64);
  CHECK(spec.width_of(6) == 192);
  CHECK(spec.width_of(7) == 64);
  CHECK(spec.max_width() == 128);
  CHECK(spec.widest_of_all() == 192);
  CHECK(spec.total_width() == 5 * 64 + 128);
  CHECK(width_classes(spec) == std::vector<WidthClass>{{64, 6}, {128, 1}, {192, 1}});
  const LayerSpec plain = uniform_spec(256, 6, 64, 2);
  CHECK(plain.all_experts() == 6);
  CHECK(plain.slots_per_token() == 2);
  CHECK(plain.widest_of_all() == 64);
}

TEST_CASE("shared experts out of range are refused by name") {
  const auto refusal = [](const LayerSpec& spec) {
    const Status status = spec.validate();
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::invalid_spec);
    return status.error().message();
  };
  LayerSpec spec = shared_spec();
  spec.shared_widths = {64, 12};
  CHECK(contains(refusal(spec), "shared_widths[1] is 12"));
  spec.shared_widths.assign(17, 64);
  CHECK(contains(refusal(spec), "shared_widths has 17 entries"));
  spec.shared_widths.clear();
  spec.shared_gate = true;
  CHECK(contains(refusal(spec), "shared_gate is true without shared experts"));
  spec.shared_widths.assign(16, 64);
  CHECK(spec.validate().ok());
}

TEST_CASE("signatures tell shared experts from routed ones, and layers without them do not speak of them") {
  const LayerSpec spec = shared_spec();
  LayerSpec routed = spec;
  routed.expert_widths = {64, 128, 64, 64, 64, 64, 192, 64};
  routed.shared_widths.clear();
  CHECK(width_classes(routed) == width_classes(spec));
  CHECK(kernel_signature(routed) != kernel_signature(spec));
  CHECK_FALSE(contains(kernel_signature(routed), "shared"));
  CHECK(contains(kernel_signature(spec), "widths=64,128,192"));
  CHECK(contains(kernel_signature(spec), " shared=2 shared_gate=0"));
  CHECK(contains(tuning_signature(spec), "widths=5x64,1x128"));
  CHECK(contains(tuning_signature(spec), " shared=1x64,1x192 shared_gate=0"));
  LayerSpec gate = spec;
  gate.shared_gate = true;
  CHECK(kernel_signature(gate) != kernel_signature(spec));
  // Which expert has which width binds at run time; for tuning it matters.
  LayerSpec swapped = spec;
  swapped.expert_widths[0] = 192;
  swapped.shared_widths = {64, 64};
  CHECK(kernel_signature(swapped) == kernel_signature(spec));
  CHECK(tuning_signature(swapped) != tuning_signature(spec));
}

TEST_CASE("shared weights: blocks one after another, pointers, and the gate") {
  LayerSpec spec = shared_spec();
  spec.shared_gate = true;
  auto weights = Weights::blocks(spec, at(0x10000), at(0x900000));
  REQUIRE(weights.ok());
  CHECK_FALSE(weights->validate(spec).ok());
  REQUIRE(weights->set_shared_blocks(spec, at(0x1000000), at(0x2000000), at(0x3000000)).ok());
  REQUIRE(weights->validate(spec).ok());
  REQUIRE(weights->shared.size() == 2);
  CHECK(weights->shared[0].gate == at(0x1000000));
  CHECK(weights->shared[0].up == at(0x1000000 + 192 * 256 * 2));
  CHECK(weights->shared[0].down == at(0x2000000));
  CHECK(weights->shared[0].fc1_stride == 256);
  CHECK(weights->shared[0].fc2_stride == 192);
  CHECK(weights->shared[1].gate == at(0x1000000 + 2 * 192 * 256 * 2));
  CHECK(weights->shared[1].down == at(0x2000000 + 192 * 256 * 2));
  CHECK(weights->shared[1].fc2_stride == 64);
  CHECK(weights->shared_gate == at(0x3000000));

  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = GateOrder::up_first;
  auto kn = Weights::blocks(spec, at(0x10000), at(0x900000));
  REQUIRE(kn.ok());
  REQUIRE(kn->set_shared_pointers(spec, {at(0x4000), at(0x8000)}, {at(0x5000), at(0x9000)}, at(0x3000)).ok());
  CHECK(kn->shared[1].up == at(0x8000));
  CHECK(kn->shared[1].gate == at(0x8000 + 64 * 2));
  CHECK(kn->shared[1].fc1_stride == 128);
  CHECK(kn->shared[1].fc2_stride == 256);
  CHECK(kn->validate(spec).ok());
}

TEST_CASE("shared weights that are wrong are refused with the expert's name") {
  LayerSpec spec = shared_spec();
  auto made = Weights::blocks(spec, at(0x10000), at(0x900000));
  REQUIRE(made.ok());
  Weights weights = *made;
  const auto message = [](const Status& status) {
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    return status.error().message();
  };
  CHECK(contains(message(weights.validate(spec)), "weights of 0 shared experts; the layer has 2"));
  CHECK(
      contains(message(weights.set_shared_blocks(spec, nullptr, at(0x1000))), "shared experts: fc1 is null"));
  CHECK(contains(message(weights.set_shared_blocks(spec, at(0x1008), at(0x1000))),
                 "shared expert 0: gate is at 0x1008"));
  CHECK(contains(message(weights.set_shared_blocks(spec, at(0x1000), at(0x1000), at(0x1000))),
                 "shared_gate must be null"));
  CHECK(contains(message(weights.set_shared_pointers(spec, {at(0x1000)}, {at(0x1000)})),
                 "1 fc1 and 1 fc2 pointers; the layer has 2 shared experts"));
  CHECK(contains(message(weights.set_shared_pointers(spec, {at(0x1000), nullptr}, {at(0x1000), at(0x1000)})),
                 "shared expert 1: fc1 is null"));
  CHECK(weights.shared.empty());  // what fails changes nothing
  REQUIRE(weights.set_shared_blocks(spec, at(0x1000), at(0x2000)).ok());
  weights.shared[1].fc2_stride = 8;
  CHECK(contains(message(weights.validate(spec)), "shared expert 1: fc2_stride is 8"));
  LayerSpec gate = spec;
  gate.shared_gate = true;
  CHECK(contains(message(weights.set_shared_blocks(gate, at(0x1000), at(0x2000))), "shared_gate is null"));
  CHECK(contains(message(weights.set_shared_blocks(gate, at(0x1000), at(0x2000), at(0x2004))),
                 "shared_gate is at 0x2004"));
  const LayerSpec none = uniform_spec(256, 6, 64, 2);
  CHECK(contains(message(weights.set_shared_blocks(none, at(0x1000), at(0x2000))), "no shared experts"));
  auto routed = Weights::blocks(none, at(0x10000), at(0x900000));
  REQUIRE(routed.ok());
  routed->shared_gate = at(0x1000);
  CHECK(contains(message(routed->validate(none)), "shared_gate must be null"));
}

TEST_CASE("config.json: shared experts are left out unless they are asked for") {
  const std::string deepseek =
      R"({"model_type": "deepseek_v2", "hidden_size": 2048, "moe_intermediate_size": 1408, "n_routed_experts": 64,
          "n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 4})";
  const auto without = read(deepseek, false), with = read(deepseek, true);
  CHECK(without.layers[0].spec.shared_widths.empty());
  CHECK(has_note(without, "shared experts are computed outside the layer"));
  CHECK(with.layers[0].spec.shared_widths == std::vector<std::int64_t>{2816});
  CHECK_FALSE(with.layers[0].spec.shared_gate);
  CHECK_FALSE(has_note(with, "outside the layer"));
  CHECK(has_note(with, "the shared expert (width 2816) is part of the layer"));
  LayerSpec cleared = with.layers[0].spec;
  cleared.shared_widths.clear();
  CHECK(cleared == without.layers[0].spec);

  const std::string qwen =
      R"({"model_type": "qwen2_moe", "hidden_size": 2048, "moe_intermediate_size": 1408, "num_experts": 60,
          "num_experts_per_tok": 4, "num_hidden_layers": 2, "shared_expert_intermediate_size": 5632})";
  const LayerSpec gate = read(qwen, true).layers[0].spec;
  CHECK(gate.shared_widths == std::vector<std::int64_t>{5632});
  CHECK(gate.shared_gate);

  for (const char* family : {"deepseek_v3", "kimi_k2", "glm4_moe"}) {
    CAPTURE(family);
    const std::string text =
        std::string(R"({"model_type": ")") + family +
        R"(", "hidden_size": 512, "moe_intermediate_size": 128, "n_routed_experts": 16, "n_shared_experts": 1,
            "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "num_hidden_layers": 6})";
    const LayerSpec one = read(text, true).layers[0].spec;
    CHECK(one.shared_widths == std::vector<std::int64_t>{128});
    CHECK_FALSE(one.shared_gate);
  }

  const std::string llama =
      R"({"model_type": "llama4_text", "hidden_size": 512, "intermediate_size": 1024, "intermediate_size_mlp": 2048,
          "num_local_experts": 16, "num_experts_per_tok": 1, "num_hidden_layers": 2})";
  const auto llama4 = read(llama, true);
  CHECK(llama4.layers[0].spec.shared_widths == std::vector<std::int64_t>{1024});
  CHECK(has_note(llama4, "bind it transposed"));

  // A family, or a file, without any.
  const std::string plain =
      R"({"model_type": "deepseek_v2", "hidden_size": 512, "moe_intermediate_size": 128, "n_routed_experts": 16,
          "n_shared_experts": null, "num_experts_per_tok": 4, "num_hidden_layers": 2})";
  CHECK(read(plain, true).layers[0].spec.shared_widths.empty());
}

TEST_CASE("layer files name shared experts themselves, and layers may replace or clear them") {
  const auto model = read(R"({"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "expert_widths": [64, 64],
      "shared_widths": [128, 64], "shared_gate": true,
      "layers": [{}, {"shared_widths": [], "shared_gate": false}, {"shared_widths": [256]}]})",
                          false);
  REQUIRE(model.layers.size() == 3);
  CHECK(model.layers[0].spec.shared_widths == std::vector<std::int64_t>{128, 64});
  CHECK(model.layers[0].spec.shared_gate);
  CHECK(model.layers[1].spec.shared_widths.empty());
  CHECK_FALSE(model.layers[1].spec.shared_gate);
  CHECK(model.layers[2].spec.shared_widths == std::vector<std::int64_t>{256});
  const auto bad = model::read_model_text(
      R"({"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "expert_widths": [64], "shared_gate": true})",
      "layer.json");
  REQUIRE_FALSE(bad.ok());
  CHECK(contains(bad.error().message(), "shared_gate is true without shared experts"));
}

TEST_CASE("a shared expert gets a row of every token, and the floor counts its weights once hit") {
  const auto stats = model::RoutingStats::of_every_token(300);
  CHECK(stats.mean() == 300);
  CHECK(stats.hit_share() == 1);
  CHECK(stats.row_tiles(128).mean == 3);
  CHECK(stats.row_tiles(128).variance == 0);
  CHECK(stats.row_tiles(128, 2).mean == 4);
  CHECK(model::RoutingStats::of_every_token(0).hit_share() == 0);

  LayerSpec spec = uniform_spec(1024, 4, 256, 1), plain = spec;
  spec.shared_widths = {512};
  const auto floor = model::layer_floor(spec, 10, h200(), {0, 7, 0, 3});
  const auto routed = model::layer_floor(plain, 10, h200(), {0, 7, 0, 3});
  CHECK(floor.flops - routed.flops == doctest::Approx(6.0 * 1024 * 10 * 512));
  CHECK(floor.bytes - routed.bytes == doctest::Approx(2.0 * 3 * 1024 * 512));
  CHECK(model::layer_floor(spec, 0, h200()).seconds == 0);
}

TEST_CASE("predicted tiles follow the experts where most of the time goes") {
  const model::DeviceProfile device = h200();
  // 256 tokens, 8 of 256 experts: 8 rows a routed expert. A narrow shared expert changes little; one that
  // does nearly all of the work asks for tall tiles.
  const LayerSpec routed = uniform_spec(2048, 256, 512, 8);
  LayerSpec narrow = routed, wide = uniform_spec(2048, 256, 16, 8);
  narrow.shared_widths = {512};
  wide.shared_widths = {16384};
  const auto height = [&](const LayerSpec& spec, model::GemmStage stage) {
    const LayerConfig config = model::predict_layer_config(spec, 256, device);
    CHECK(model::check_layer_config(spec, config, device).ok());
    return stage == model::GemmStage::fc1 ? config.fc1.block_m : config.fc2.block_m;
  };
  for (const auto stage : {model::GemmStage::fc1, model::GemmStage::fc2}) {
    CHECK(height(narrow, stage) <= 2 * height(routed, stage));
    CHECK(height(wide, stage) >= 64);
    CHECK(height(wide, stage) > height(routed, stage));
  }
  // More work is never faster, and a shared expert costs about what as much dense work does.
  for (const std::int64_t tokens : {1, 64, 1024, 8192}) {
    for (const auto stage : {model::GemmStage::fc1, model::GemmStage::fc2}) {
      const LayerConfig config = model::predict_layer_config(narrow, tokens, device);
      const GemmConfig& gemm = stage == model::GemmStage::fc1 ? config.fc1 : config.fc2;
      const double with = model::predict_gemm_seconds(narrow, stage, gemm, tokens, device);
      const double without = model::predict_gemm_seconds(routed, stage, gemm, tokens, device);
      CHECK(with > 0.98 * without);
      // One expert of 256, with as many rows as an eighth of all.
      CHECK(with < 1.3 * without);
    }
  }
}

TEST_CASE("layers with shared experts are not done in one launch") {
  LayerSpec spec = uniform_spec(2048, 128, 768, 8);
  const model::DeviceProfile device = h200();
  CHECK(model::predict_one_launch(spec, 1, device).max_tokens > 0);
  spec.shared_widths = {768};
  CHECK(model::predict_one_launch(spec, 1, device).max_tokens == 0);
  const Status status = model::check_one_launch(spec, OneLaunchConfig{8, 2}, device);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::unsupported);
  CHECK(contains(status.error().message(), "takes no shared experts"));
}
