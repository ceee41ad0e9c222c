#include "fuzz/libfuzzer.hpp"
#include "fuzz/tuningdb/tuningdb_fuzz.hpp"
#include "fuzz/tuningdb/tuningdb_seeds.hpp"

namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  return tuning_records(as_text(bytes));
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = record_seeds();
  for (std::string& seed : refused_record_seeds()) seeds.push_back(std::move(seed));
  return seeds;
}

}  // namespace varmoe::fuzz
