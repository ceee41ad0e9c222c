#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/outcome.hpp"

/// libFuzzer's entry points, included by one file of each target, which defines the two functions below.
namespace varmoe::fuzz {

Outcome fuzz_one(std::span<const std::uint8_t> bytes);
/// Inputs to begin with.
std::vector<std::string> fuzz_seeds();

inline std::string_view as_text(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace varmoe::fuzz

/// VARMOE_FUZZ_SEEDS=DIR: writes the seeds there and ends.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* folder = std::getenv("VARMOE_FUZZ_SEEDS");
  if (folder == nullptr) return 0;
  int n = 0;
  for (const std::string& seed : varmoe::fuzz::fuzz_seeds()) {
    const auto path = std::filesystem::path(folder) / ("seed" + std::to_string(n++));
    std::ofstream file(path, std::ios::binary);
    if (!(file << seed) || !file.flush()) {
      std::fprintf(stderr, "%s cannot be written\n", path.c_str());
      std::exit(1);
    }
  }
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto outcome = varmoe::fuzz::fuzz_one({data, size});
  if (outcome.broken != nullptr) {
    std::fprintf(stderr, "broken promise: %s\n", outcome.broken);
    std::abort();
  }
  return 0;
}
