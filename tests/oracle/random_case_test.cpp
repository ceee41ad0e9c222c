#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "oracle/random_case.hpp"
#include "oracle/weights_view.hpp"

using oracle::CaseOptions;
using oracle::Routing;
using oracle::Storage;
using varmoe::Activation;
using varmoe::GateOrder;
using varmoe::WeightLayout;

namespace {

varmoe::LayerSpec small_spec() {
  varmoe::LayerSpec spec;
  spec.hidden_size = 64;
  spec.expert_widths = {16, 40, 8, 16, 24};
  spec.top_k = 2;
  return spec;
}

std::vector<std::int64_t> counts(const oracle::RandomCase& c) {
  std::vector<std::int64_t> n(c.spec.expert_widths.size());
  for (const auto id : c.ids64) {
    if (id >= 0 && id < static_cast<std::int64_t>(n.size())) ++n[static_cast<std::size_t>(id)];
  }
  return n;
}

}  // namespace

TEST_CASE("every storage, layout and gate order: the library finds the elements where this case put them") {
  for (const auto activation : {Activation::silu_mul, Activation::relu2}) {
    for (const auto fc1 : {WeightLayout::nk, WeightLayout::kn}) {
      for (const auto fc2 : {WeightLayout::nk, WeightLayout::kn}) {
        for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
          auto spec = small_spec();
          spec.activation = activation;
          spec.fc1_layout = fc1;
          spec.fc2_layout = fc2;
          spec.gate_order = order;
          const auto reference = oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference();
          for (const auto storage : oracle::kStorages) {
            if (!oracle::storage_fits(spec, storage)) continue;
            CAPTURE(oracle::to_string(storage));
            const auto c = oracle::make_case(spec, {.tokens = 5, .seed = 3, .storage = storage});
            CHECK(c.reference() == reference);  // the values do not depend on the storage
            const auto weights = c.host_weights();
            REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
            REQUIRE(weights->validate(spec).ok());
            CHECK(oracle::oracle_forward(oracle::layer_of(spec, *weights), c.oracle_call(), 5) == reference);
          }
        }
      }
    }
  }
}

TEST_CASE("biases and weights on the input: the same in every storage, as the library reads them") {
  for (const auto activation : {Activation::swiglu_oai, Activation::relu2}) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        auto spec = small_spec();
        spec.activation = activation;
        spec.fc1_layout = spec.fc2_layout = layout;
        spec.gate_order = order;
        const auto plain = oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference();
        spec.weight_on_input = true;
        const auto weighted = oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference();
        CHECK(weighted != plain);
        spec.bias = true;
        const auto reference = oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference();
        CHECK(reference != weighted);
        for (const auto storage : oracle::kStorages) {
          if (!oracle::storage_fits(spec, storage)) continue;
          CAPTURE(oracle::to_string(storage));
          const auto c = oracle::make_case(spec, {.tokens = 5, .seed = 3, .storage = storage});
          CHECK(c.reference() == reference);
          const auto weights = c.host_weights();
          REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
          REQUIRE(weights->validate(spec).ok());
          CHECK(oracle::oracle_forward(oracle::layer_of(spec, *weights), c.oracle_call(), 5) == reference);
        }
      }
    }
  }
}

TEST_CASE("values do not depend on layouts, and change with the seed") {
  auto spec = small_spec();
  const auto reference = oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference();
  spec.fc1_layout = WeightLayout::kn;
  spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = GateOrder::interleaved;
  CHECK(oracle::make_case(spec, {.tokens = 5, .seed = 3}).reference() == reference);
  CHECK(oracle::make_case(spec, {.tokens = 5, .seed = 4}).reference() != reference);
}

TEST_CASE("outputs are of order one for every activation") {
  for (const auto activation :
       {Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
        Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu2,
        Activation::identity}) {
    auto spec = small_spec();
    spec.activation = activation;
    double sum = 0;
    const auto out = oracle::make_case(spec, {.tokens = 64}).reference();
    for (const double v : out) sum += v * v;
    const double rms = std::sqrt(sum / static_cast<double>(out.size()));
    CHECK(rms > 0.4);
    CHECK(rms < 1.6);
  }
}

TEST_CASE("routings are what they are called") {
  auto spec = small_spec();
  spec.expert_widths.assign(16, 8);
  const auto drawn = [&](CaseOptions o) {
    o.tokens = 1000;
    return oracle::make_case(spec, o);
  };
  for (const auto n : counts(drawn({}))) CHECK(std::abs(n - 125) < 50);
  auto zipf = counts(drawn({.routing = Routing::zipf}));
  std::sort(zipf.rbegin(), zipf.rend());
  CHECK(zipf[0] > 2 * zipf[2]);
  CHECK(zipf[15] > 0);
  CHECK(zipf[15] < 60);
  auto one = counts(drawn({.routing = Routing::one_expert}));
  std::sort(one.rbegin(), one.rend());
  CHECK(one[0] == 2000);
  auto half = counts(drawn({.routing = Routing::half_on_one}));
  std::sort(half.rbegin(), half.rend());
  CHECK(std::abs(half[0] - 1030) < 80);
  CHECK(half[1] < 120);
}

TEST_CASE("invalid ids, duplicates and empty experts appear as asked") {
  auto spec = small_spec();
  spec.top_k = 4;
  const auto c = oracle::make_case(spec, {.tokens = 500, .invalid_fraction = 0.3, .empty_every = 3});
  std::int64_t invalid = 0;
  bool seen[5] = {};
  for (std::size_t i = 0; i < c.ids64.size(); ++i) {
    const auto id = c.ids64[i];
    CHECK(c.ids32[i] == id);
    if (id >= 0 && id < 5) continue;
    ++invalid;
    const std::int64_t kinds[] = {-1, 5, 10, 2147483647, -2147483648LL};
    for (int kind = 0; kind < 5; ++kind) seen[kind] |= id == kinds[kind];
  }
  CHECK(std::abs(invalid - 600) < 100);
  for (const bool s : seen) CHECK(s);
  const auto n = counts(c);
  CHECK(n[1] == 0);
  CHECK(n[4] == 0);
  CHECK(n[0] > 0);
  const auto d = oracle::make_case(spec, {.tokens = 100, .duplicate_fraction = 1});
  for (std::size_t t = 0; t < 100; ++t) CHECK(d.ids64[4 * t] == d.ids64[4 * t + 3]);
  const auto distinct = oracle::make_case(spec, {.tokens = 100});
  for (std::size_t t = 0; t < 100; ++t) CHECK(distinct.ids64[4 * t] != distinct.ids64[4 * t + 3]);
}

TEST_CASE("gaps are poison") {
  const auto spec = small_spec();
  const auto c =
      oracle::make_case(spec, {.tokens = 3, .storage = Storage::strided, .x_stride = 72, .out_stride = 80});
  CHECK(c.x[64] == oracle::kPoison);
  CHECK(c.x[71] == oracle::kPoison);
  CHECK(c.x[72] != oracle::kPoison);
  CHECK(c.out[0] == oracle::kPoison);
  std::int64_t poison = 0;
  for (std::int64_t i = 0; i < c.fc1.size(); ++i) poison += c.fc1[i] == oracle::kPoison;
  CHECK(poison == c.fc1.size() - 2 * 104 * 64);
}

TEST_CASE("samples of tokens hold the first and the last and nothing twice") {
  CHECK(oracle::sample_tokens(3, 8) == std::vector<std::int64_t>{0, 1, 2});
  const auto s = oracle::sample_tokens(100000, 20);
  CHECK(s.size() == 20);
  CHECK(s.front() == 0);
  CHECK(s.back() == 99999);
  for (std::size_t i = 1; i < s.size(); ++i) CHECK(s[i - 1] < s[i]);
}
