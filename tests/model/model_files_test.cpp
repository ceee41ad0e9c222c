#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <string>

#include "model/model_config.hpp"

/// The model files that ship with the project.

using namespace varmoe;
using namespace varmoe::model;

namespace {

ModelConfig read_shipped(const std::string& name) {
  ReadOptions options;
  options.dtype = DType::bf16;
  auto model = read_model(VARMOE_SOURCE_DIR "/models/" + name + ".json", options);
  REQUIRE_MESSAGE(model, (model ? "" : model.error().message()));
  return *model;
}

}  // namespace

TEST_CASE("every shipped model file reads") {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(VARMOE_SOURCE_DIR "/models")) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    CAPTURE(entry.path().string());
    for (const ModelLayer& layer : read_shipped(entry.path().stem().string()).layers) {
      CHECK(layer.spec.validate());
      CHECK_FALSE(layer.layer_indices.empty());
    }
  }
  CHECK(files >= 8);
}

TEST_CASE("shipped models have the layers their cards publish") {
  struct Expected {
    const char* name;
    std::int64_t experts, top_k, hidden, width;
    std::size_t layers;
    int first;
  };
  const Expected table[] = {
      {"mixtral-8x7b", 8, 2, 4096, 14336, 32, 0},     {"qwen3-30b-a3b", 128, 8, 2048, 768, 48, 0},
      {"qwen3-235b-a22b", 128, 8, 4096, 1536, 94, 0}, {"deepseek-v2-lite", 64, 6, 2048, 1408, 26, 1},
      {"deepseek-v3", 256, 8, 7168, 2048, 58, 3},     {"llama4-scout", 16, 1, 5120, 8192, 48, 0},
      {"gpt-oss-120b", 128, 4, 2880, 2880, 36, 0},
  };
  for (const Expected& e : table) {
    CAPTURE(e.name);
    const ModelConfig model = read_shipped(e.name);
    REQUIRE(model.layers.size() == 1);
    const ModelLayer& layer = model.layers[0];
    CHECK(layer.spec.num_experts() == e.experts);
    CHECK(layer.spec.top_k == e.top_k);
    CHECK(layer.spec.hidden_size == e.hidden);
    CHECK(width_classes(layer.spec) == std::vector<WidthClass>{{e.width, e.experts}});
    CHECK(layer.layer_indices.size() == e.layers);
    CHECK(layer.layer_indices.front() == e.first);
  }
}

TEST_CASE("quantised checkpoints among them need a dtype named") {
  for (const char* name : {"deepseek-v3", "gpt-oss-120b"}) {
    const auto model = read_model(std::string(VARMOE_SOURCE_DIR "/models/") + name + ".json");
    REQUIRE_FALSE(model);
    CHECK(model.error().message().find("quantised") != std::string::npos);
  }
  CHECK(read_model(VARMOE_SOURCE_DIR "/models/qwen3-30b-a3b.json"));
  CHECK_FALSE(read_model(VARMOE_SOURCE_DIR "/models/absent.json"));
}

TEST_CASE("the pruned model: 48 layers, no two arranged alike, one kernel signature") {
  const ModelConfig model = read_shipped("pruned-qwen3-30b");
  CHECK(model.layers.size() == 48);
  std::set<std::string> kernels, records;
  std::set<std::vector<std::int64_t>> arrangements;
  for (const ModelLayer& layer : model.layers) {
    CHECK(layer.spec.num_experts() == 128);
    CHECK(layer.spec.hidden_size == 2048);
    CHECK(layer.spec.top_k == 8);
    kernels.insert(kernel_signature(layer.spec));
    records.insert(tuning_signature(layer.spec));
    arrangements.insert(layer.spec.expert_widths);
    std::vector<std::int64_t> widths;
    for (const WidthClass& c : width_classes(layer.spec)) widths.push_back(c.width);
    CHECK(widths == std::vector<std::int64_t>{128, 256, 384, 512, 640, 768});
  }
  CHECK(arrangements.size() == 48);
  CHECK(kernels.size() == 1);
  CHECK(records.size() == 1);
}
