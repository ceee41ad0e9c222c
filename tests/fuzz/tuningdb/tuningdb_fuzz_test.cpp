#include "fuzz/tuningdb/tuningdb_fuzz.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "fuzz/mutator.hpp"
#include "fuzz/tuningdb/tuningdb_seeds.hpp"

using namespace varmoe::fuzz;

namespace {

/// Mutates the seeds, keeps what is accepted, and fails on any promise that is not kept.
void mutate_all(std::vector<std::string> seeds, Outcome (*read)(std::string_view), int rounds) {
  for (const std::string& seed : seeds) {
    CAPTURE(seed);
    const Outcome outcome = read(seed);
    CHECK(outcome.accepted);
    CHECK(outcome.broken == nullptr);
  }
  Mutator mutator(41);
  int accepted = 0;
  for (int i = 0; i < rounds; ++i) {
    std::string text = mutator.mutate(seeds[mutator.below(seeds.size())], seeds);
    const Outcome outcome = read(text);
    if (outcome.broken != nullptr) {
      CAPTURE(text);
      FAIL_CHECK(outcome.broken);
    }
    accepted += outcome.accepted ? 1 : 0;
    if (outcome.accepted && seeds.size() < 400 && text.size() < 8192) seeds.push_back(std::move(text));
  }
  // Both outcomes are common, or the mutations reach only one side of the readers.
  CHECK(accepted > rounds / 20);
  CHECK(accepted < rounds * 19 / 20);
}

}  // namespace

TEST_CASE("fault 41: files of tuning records, mutated") {
  mutate_all(record_seeds(), tuning_records, 4000);
}

TEST_CASE("fault 41: other libraries' files of tuned configs, mutated") {
  mutate_all(csv_seeds(), tuning_csv, 4000);
}

TEST_CASE("fault 41: files of records and configs that the readers refuse at their rarer places") {
  for (const std::string& seed : refused_record_seeds()) {
    CAPTURE(seed);
    const Outcome outcome = tuning_records(seed);
    CHECK(outcome.broken == nullptr);
    CHECK_FALSE(outcome.accepted);
  }
  for (const std::string& seed : inexpressible_record_seeds()) {
    CAPTURE(seed);
    CHECK(tuning_csv(seed).broken == nullptr);
    CHECK(tuning_records(seed).accepted);
  }
  for (const std::string& seed : refused_csv_seeds()) {
    CAPTURE(seed);
    const Outcome outcome = tuning_csv(seed);
    CHECK(outcome.broken == nullptr);
    CHECK_FALSE(outcome.accepted);
  }
}
