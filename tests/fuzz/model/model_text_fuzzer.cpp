#include "fuzz/libfuzzer.hpp"
#include "fuzz/model/model_fuzz.hpp"
#include "fuzz/model/model_seeds.hpp"

namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  return model_text(as_text(bytes));
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = text_seeds();
  for (std::string& seed : refused_text_seeds()) seeds.push_back(std::move(seed));
  return seeds;
}

}  // namespace varmoe::fuzz
