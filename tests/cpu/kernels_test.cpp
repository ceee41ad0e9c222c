#include "cpu/kernels.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/random_case.hpp"

using namespace varmoe;
using cpu::available_kernels;
using cpu::kTileOutputs;

namespace {

bool same(DType t, std::uint16_t a, std::uint16_t b) {
  return a == b || (std::isnan(oracle::decode(t, a)) && std::isnan(oracle::decode(t, b)));
}

}  // namespace

TEST_CASE("the generic loops are always there, last") {
  const auto list = available_kernels();
  REQUIRE(!list.empty());
  CHECK(std::string(list.back()->name) == "generic");
}

TEST_CASE("every 16-bit number comes through the combine unchanged") {
  for (const auto* k : available_kernels()) {
    for (const auto dtype : {DType::bf16, DType::fp16}) {
      std::vector<std::uint16_t> all(65536), out(65536);
      for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
      const std::uint16_t* rows[] = {all.data()};
      k->combine(dtype, rows, 1, nullptr, 65536, out.data());
      for (std::size_t i = 0; i < all.size(); ++i) {
        // 0 + −0 is +0.
        if (!same(dtype, out[i], all[i] == 0x8000 ? std::uint16_t{0} : all[i]))
          FAIL(k->name, " changes bits ", i);
      }
    }
  }
}

TEST_CASE("rounding agrees with the oracle's for fp32 numbers of every size") {
  std::vector<float> values;
  for (std::uint64_t i = 0; i < 200000; ++i) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(oracle::detail::mix(i) >> 32)));
  }
  for (int exponent = -140; exponent < 128; ++exponent) {  // ties of both formats and their neighbours
    for (int fraction = 0; fraction < 64; ++fraction) {
      for (const int bits : {8, 9, 11, 12}) {
        const float tie =
            std::ldexp(1.0f + static_cast<float>(fraction) / static_cast<float>(1 << bits), exponent);
        for (const float v : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, HUGE_VALF)}) {
          values.push_back(v);
          values.push_back(-v);
        }
      }
    }
  }
  for (const float v : {65503.0f, 65519.99f, 65520.0f, 65535.0f, 65536.0f, 0.0f, -0.0f, HUGE_VALF, -HUGE_VALF,
                        std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::max()}) {
    values.push_back(v);
  }
  const auto count = static_cast<std::int64_t>(values.size());
  std::vector<std::uint16_t> out(values.size());
  for (const auto* k : available_kernels()) {
    for (const auto dtype : {DType::bf16, DType::fp16}) {
      k->scale_round(dtype, values.data(), 1.0f, count, out.data());
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (!same(dtype, out[i], oracle::encode(dtype, values[i]))) {
          FAIL(k->name, " rounds ", values[i], " to ", out[i], " as ", to_string(dtype));
        }
      }
    }
  }
}

TEST_CASE("the scale is applied before the one rounding") {
  const std::vector<float> values(11, 1.00390625f);  // × 1.5 = 1.505859375, below the tie of bf16
  std::vector<std::uint16_t> out(values.size());
  for (const auto* k : available_kernels()) {
    k->scale_round(DType::bf16, values.data(), 1.5f, 11, out.data());
    for (const auto bits : out) CHECK(bits == oracle::encode(DType::bf16, 1.505859375));
    k->scale_round(DType::fp16, values.data(), 1.5f, 11, out.data());
    for (const auto bits : out) CHECK(bits == oracle::encode(DType::fp16, 1.505859375));
  }
}

TEST_CASE("the combine sums in fp32 in ascending order and adds the old value last") {
  // 2^24 swallows a following 1 in fp32: the order decides. Each column sums large, 1, −large (+ old).
  for (const auto* k : available_kernels()) {
    const auto row = [](double v) { return std::vector<std::uint16_t>(600, oracle::encode(DType::bf16, v)); };
    const auto large = row(0x1p24), one = row(1), minus = row(-0x1p24), old = row(2);
    std::vector<std::uint16_t> out(600);
    const std::uint16_t* rows[] = {large.data(), one.data(), minus.data()};
    k->combine(DType::bf16, rows, 3, nullptr, 600, out.data());
    CHECK(out == row(0));
    const std::uint16_t* other[] = {large.data(), minus.data(), one.data()};
    k->combine(DType::bf16, other, 3, old.data(), 600, out.data());
    CHECK(out == row(3));
    k->combine(DType::bf16, rows, 2, minus.data(), 600, out.data());
    CHECK(out == row(0));
    k->combine(DType::bf16, nullptr, 0, old.data(), 600, out.data());
    CHECK(out == old);
  }
}

TEST_CASE("products of every shape, with poison around the operands") {
  const std::vector<int> row_counts = {1, 2, 3, 4, 5, 7, 8, 13, 48};
  const std::vector<int> output_counts = {8, 24, 32, 104, 128};
  const std::vector<std::int64_t> depths = {1, 8, 16, 40, 67, 256, 264, 1024, 1029, 1032, 2056};
  std::vector<float> scratch_storage(cpu::kProductScratch + 16);
  float* scratch = scratch_storage.data();
  while (reinterpret_cast<std::uintptr_t>(scratch) % 64 != 0) ++scratch;
  for (const auto* k : available_kernels()) {
    for (const auto dtype : {DType::bf16, DType::fp16}) {
      for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
        for (std::size_t shape = 0; shape < depths.size() * 5; ++shape) {
          const std::int64_t depth = depths[shape % depths.size()];
          const int outputs = output_counts[shape % output_counts.size()];
          const int row_count = row_counts[shape % row_counts.size()];
          const bool nk = layout == WeightLayout::nk;
          const std::int64_t stride = (nk ? depth : outputs) + 8, stored = nk ? outputs : depth;
          // Small integers: every product and sum is exact, so the result must be equal.
          std::vector<std::uint16_t> w(static_cast<std::size_t>(stored * stride), oracle::kPoison);
          std::vector<std::uint16_t> x(static_cast<std::size_t>(row_count * (depth + 8)), oracle::kPoison);
          const auto value = [](std::uint64_t i) { return static_cast<int>(oracle::detail::mix(i) % 9) - 4; };
          const auto w_value = [&](std::int64_t n, std::int64_t d) {
            return value(static_cast<std::uint64_t>(n * depth + d));
          };
          const auto x_value = [&](std::int64_t m, std::int64_t d) {
            return value(static_cast<std::uint64_t>(m * depth + d) + 1000000);
          };
          for (std::int64_t n = 0; n < outputs; ++n) {
            for (std::int64_t d = 0; d < depth; ++d) {
              w[static_cast<std::size_t>(nk ? n * stride + d : d * stride + n)] =
                  oracle::encode(dtype, w_value(n, d));
            }
          }
          std::vector<const std::uint16_t*> rows;
          for (std::int64_t m = 0; m < row_count; ++m) {
            rows.push_back(x.data() + m * (depth + 8));
            for (std::int64_t d = 0; d < depth; ++d) {
              x[static_cast<std::size_t>(m * (depth + 8) + d)] = oracle::encode(dtype, x_value(m, d));
            }
          }
          std::vector<float> c(static_cast<std::size_t>(row_count * kTileOutputs), std::nanf(""));
          k->product(
              {dtype, layout, rows.data(), row_count, w.data(), stride, outputs, depth, c.data(), scratch});
          std::int64_t wrong = 0;
          for (std::int64_t m = 0; m < row_count; ++m) {
            for (std::int64_t n = 0; n < outputs; ++n) {
              std::int64_t sum = 0;
              for (std::int64_t d = 0; d < depth; ++d) sum += x_value(m, d) * w_value(n, d);
              wrong += c[static_cast<std::size_t>(m * kTileOutputs + n)] != static_cast<float>(sum);
            }
          }
          CHECK_MESSAGE(wrong == 0, k->name, " ", to_string(layout), " ", row_count, "x", outputs, "x",
                        depth);
        }
      }
    }
  }
}
