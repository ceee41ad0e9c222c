#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "fuzz/tuningdb/tuningdb_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto outcome = varmoe::fuzz::tuning_records({reinterpret_cast<const char*>(data), size});
  if (outcome.broken != nullptr) {
    std::fprintf(stderr, "%s\n", outcome.broken);
    std::abort();
  }
  return 0;
}
