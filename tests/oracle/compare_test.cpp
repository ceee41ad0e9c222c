#include <doctest/doctest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "oracle/compare.hpp"

namespace {

using varmoe::DType;

constexpr std::int64_t kHidden = 64;

struct Rows {
  DType dtype;
  std::vector<double> reference;
  std::vector<std::uint16_t> out;
  std::vector<std::int64_t> tokens;

  explicit Rows(DType t, std::int64_t rows = 4) : dtype(t), tokens(static_cast<std::size_t>(rows)) {
    std::iota(tokens.begin(), tokens.end(), std::int64_t{0});
    for (std::int64_t i = 0; i < rows * kHidden; ++i) reference.push_back(i % 2 == 0 ? 1.0 : -1.0);
    write_all();
  }
  void write_all() {
    out.clear();
    for (const double v : reference) out.push_back(oracle::encode(dtype, v));
  }
  oracle::Comparison compare() const {
    return oracle::compare_rows(dtype, reference, out.data(), kHidden, kHidden, tokens);
  }
};

}  // namespace

TEST_CASE("equal rows pass with no error") {
  for (const DType t : {DType::bf16, DType::fp16}) {
    const auto c = Rows(t).compare();
    CHECK(c.pass);
    CHECK(c.frobenius == 0);
    CHECK(c.worst_row == 0);
    CHECK(c.worst_element == 0);
    CHECK(c.compared_rows == 4);
  }
}

TEST_CASE("an element beyond its bar fails, one within passes") {
  // rms is 1: bf16's bar for an element of 1 is 4e-2, fp16's 1e-2.
  const auto with = [](DType t, double value) {
    Rows r(t);
    r.out[70] = oracle::encode(t, value);
    return r.compare();
  };
  CHECK(with(DType::bf16, 1.03125).pass);
  const auto c = with(DType::bf16, 1.046875);
  CHECK_FALSE(c.pass);
  CHECK(c.worst_element_row == 1);
  CHECK(c.worst_element_column == 6);
  CHECK(c.worst_element == doctest::Approx(0.046875 / 0.04));
  CHECK(with(DType::fp16, 1.0078125).pass);
  CHECK_FALSE(with(DType::fp16, 1.015625).pass);
}

TEST_CASE("a row beyond its bar fails although every element is within") {
  Rows r(DType::bf16, 16);
  for (int i = 0; i < kHidden; ++i)
    r.out[static_cast<std::size_t>(i)] = oracle::encode(DType::bf16, (i % 2 == 0 ? 1 : -1) * 1.015625);
  const auto c = r.compare();
  CHECK_FALSE(c.pass);
  CHECK(c.worst_row == doctest::Approx(0.015625));
  CHECK(c.worst_row_at == 0);
  CHECK(c.worst_element < 1);
  CHECK(c.frobenius < 5e-3);
}

TEST_CASE("the whole beyond its bar fails although every row is within") {
  Rows r(DType::bf16);
  for (auto& v : r.reference) v *= 1.00625;  // out is 1: each row is off by 6.2e-3
  const auto c = r.compare();
  CHECK_FALSE(c.pass);
  CHECK(c.worst_row < 1e-2);
  CHECK(c.frobenius > 5e-3);
}

TEST_CASE("NaN, infinity and poison never pass, on either side") {
  for (const DType t : {DType::bf16, DType::fp16}) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
          -std::numeric_limits<double>::infinity()}) {
      Rows r(t);
      r.out[130] = oracle::encode(t, bad);
      CHECK_FALSE(r.compare().pass);
      r.reference[130] = bad;
      CHECK_FALSE(r.compare().pass);
      r.write_all();
      r.out[130] = oracle::encode(t, 1.0);
      CHECK_FALSE(r.compare().pass);
    }
    Rows r(t);
    r.out[0] = oracle::kPoison;
    CHECK_FALSE(r.compare().pass);
  }
}

TEST_CASE("a zero row must be exactly zero") {
  Rows r(DType::bf16);
  for (int i = 0; i < kHidden; ++i) r.reference[static_cast<std::size_t>(i)] = 0;
  r.write_all();
  CHECK(r.compare().pass);
  r.out[5] = 0x8000;  // −0 is zero
  CHECK(r.compare().pass);
  r.out[5] = 0x0001;
  CHECK_FALSE(r.compare().pass);
}

TEST_CASE("sampled rows are looked up by token") {
  Rows r(DType::bf16);
  for (int i = 0; i < kHidden; ++i) r.out[static_cast<std::size_t>(2 * kHidden + i)] = oracle::kPoison;
  const std::vector<std::int64_t> sample = {0, 3};
  const std::span<const double> reference(r.reference.data(), 2 * kHidden);
  CHECK(oracle::compare_rows(r.dtype, reference, r.out.data(), kHidden, kHidden, sample).pass);
  const std::vector<std::int64_t> poisoned = {0, 2};
  CHECK_FALSE(oracle::compare_rows(r.dtype, reference, r.out.data(), kHidden, kHidden, poisoned).pass);
}
