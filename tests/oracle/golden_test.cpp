#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "oracle/golden.hpp"
#include "oracle/golden_file.hpp"

namespace {

const std::string kFolder = std::string(VARMOE_SOURCE_DIR) + "/tests/golden";

}  // namespace

TEST_CASE("the golden files are exactly what the generator makes") {
  std::vector<std::string> expected;
  for (const auto& golden : oracle::golden_cases()) {
    const std::string path = kFolder + "/" + golden.name + ".json";
    CAPTURE(path);
    expected.push_back(path);
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    CHECK(!text.empty());
    CHECK((text == oracle::golden_text(golden)));
  }
  std::sort(expected.begin(), expected.end());
  CHECK(oracle::golden_files(kFolder) == expected);
}

TEST_CASE("a golden file read back gives the oracle its own output") {
  for (const auto& path : oracle::golden_files(kFolder)) {
    CAPTURE(path);
    const auto g = oracle::read_golden(path);
    const bool gated = oracle::is_gated(g.spec.activation);
    const std::int64_t H = g.spec.hidden_size;
    oracle::OracleLayer layer{H, g.spec.top_k, g.spec.activation, g.spec.activation_params, g.spec.dtype, {}};
    const std::uint16_t *fc1 = g.fc1.data(), *fc2 = g.fc2.data();
    for (const std::int64_t w : g.spec.expert_widths) {
      const std::uint16_t* up = fc1 + (gated ? w * H : 0);
      layer.experts.push_back({w, {fc1, H, 1}, {up, H, 1}, {fc2, w, 1}});
      fc1 = up + w * H;
      fc2 += H * w;
    }
    const oracle::OracleCall call{
        g.x.data(), 0, g.ids.data(), g.weights.data(), g.accumulate ? g.old_out.data() : nullptr, 0};
    const auto reference = oracle::oracle_forward(layer, call, g.tokens);
    REQUIRE(reference.size() == g.out.size());
    for (std::size_t i = 0; i < reference.size(); ++i) {
      if (reference[i] != oracle::decode(g.spec.dtype, g.out[i])) FAIL("element ", i, " differs");
    }
  }
}
