#include "fuzz/cubin/cubin_fuzz.hpp"

#include <doctest/doctest.h>

#include "fuzz/mutator.hpp"
#include "fuzz/random_bytes.hpp"

using namespace varmoe::fuzz;

namespace {

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

}  // namespace

TEST_CASE("fault 41: cubin entries and their file names, mutated, with sizes and checksum put right") {
  std::vector<std::string> seeds = entry_seeds();
  for (const std::string& seed : seeds) {
    CAPTURE(seed);
    const Outcome outcome = cubin_entry(bytes_of(seed));
    CHECK(outcome.accepted);
    CHECK(outcome.broken == nullptr);
  }
  Mutator mutator(41);
  int accepted = 0;
  constexpr int kRounds = 20000;
  for (int i = 0; i < kRounds; ++i) {
    std::string text = mutator.mutate(seeds[mutator.below(seeds.size())], seeds);
    const Outcome outcome = cubin_entry(bytes_of(text));
    if (outcome.broken != nullptr) {
      CAPTURE(i);
      FAIL_CHECK(outcome.broken);
    }
    accepted += outcome.accepted ? 1 : 0;
    if (outcome.accepted && seeds.size() < 400 && text.size() < 4096) seeds.push_back(std::move(text));
  }
  // Both outcomes are common, or the mutations reach only one side of the reader.
  CHECK(accepted > kRounds / 20);
  CHECK(accepted < kRounds * 19 / 20);
}

TEST_CASE("fault 41: cubin entries of random bytes, and written of random fields") {
  std::mt19937_64 random(43);
  for (int i = 0; i < 20000; ++i) {
    const Outcome outcome = cubin_entry(random_bytes(random, 200));
    if (outcome.broken != nullptr) {
      CAPTURE(i);
      FAIL_CHECK(outcome.broken);
    }
  }
}
