#include "fuzz/model/model_fuzz.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/mutator.hpp"

/// Deterministic mutation fuzzing: the same inputs every time, so that a failure is found again by running
/// the test again.

using namespace varmoe::fuzz;

namespace {

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Every small shipped file, and texts that name what those leave out.
std::vector<std::string> text_seeds() {
  std::vector<std::string> seeds;
  for (const char* folder : {"/models", "/tuning_db/devices"}) {
    for (const auto& entry : std::filesystem::directory_iterator(std::string(VARMOE_SOURCE_DIR) + folder)) {
      if (entry.path().extension() == ".json" && entry.file_size() < 4096)
        seeds.push_back(slurp(entry.path()));
    }
  }
  std::sort(seeds.begin(), seeds.end());
  seeds.push_back(
      R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [128, 64], "top_k": 2, "num_layers": 3})");
  seeds.push_back(
      R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": {"repeat": [8, 16], "times": 2}, "top_k": 1,
    "activation": "swiglu_oai", "activation_params": {"alpha": 1.5, "limit": 6}, "dtype": "fp16", "fc1_layout": "kn",
    "fc2_layout": "kn", "gate_order": "interleaved", "batch_invariant": true, "bias": true,
    "weight_on_input": true, "layers": [{}, {"top_k": 2}]})");
  seeds.push_back(
      R"({"model_type": "qwen2_moe", "hidden_size": 64, "moe_intermediate_size": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]})");
  seeds.push_back("block_m=64,block_n=128,tokens=1-64;stages=4,gather=copy,schedule=mma_sync");
  return seeds;
}

}  // namespace

TEST_CASE("fault 41: model files, device profiles and overrides, mutated") {
  std::vector<std::string> seeds = text_seeds();
  REQUIRE(seeds.size() > 20);
  for (const std::string& seed : seeds) {
    CAPTURE(seed);
    const Outcome outcome = model_text(seed);
    CHECK(outcome.accepted);
    CHECK(outcome.broken == nullptr);
  }
  Mutator mutator(41);
  std::size_t accepted = 0;
  constexpr int kRounds = 12000;
  for (int i = 0; i < kRounds; ++i) {
    std::string text = mutator.mutate(seeds[mutator.below(seeds.size())], seeds);
    const Outcome outcome = model_text(text);
    if (outcome.broken != nullptr) {
      CAPTURE(text);
      FAIL_CHECK(outcome.broken);
    }
    accepted += outcome.accepted;
    if (outcome.accepted && seeds.size() < 400 && text.size() < 4096) seeds.push_back(std::move(text));
  }
  // Both outcomes are common, or the mutations reach only one side of the readers.
  CHECK(accepted > kRounds / 20);
  CHECK(accepted < kRounds * 19 / 20);
}

TEST_CASE("fault 41: model files cut at every length") {
  for (const std::string& seed : text_seeds()) {
    if (seed.size() > 600) continue;
    for (std::size_t n = 0; n <= seed.size(); ++n) {
      const Outcome outcome = model_text(std::string_view(seed).substr(0, n));
      if (outcome.broken != nullptr) {
        CAPTURE(seed.substr(0, n));
        FAIL_CHECK(outcome.broken);
      }
    }
  }
}

TEST_CASE("fault 41: specs, configs and devices of random bytes") {
  std::mt19937_64 random(42);
  std::size_t accepted = 0;
  constexpr int kRounds = 4000;
  for (int i = 0; i < kRounds; ++i) {
    std::vector<std::uint8_t> bytes(random() % 400);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    const Outcome outcome = model_spec(bytes);
    if (outcome.broken != nullptr) {
      CAPTURE(i);
      FAIL_CHECK(outcome.broken);
    }
    accepted += outcome.accepted;
  }
  CHECK(accepted > kRounds / 50);
  CHECK(accepted < kRounds);
}
