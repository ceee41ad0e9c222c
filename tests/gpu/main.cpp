#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "gpu/device_layer.hpp"
#include "gpu/evidence.hpp"

namespace {
constexpr int kSkipped = 77;
}

int main(int argc, char** argv) {
  if (const std::string reason = gpu::why_no_gpu(); !reason.empty()) {
    std::printf("GPU tests skipped: %s\n", reason.c_str());
    return kSkipped;
  }
  doctest::Context context(argc, argv);
  const int result = context.run();
  gpu::write_evidence();
  return result;
}
