#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "oracle/half_types.hpp"

using oracle::decode;
using oracle::encode;
using oracle::kBf16;
using oracle::kFp16;

TEST_CASE("every number of both formats survives decode and encode") {
  for (const auto format : {kBf16, kFp16}) {
    for (int bits = 0; bits < 65536; ++bits) {
      const double value = decode(format, static_cast<std::uint16_t>(bits));
      if (std::isnan(value)) {
        CHECK(std::isnan(decode(format, encode(format, value))));
      } else if (encode(format, value) != bits) {
        FAIL("bits ", bits, " become ", encode(format, value));
      }
    }
  }
}

TEST_CASE("known bits") {
  CHECK(decode(kBf16, 0x3f80) == 1.0);
  CHECK(decode(kBf16, 0xc040) == -3.0);
  CHECK(decode(kBf16, 0x0001) == std::ldexp(1.0, -133));
  CHECK(decode(kBf16, 0x7f7f) == std::ldexp(255.0, 120));
  CHECK(decode(kFp16, 0x3c00) == 1.0);
  CHECK(decode(kFp16, 0x3555) == 0.333251953125);
  CHECK(decode(kFp16, 0x0001) == std::ldexp(1.0, -24));
  CHECK(decode(kFp16, 0x7bff) == 65504.0);
  CHECK(decode(kFp16, 0xfc00) == -std::numeric_limits<double>::infinity());
  CHECK(std::isnan(decode(kBf16, oracle::kPoison)));
  CHECK(std::isnan(decode(kFp16, oracle::kPoison)));
}

TEST_CASE("rounding is to nearest, ties to even, once") {
  CHECK(encode(kBf16, 1.0 + std::ldexp(1.0, -8)) == 0x3f80);  // tie, down to even
  CHECK(encode(kBf16, 1.0 + std::ldexp(3.0, -8)) == 0x3f82);  // tie, up to even
  CHECK(encode(kBf16, 1.0 + std::ldexp(1.0, -8) + std::ldexp(1.0, -40)) ==
        0x3f81);  // through fp32 it would be 0x3f80
  CHECK(encode(kFp16, -1.0 - std::ldexp(1.0, -11)) == 0xbc00);
  CHECK(encode(kFp16, -1.0 - std::ldexp(3.0, -11)) == 0xbc02);
  CHECK(encode(kFp16, std::ldexp(2047.75, -10)) == encode(kFp16, 2.0));  // carry into the exponent
}

TEST_CASE("subnormals, underflow and overflow") {
  CHECK(encode(kFp16, std::ldexp(1.0, -25)) == 0x0000);  // tie between 0 and the smallest
  CHECK(encode(kFp16, std::ldexp(1.0, -25) * 1.0001) == 0x0001);
  CHECK(encode(kFp16, std::ldexp(3.0, -25)) == 0x0002);
  CHECK(encode(kFp16, -std::ldexp(1.0, -30)) == 0x8000);
  CHECK(encode(kFp16, std::ldexp(1023.75, -24)) == 0x0400);  // up to the smallest normal
  CHECK(encode(kFp16, 65519.99) == 0x7bff);
  CHECK(encode(kFp16, 65520.0) == 0x7c00);
  CHECK(encode(kFp16, -1e30) == 0xfc00);
  CHECK(encode(kBf16, std::ldexp(1.0, -134)) == 0x0000);
  CHECK(encode(kBf16, std::ldexp(3.0, -134)) == 0x0002);
  CHECK(encode(kBf16, 3.4e38) == 0x7f80);
  CHECK(encode(kBf16, std::numeric_limits<double>::infinity()) == 0x7f80);
  CHECK(std::isnan(decode(kFp16, encode(kFp16, std::numeric_limits<double>::quiet_NaN()))));
}
