#include <doctest/doctest.h>

#include "cpu_case.hpp"

using oracle::CaseOptions;
using oracle::Routing;

TEST_CASE("every routing, with invalid ids, duplicates, empty experts, strides and accumulation") {
  std::uint64_t seed = 1;
  for (const auto dtype : {varmoe::DType::bf16, varmoe::DType::fp16}) {
    for (const auto routing : oracle::kRoutings) {
      for (const double invalid : {0.0, 0.4}) {
        for (const bool accumulate : {false, true}) {
          auto spec = cpu_test::small_spec();
          spec.dtype = dtype;
          spec.top_k = 3;
          CAPTURE(oracle::to_string(routing));
          CAPTURE(invalid);
          CAPTURE(accumulate);
          CaseOptions o{.tokens = 37, .seed = ++seed, .routing = routing, .invalid_fraction = invalid};
          o.duplicate_fraction = 0.2;
          o.empty_every = 3;
          o.accumulate = accumulate;
          o.x_stride = 160;
          o.out_stride = 144;
          auto c = oracle::make_case(spec, o);
          cpu_test::run_and_check(c, 2);
        }
      }
    }
  }
}

TEST_CASE("top_k above the number of experts, and one expert alone") {
  auto spec = cpu_test::small_spec();
  spec.expert_widths = {24};
  spec.top_k = 32;
  auto c = oracle::make_case(spec, {.tokens = 11});
  cpu_test::run_and_check(c, 2);
}

TEST_CASE("a token without an expert becomes zero, or stays as it was when accumulating") {
  for (const bool accumulate : {false, true}) {
    auto c = oracle::make_case(cpu_test::small_spec(),
                               {.tokens = 4, .invalid_fraction = 1, .accumulate = accumulate});
    const auto before = cpu_test::output(c);
    cpu_test::run(*cpu_test::bound_layer(c, 2), cpu_test::arguments(c));
    if (accumulate) {
      CHECK(cpu_test::output(c) == before);
    } else {
      CHECK(cpu_test::output(c) == std::vector<std::uint16_t>(before.size(), 0));
    }
  }
}

TEST_CASE("what no id names is not read: NaN in x and in weights of slots without an expert") {
  auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 6, .seed = 2});
  const auto H = c.spec.hidden_size;
  for (std::int64_t i = 0; i < H; ++i) c.x[2 * H + i] = oracle::kPoison;
  c.ids64[4] = c.ids64[5] = c.ids32[4] = c.ids32[5] = -1;
  c.topk_weights[4] = c.topk_weights[5] = std::numeric_limits<float>::quiet_NaN();
  cpu_test::run_and_check(c, 2);
}

TEST_CASE("64-bit ids are not cut to 32 bits") {
  auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 8, .seed = 3});
  c.ids64[0] = (std::int64_t{1} << 32) + 1;  // the low half would be expert 1
  c.ids64[3] = -(std::int64_t{1} << 32);
  c.ids64[5] = INT64_MAX;
  c.ids64[6] = INT64_MIN;
  const auto reference = c.reference();
  auto args = cpu_test::arguments(c);
  args.topk_ids = c.ids64.data();
  args.id_type = varmoe::IdType::int64;
  cpu_test::run(*cpu_test::bound_layer(c, 2), args);
  cpu_test::check(c, reference);
}

TEST_CASE("rows at and beyond the token count are neither read nor written") {
  for (const std::int32_t count : {0, 1, 5, 8, 100, -3}) {
    CAPTURE(count);
    auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 8, .seed = 4});
    const std::int64_t n = std::clamp<std::int64_t>(count, 0, 8), H = c.spec.hidden_size;
    const auto reference = oracle::oracle_forward(c.oracle_layer(), c.oracle_call(), n);
    for (std::int64_t i = n * H; i < 8 * H; ++i) c.x[i] = oracle::kPoison;
    auto args = cpu_test::arguments(c);
    args.token_count = &count;
    cpu_test::run(*cpu_test::bound_layer(c, 2), args);
    const auto tokens = oracle::sample_tokens(n, 8);
    const auto comparison = oracle::compare_rows(c.spec.dtype, reference, c.out.data(), H, H, tokens);
    CHECK_MESSAGE(comparison.pass, comparison.text());
    for (std::int64_t i = n * H; i < 8 * H; ++i) {
      if (c.out[i] != oracle::kPoison) FAIL("element ", i, " was written");
    }
  }
}

TEST_CASE("no tokens: nothing is asked of the pointers") {
  auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 1});
  CHECK(cpu_test::bound_layer(c, 2)->forward({}).ok());
}

TEST_CASE("NaN and infinity in x come out where they must and nowhere else") {
  auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 5, .seed = 8});
  const auto H = c.spec.hidden_size;
  auto layer = cpu_test::bound_layer(c, 2);
  cpu_test::run(*layer, cpu_test::arguments(c));
  const auto clean = cpu_test::output(c);
  c.x[3 * H + 17] = oracle::kPoison;
  cpu_test::run(*layer, cpu_test::arguments(c));
  for (std::int64_t i = 0; i < c.out.size(); ++i) {
    if (i / H == 3) {
      CHECK(std::isnan(oracle::decode(c.spec.dtype, c.out[i])));
    } else {
      CHECK(c.out[i] == clean[static_cast<std::size_t>(i)]);
    }
  }
}

TEST_CASE("fp16: h beyond 65504 is infinite, not wrapped; subnormals are kept") {
  varmoe::LayerSpec spec =
      varmoe::uniform_spec(64, 1, 8, 1, varmoe::Activation::identity, varmoe::DType::fp16);
  for (const bool large : {true, false}) {
    auto c = oracle::make_case(spec, {.tokens = 1});
    for (std::int64_t i = 0; i < c.fc1.size(); ++i)
      c.fc1[i] = oracle::encode(spec.dtype, i % 64 == 0 ? 1 : 0);
    for (std::int64_t i = 0; i < c.fc2.size(); ++i) c.fc2[i] = oracle::encode(spec.dtype, i % 8 == 0 ? 2 : 0);
    for (std::int64_t i = 0; i < 64; ++i) c.x[i] = oracle::encode(spec.dtype, large ? 40000.0 : 0x3p-24);
    c.topk_weights[0] = 1;
    cpu_test::run(*cpu_test::bound_layer(c, 1), cpu_test::arguments(c));
    for (std::int64_t i = 0; i < 64; ++i) {
      CHECK(oracle::decode(spec.dtype, c.out[i]) ==
            (large ? std::numeric_limits<double>::infinity() : 0x6p-24));
    }
  }
}

TEST_CASE("every rounding point is where the oracle has it: bits are equal where fp32 sums are exact") {
  for (const auto dtype : {varmoe::DType::bf16, varmoe::DType::fp16}) {
    for (const auto layout : {varmoe::WeightLayout::nk, varmoe::WeightLayout::kn}) {
      for (const bool accumulate : {false, true}) {
        auto spec = cpu_test::small_spec();
        spec.activation = varmoe::Activation::relu;
        spec.dtype = dtype;
        spec.fc1_layout = spec.fc2_layout = layout;
        spec.top_k = 3;
        auto c = oracle::make_case(spec, {.tokens = 23, .seed = 9, .accumulate = accumulate});
        // Integers up to 4, and powers of two as routing weights: h, rows and sums need more bits than the
        // 16-bit formats have and fewer than fp32 has.
        const auto integers = [&](oracle::Buffer16& b, std::uint64_t stream) {
          for (std::int64_t i = 0; i < b.size(); ++i) {
            const auto draw = oracle::detail::mix(stream, static_cast<std::uint64_t>(i)) % 9;
            b[i] = oracle::encode(dtype, static_cast<double>(draw) - 4);
          }
        };
        integers(c.fc1, 1);
        integers(c.fc2, 2);
        integers(c.x, 3);
        if (accumulate) integers(c.out, 4);
        for (std::size_t i = 0; i < c.topk_weights.size(); ++i)
          c.topk_weights[i] = 1.0f / static_cast<float>(2 << i % 4);
        const auto reference = c.reference();
        auto unrounded_rows = c.oracle_layer();
        unrounded_rows.round_rows = false;
        CHECK(oracle::oracle_forward(unrounded_rows, c.oracle_call(), 23) !=
              reference);  // it makes a difference
        cpu_test::run(*cpu_test::bound_layer(c, 2), cpu_test::arguments(c));
        for (std::size_t i = 0; i < reference.size(); ++i) {
          if (oracle::decode(dtype, c.out[static_cast<std::int64_t>(i)]) != reference[i]) {
            FAIL("element ", i, " is ", oracle::decode(dtype, c.out[static_cast<std::int64_t>(i)]), ", not ",
                 reference[i]);
          }
        }
      }
    }
  }
}
