#include "compile/cubin_info.hpp"

#include <doctest/doctest.h>

#include "support/fake_cubin.hpp"

using namespace varmoe;
using compile::cubin_resources;

namespace {

std::vector<std::byte> two_kernels() {
  test::FakeCubin cubin;
  cubin.kernels = {{"first", 40, 16, 2048, 256, {}}, {"second", 255, 0, 0, 256, {}}};
  return test::make_fake_cubin(cubin);
}

}  // namespace

TEST_CASE("registers, frame and shared memory are read from a cubin's sections") {
  const auto image = two_kernels();
  CHECK(cubin_resources(image, "first") == ResourceUsage{40, 0, 0, 16, 2048});
  CHECK(cubin_resources(image, "second") == ResourceUsage{255, 0, 0, 0, 0});
  CHECK(!cubin_resources(image, "third"));
  CHECK(!cubin_resources(image, ""));
  CHECK(!cubin_resources({}, "first"));
}

TEST_CASE("fault 15: a cubin truncated at every length is read without overrun") {
  const auto image = two_kernels();
  for (std::size_t n = 0; n < image.size(); ++n) {
    const std::vector<std::byte> cut(image.begin(), image.begin() + static_cast<std::ptrdiff_t>(n));
    CHECK(!cubin_resources(cut, "first"));  // the section headers come last
  }
}

TEST_CASE("fault 16: one flipped bit in every byte of a cubin is read without overrun") {
  const auto image = two_kernels();
  int unchanged = 0;
  for (std::size_t i = 0; i < image.size() * 8; ++i) {
    auto flipped = image;
    flipped[i / 8] ^= static_cast<std::byte>(1U << i % 8);
    if (cubin_resources(flipped, "first") == ResourceUsage{40, 0, 0, 16, 2048}) ++unchanged;
  }
  CHECK(unchanged > 0);
  CHECK(unchanged < static_cast<int>(image.size() * 8));
}
