#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace varmoe::fuzz {

/// Up to `most` - 1 bytes, the same for the same state of `random`.
inline std::vector<std::uint8_t> random_bytes(std::mt19937_64& random, std::size_t most) {
  std::vector<std::uint8_t> bytes(random() % most);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

/// Seeds of fuzzers that take fields off bytes.
inline std::vector<std::string> random_byte_seeds(int count, std::size_t most) {
  std::mt19937_64 random(41);
  std::vector<std::string> seeds;
  for (int i = 0; i < count; ++i) {
    const std::vector<std::uint8_t> bytes = random_bytes(random, most);
    seeds.emplace_back(bytes.begin(), bytes.end());
  }
  return seeds;
}

}  // namespace varmoe::fuzz
