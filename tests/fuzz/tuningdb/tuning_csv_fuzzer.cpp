#include "fuzz/libfuzzer.hpp"
#include "fuzz/tuningdb/tuningdb_fuzz.hpp"
#include "fuzz/tuningdb/tuningdb_seeds.hpp"

namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  return tuning_csv(as_text(bytes));
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = csv_seeds();
  for (std::string& seed : refused_csv_seeds()) seeds.push_back(std::move(seed));
  for (std::string& seed : inexpressible_record_seeds()) seeds.push_back(std::move(seed));
  return seeds;
}

}  // namespace varmoe::fuzz
