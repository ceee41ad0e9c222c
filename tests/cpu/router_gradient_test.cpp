// A router's backward pass on the CPU.
#include "cpu/router_gradient.hpp"

#include <doctest/doctest.h>

#include "cpu/logits.hpp"
#include "oracle/router_gradient_case.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;

namespace {

constexpr std::byte kPoison{0xfe};

RouterGradientArgs args_of(const oracle::GradientCase& c) {
  RouterGradientArgs a;
  a.tokens = c.router.tokens;
  a.logits = c.router.logits.data();
  a.logit_stride = c.router.stride;
  a.topk_ids = c.ids.data();
  a.id_type = IdType::int64;
  a.dtopk_weights = c.dweights.data();
  std::copy_n(c.coefficients, kRouterLosses, a.coefficients);
  a.tokens_per_expert = c.counts.data();
  a.mean_scores = c.means.data();
  a.expert_widths = c.widths.data();
  return a;
}

std::size_t bytes_of(LogitType type) {
  return type == LogitType::fp32 ? 4 : 2;
}

std::vector<std::byte> run(const oracle::GradientCase& c, RouterGradientArgs args, std::int64_t stride) {
  std::vector<std::byte> out(static_cast<std::size_t>(args.tokens * stride) * bytes_of(c.spec.dlogit_type),
                             kPoison);
  args.dlogits = out.data();
  args.dlogit_stride = stride;
  cpu::router_gradient(c.spec, args);
  return out;
}

/// Nothing but rows [0, live) of E elements was written.
bool rest_untouched(const std::vector<std::byte>& out, std::int64_t row_bytes, std::int64_t used_bytes,
                    std::int64_t live) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    if ((at / row_bytes >= live || at % row_bytes >= used_bytes) && out[i] != kPoison) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("router gradient on the CPU: every method and type and kind of logits against the oracle") {
  std::uint64_t seed = 1;
  for (const auto& method : test::router_methods()) {
    for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      for (const oracle::Logits kind : oracle::kLogits) {
        RouterGradientSpec spec{test::router_of(method, 24, 5, type)};
        spec.losses = static_cast<std::uint32_t>(++seed % 3 == 0 ? 0 : seed % 16);
        spec.dlogit_type = seed % 2 != 0 ? type : LogitType::fp32;
        REQUIRE(spec.validate().ok());
        auto c = oracle::make_gradient_case(spec, 12, kind, seed, seed % 5);
        c.loss_tokens = seed % 4 == 0 ? 100 : 0;
        RouterGradientArgs args = args_of(c);
        args.loss_tokens = c.loss_tokens;
        CAPTURE(method.name);
        CAPTURE(static_cast<int>(kind));
        CAPTURE(spec.losses);
        const auto out = run(c, args, 27);
        CHECK(c.problem(out, 27, 12) == "");
        const auto bytes = static_cast<std::int64_t>(bytes_of(spec.dlogit_type));
        CHECK(rest_untouched(out, 27 * bytes, 24 * bytes, 12));
      }
    }
  }
}

TEST_CASE(
    "router gradient on the CPU: losses alone, fewer tokens than rows and one wrong weight that shows") {
  RouterGradientSpec spec{test::router_of(test::router_methods().at(1), 16, 3), 15};
  auto c = oracle::make_gradient_case(spec, 9, oracle::Logits::normal, 5);
  RouterGradientArgs args = args_of(c);
  args.dtopk_weights = nullptr;
  args.topk_ids = nullptr;
  CHECK(c.problem(run(c, args, 16), 16, 9, false) == "");
  CHECK(c.problem(run(c, args, 16), 16, 9) != "");
  args = args_of(c);
  for (const std::int32_t live : {-3, 0, 4, 9, 12}) {
    args.token_count = &live;
    const std::int64_t rows = std::clamp(live, 0, 9);
    const auto out = run(c, args, 16);
    CHECK(c.problem(out, 16, rows) == "");
    CHECK(rest_untouched(out, 64, 64, rows));
  }
  args.token_count = nullptr;
  const auto out = run(c, args, 16);
  c.dweights[7] += 0.01f;
  CHECK(c.problem(out, 16, 9).find("token 2") != std::string::npos);
}

TEST_CASE("router gradient on the CPU: a sum of scores of zero and NaN logits have no gradient") {
  RouterGradientSpec spec{test::router_of(test::router_methods().at(7), 4, 2), 15};
  spec.router.epsilon = 0;
  const float nan = std::nanf(""), low = -INFINITY;
  const std::vector<float> logits = {low, low, low, low, nan, nan, nan, nan, nan, 1, 0, low};
  const std::vector<std::int32_t> ids = {0, 1, 0, 1, 0, 1}, counts = {3, 3, 0, 0};
  const std::vector<float> dweights = {1, 2, 1, 2, 1, 2}, means = {0.1f, 0.5f, 0.4f, 0};
  for (const Scoring scoring : {Scoring::sigmoid, Scoring::softmax}) {
    for (const ScoreOrder order : {ScoreOrder::before_top_k, ScoreOrder::after_top_k}) {
      spec.router.scoring = scoring;
      spec.router.order = order;
      std::vector<float> out(12, -7.0f);
      RouterGradientArgs args;
      args.tokens = 3;
      args.logits = logits.data();
      args.topk_ids = ids.data();
      args.dtopk_weights = dweights.data();
      args.dlogits = out.data();
      std::fill_n(args.coefficients, kRouterLosses, 1.0f);
      args.tokens_per_expert = counts.data();
      args.mean_scores = means.data();
      cpu::router_gradient(spec, args);
      for (int i = 0; i < 9; ++i) CHECK(out[static_cast<std::size_t>(i)] == 0.0f);
      CHECK(std::isfinite(out[9]));
      CHECK(out[10] != 0.0f);
      CHECK(out[11] == 0.0f);
    }
  }
}

TEST_CASE("router gradient on the CPU: the product of every set of types") {
  std::uint64_t seed = 1;
  for (const DType input : {DType::bf16, DType::fp16}) {
    for (const LogitType weight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      for (const LogitType dweight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
        ++seed;
        RouterGradientSpec spec{test::router_of(test::router_methods().at(1), 12, 3)};
        spec.router.hidden_size = seed % 2 != 0 ? 328 : 64;
        spec.router.input_type = input;
        spec.router.weight_type = weight;
        spec.router.logit_bias = seed % 3 == 0;
        spec.dweight_type = dweight;
        REQUIRE(spec.validate().ok());
        const auto c = oracle::make_product_gradient_case(spec, 11, seed, seed % 4 == 0 ? 8 : 0);
        for (const std::int32_t live : {0, 5, 11}) {
          for (const bool accumulate : {false, true}) {
            auto dx = c.dx.bytes, dw = c.dweight.bytes;
            auto bias = c.dlogit_bias;
            RouterProductGradientArgs args;
            args.tokens = 11;
            args.dlogits = c.dlogits.data();
            args.dlogit_stride = c.dlogit_stride;
            args.x = c.product.x.bytes.data();
            args.weight = c.product.weight.bytes.data();
            args.x_stride = args.dx_stride = c.product.x_stride;
            args.weight_stride = args.dweight_stride = c.product.weight_stride;
            args.dx = dx.data();
            args.dweight = dw.data();
            args.dlogit_bias = bias.empty() ? nullptr : bias.data();
            args.accumulate_dx = args.accumulate_weight = accumulate;
            args.token_count = &live;
            cpu::router_product_gradient(spec, args);
            CHECK(c.dx_problem(dx, live, accumulate) == "");
            CHECK(c.dweight_problem(dw, live, accumulate) == "");
            if (!bias.empty()) CHECK(c.bias_problem(bias, live, accumulate) == "");
            const auto row = static_cast<std::ptrdiff_t>(live * c.product.x_stride * 2);
            CHECK(std::equal(dx.begin() + row, dx.end(), c.dx.bytes.begin() + row));
          }
        }
      }
    }
  }
}

TEST_CASE("router gradient on the CPU: what is written in two bytes is the nearest number") {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = cpu::half_to_float(half);
    if (std::isnan(value)) {
      CHECK(std::isnan(cpu::half_to_float(cpu::float_to_half(value))));
      continue;
    }
    if (cpu::float_to_half(value) != half) FAIL_CHECK("fp16 " << bits);
    // Halfway to the next number, and to either side of there.
    const float next = cpu::half_to_float(static_cast<std::uint16_t>(bits + 1));
    if ((bits & 0x7fffu) >= 0x7c00u || std::isnan(next)) continue;
    const float middle = std::isinf(next) ? std::copysign(65520.0f, value) : (value + next) / 2;
    for (const float near : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, next)}) {
      if (cpu::float_to_half(near) != oracle::encode(DType::fp16, static_cast<double>(near)))
        FAIL_CHECK("fp16 near " << bits);
    }
  }
  std::mt19937_64 random(3);
  for (int i = 0; i < 200000; ++i) {
    auto drawn = static_cast<std::uint32_t>(random());
    if (i % 4 == 0) drawn = (drawn & 0xffff0000u) | 0x8000u;
    const auto value = std::bit_cast<float>(drawn);
    if (std::isnan(value)) continue;
    if (cpu::float_to_bf16(value) != oracle::encode(DType::bf16, static_cast<double>(value)))
      FAIL_CHECK("bf16 of " << drawn);
  }
}
