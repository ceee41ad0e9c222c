#include <doctest/doctest.h>

#include "cpu_case.hpp"
#include "oracle/golden_file.hpp"

namespace {

oracle::Buffer16 aligned_copy(const std::vector<std::uint16_t>& values) {
  oracle::Buffer16 copy(static_cast<std::int64_t>(values.size()));
  std::copy(values.begin(), values.end(), copy.data());
  return copy;
}

}  // namespace

TEST_CASE("the golden vectors") {
  const auto files = oracle::golden_files(VARMOE_SOURCE_DIR "/tests/golden");
  CHECK(files.size() >= 10);
  for (const auto& path : files) {
    CAPTURE(path);
    const auto g = oracle::read_golden(path);
    const auto fc1 = aligned_copy(g.fc1), fc2 = aligned_copy(g.fc2), x = aligned_copy(g.x);
    auto out =
        aligned_copy(g.accumulate ? g.old_out : std::vector<std::uint16_t>(g.out.size(), oracle::kPoison));
    auto layer = varmoe::cpu::CpuLayer::create(g.spec, 2);
    REQUIRE(layer.ok());
    REQUIRE((*layer)->bind(varmoe::Weights::blocks(g.spec, fc1.data(), fc2.data()).value()).ok());
    varmoe::ForwardArgs args;
    args.tokens = g.tokens;
    args.x = x.data();
    args.topk_ids = g.ids.data();
    args.id_type = varmoe::IdType::int64;
    args.topk_weights = g.weights.data();
    args.out = out.data();
    args.accumulate = g.accumulate;
    cpu_test::run(**layer, args);
    std::vector<double> reference;
    for (const auto bits : g.out) reference.push_back(oracle::decode(g.spec.dtype, bits));
    const auto tokens = oracle::sample_tokens(g.tokens, g.tokens);
    const auto H = g.spec.hidden_size;
    const auto c = oracle::compare_rows(g.spec.dtype, reference, out.data(), H, H, tokens);
    CHECK_MESSAGE(c.pass, c.text());
  }
}
