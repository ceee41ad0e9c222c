#include "fuzz/model/model_fuzz.hpp"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "fuzz/model/model_seeds.hpp"
#include "fuzz/mutator.hpp"
#include "fuzz/random_bytes.hpp"

/// Deterministic mutation fuzzing: the same inputs every time, so that a failure is found again by running
/// the test again.

using namespace varmoe::fuzz;

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

TEST_CASE("fault 41: texts that the readers refuse at their rarer places") {
  std::size_t accepted = 0;
  for (const std::string& seed : refused_text_seeds()) {
    CAPTURE(seed);
    const Outcome outcome = model_text(seed);
    CHECK(outcome.broken == nullptr);
    accepted += outcome.accepted;
  }
  // A few are sound for one family, and those of a float32 checkpoint where a dtype is named.
  CHECK(accepted < refused_text_seeds().size() / 2);
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
    const std::vector<std::uint8_t> bytes = random_bytes(random, 400);
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
