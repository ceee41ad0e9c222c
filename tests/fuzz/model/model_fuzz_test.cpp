#include "fuzz/model/model_fuzz.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

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
    "fc2_layout": "kn", "gate_order": "interleaved", "batch_invariant": true, "layers": [{}, {"top_k": 2}]})");
  seeds.push_back(
      R"({"model_type": "qwen2_moe", "hidden_size": 64, "moe_intermediate_size": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]})");
  seeds.push_back("block_m=64,block_n=128,tokens=1-64;stages=4,gather=copy,schedule=mma_sync");
  return seeds;
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  std::string mutate(std::string text, const std::vector<std::string>& others) {
    static const std::vector<std::string> tokens = {"{",
                                                    "}",
                                                    "[",
                                                    "]",
                                                    ",",
                                                    ":",
                                                    "\"",
                                                    "null",
                                                    "true",
                                                    "-1",
                                                    "0",
                                                    "1.9",
                                                    "1e400",
                                                    "1e99",
                                                    "NaN",
                                                    "\\u0",
                                                    "\xff",
                                                    "4294967296",
                                                    "9223372036854775807",
                                                    "[[[[",
                                                    "\"64\"",
                                                    "1024",
                                                    ";",
                                                    "=",
                                                    "tokens=1-",
                                                    "\"layers\": [{}],",
                                                    "\"text_config\": {",
                                                    "\"quantization_config\": null,"};
    for (std::size_t n = 1 + below(4); n > 0; --n) {
      const std::size_t at = below(text.size() + 1);
      switch (below(6)) {
        case 0:
          if (at < text.size()) text[at] = static_cast<char>(random_());
          break;
        case 1:
          text.erase(at, 1 + below(8));
          break;
        case 2:
          text.insert(at, tokens[below(tokens.size())]);
          break;
        case 3: {  // a number becomes another
          const std::size_t digit = text.find_first_of("0123456789", at);
          if (digit == std::string::npos) break;
          std::size_t end = digit;
          while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
          text.replace(digit, end - digit, std::to_string(std::int64_t{1} << below(63)));
          break;
        }
        case 4: {  // a piece of another seed
          const std::string& other = others[below(others.size())];
          const std::size_t from = below(other.size() + 1);
          text.insert(at, other.substr(from, below(80)));
          break;
        }
        default: {  // two words change places
          const std::size_t a = text.find('"', at), b = text.find('"', below(text.size() + 1));
          if (a != std::string::npos && b != std::string::npos) std::swap(text[a], text[b]);
        }
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

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
