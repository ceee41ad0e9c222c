#include "fuzz/emit/emit_fuzz.hpp"

#include <doctest/doctest.h>

#include <array>

#include "emit/closed_text.hpp"
#include "fuzz/random_bytes.hpp"

using namespace varmoe;
using namespace varmoe::fuzz;

TEST_CASE("fault 41: kernels of layer specs and configs of random bytes") {
  std::mt19937_64 random(44);
  std::size_t accepted = 0, kernels = 0;
  std::array<std::size_t, emit::kStageCount> of_stage{};
  constexpr int kRounds = 1500;
  for (int i = 0; i < kRounds; ++i) {
    CAPTURE(i);
    const Outcome outcome = emit_spec(random_bytes(random, 200), [&](const emit::EmittedKernel& kernel) {
      ++of_stage[static_cast<std::size_t>(kernel.stage)];
      // The whole check, with its regular expressions, of some.
      if (kernels++ % 20 == 0) test::check_closed(kernel);
    });
    if (outcome.broken != nullptr) FAIL_CHECK(outcome.broken);
    accepted += outcome.accepted ? 1 : 0;
  }
  CHECK(accepted > kRounds / 2);
  CHECK(accepted < kRounds);
  for (std::size_t stage = 0; stage < of_stage.size(); ++stage) {
    CAPTURE(stage);
    CHECK(of_stage[stage] >= 10);
  }
}
