#include "fuzz/cubin/cubin_fuzz.hpp"
#include "fuzz/libfuzzer.hpp"
#include "fuzz/random_bytes.hpp"

namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  return cubin_entry(bytes);
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = entry_seeds();
  for (std::string& seed : random_byte_seeds(20, 60)) seeds.push_back(std::move(seed));
  return seeds;
}

}  // namespace varmoe::fuzz
