#include "moe/rank_key.cuh"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

using namespace varmoe;

namespace {

u32 key_of(float value) {
  return moe::rank_key(std::bit_cast<u32>(value));
}

}  // namespace

TEST_CASE("keys have the order of numbers, and give them back") {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> values = {-inf, -3.4e38f, -1.0f, -1e-40f, -0.0f, 0.0f, 1e-40f, 1.0f, 3.4e38f, inf};
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<u32>(random()));
    if (!std::isnan(value)) values.push_back(value);
  }
  for (const float a : values) {
    CHECK(key_of(a) > moe::kNoCandidate);
    CHECK(std::bit_cast<float>(moe::rank_value(key_of(a))) == a);
    for (const float b : values) {
      if ((a < b) != (key_of(a) < key_of(b)) || (a == b) != (key_of(a) == key_of(b)))
        FAIL_CHECK(a << " and " << b);
    }
  }
}

TEST_CASE("NaN of either sign ranks as -infinity; outsiders' zero is zero's key") {
  const u32 lowest = key_of(-std::numeric_limits<float>::infinity());
  CHECK(lowest == moe::kLowestKey);
  for (const u32 nan : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu})
    CHECK(moe::rank_key(nan) == lowest);
  CHECK(key_of(0.0f) == 0x80000000u);
}

TEST_CASE("a load holds what divides the experts and wastes no lane") {
  for (i32 experts = 1; experts <= 1024; ++experts) {
    for (const i32 bytes : {2, 4}) {
      const i32 wide = moe::experts_per_load(experts, bytes);
      REQUIRE(wide >= 1);
      CHECK(experts % wide == 0);
      CHECK(wide * bytes <= 16);
      CHECK(wide * ceil_div(experts, 32 * wide) == ceil_div(experts, 32));
    }
  }
  CHECK(moe::experts_per_load(256, 2) == 8);
  CHECK(moe::experts_per_load(256, 4) == 4);
  CHECK(moe::experts_per_load(128, 2) == 4);
  CHECK(moe::experts_per_load(64, 4) == 2);
  CHECK(moe::experts_per_load(60, 2) == 2);
  CHECK(moe::experts_per_load(8, 4) == 1);
}
