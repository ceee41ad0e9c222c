#include "fuzz/libfuzzer.hpp"
#include "fuzz/model/model_fuzz.hpp"
#include "fuzz/random_bytes.hpp"

namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  return model_spec(bytes);
}

std::vector<std::string> fuzz_seeds() {
  return random_byte_seeds(100, 400);
}

}  // namespace varmoe::fuzz
