#include <doctest/doctest.h>

#include <thread>

#include "cpu_case.hpp"

using varmoe::WeightLayout;

namespace {

oracle::RandomCase medium_case(WeightLayout layout, std::uint64_t seed, std::int64_t tokens) {
  varmoe::LayerSpec spec;
  spec.hidden_size = 328;
  spec.expert_widths = {136, 264, 40, 136, 72, 200};
  spec.top_k = 3;
  spec.fc1_layout = spec.fc2_layout = layout;
  return oracle::make_case(
      spec,
      {.tokens = tokens, .seed = seed, .routing = oracle::Routing::half_on_one, .invalid_fraction = 0.1});
}

/// 256-byte aligned bytes.
struct Workspace {
  explicit Workspace(std::size_t bytes) : size(bytes), storage(static_cast<std::int64_t>(bytes / 2 + 1)) {
    for (std::int64_t i = 0; i < storage.size(); ++i) storage[i] = oracle::kPoison;
  }
  std::size_t size;
  oracle::Buffer16 storage;
};

}  // namespace

TEST_CASE("any number of threads gives the same bits") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    auto c = medium_case(layout, 1, 150);
    cpu_test::run(*cpu_test::bound_layer(c, 1), cpu_test::arguments(c));
    const auto one = cpu_test::output(c);
    for (const int threads : {2, 3, 8, 17}) {
      CAPTURE(threads);
      auto layer = cpu_test::bound_layer(c, threads);
      for (int again = 0; again < 3; ++again) {
        std::fill(c.out.data(), c.out.data() + c.out.size(), oracle::kPoison);
        cpu_test::run(*layer, cpu_test::arguments(c));
        CHECK(cpu_test::output(c) == one);
      }
    }
  }
}

TEST_CASE("a token's bits do not depend on its neighbours, with any instruction set") {
  for (const auto& set : varmoe::cpu::instruction_sets()) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      auto c = medium_case(layout, 2, 70);
      auto layer = cpu_test::bound_layer(c, 3, set);
      cpu_test::run(*layer, cpu_test::arguments(c));
      const auto together = cpu_test::output(c);
      const auto H = c.spec.hidden_size, k = c.spec.top_k;
      for (std::int64_t first = 0; first < 70; first += 1 + first % 5) {  // alone and in small company
        const std::int64_t count = std::min<std::int64_t>(1 + first % 5, 70 - first);
        std::vector<std::uint16_t> some(static_cast<std::size_t>(count * H));
        oracle::Buffer16 out(count * H);
        auto args = cpu_test::arguments(c);
        args.tokens = count;
        args.x = c.x.data() + first * H;
        args.topk_ids = c.ids32.data() + first * k;
        args.topk_weights = c.topk_weights.data() + first * k;
        args.out = out.data();
        cpu_test::run(*layer, args);
        for (std::int64_t i = 0; i < count * H; ++i) {
          if (out[i] != together[static_cast<std::size_t>(first * H + i)]) {
            FAIL("token ", first + i / H, " column ", i % H, " differs with ", set);
          }
        }
      }
    }
  }
}

TEST_CASE("any workspace that holds one token gives the same bits, and only its own bytes are used") {
  auto c = medium_case(WeightLayout::nk, 3, 50);
  auto layer = cpu_test::bound_layer(c, 2);
  cpu_test::run(*layer, cpu_test::arguments(c));
  const auto whole = cpu_test::output(c);
  std::size_t before = 0;
  for (const std::int64_t tokens : {1, 2, 7, 49, 50, 51}) {
    CAPTURE(tokens);
    CHECK(layer->workspace_bytes(tokens) > before);
    before = layer->workspace_bytes(tokens);
    Workspace w(before + 512);
    auto args = cpu_test::arguments(c);
    args.workspace = w.storage.data();
    args.workspace_bytes = before;
    std::fill(c.out.data(), c.out.data() + c.out.size(), oracle::kPoison);
    cpu_test::run(*layer, args);
    CHECK(cpu_test::output(c) == whole);
    for (std::size_t i = before / 2; i < w.size / 2; ++i) {
      if (w.storage[static_cast<std::int64_t>(i)] != oracle::kPoison) FAIL("wrote beyond the workspace");
    }
  }
}

TEST_CASE("forwards from several threads on one layer") {
  auto shared = medium_case(WeightLayout::kn, 4, 40);
  auto layer = cpu_test::bound_layer(shared, 3);
  cpu_test::run(*layer, cpu_test::arguments(shared));
  const auto expected = cpu_test::output(shared);
  std::vector<oracle::RandomCase> cases;
  for (int i = 0; i < 4; ++i) cases.push_back(medium_case(WeightLayout::kn, 4, 40));
  std::vector<std::thread> callers;
  std::atomic<int> failures{0};
  for (auto& c : cases) {
    callers.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        if (!layer->forward(cpu_test::arguments(c)).ok()) ++failures;
      }
    });
  }
  for (auto& t : callers) t.join();
  CHECK(failures == 0);
  for (const auto& c : cases) CHECK(cpu_test::output(c) == expected);
}
