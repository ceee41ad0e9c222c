#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/layer.hpp"
#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"

namespace cpu_test {

/// Four experts of unequal widths; H and the widths are multiples of 8 and not of 16.
inline varmoe::LayerSpec small_spec() {
  varmoe::LayerSpec spec;
  spec.hidden_size = 136;
  spec.expert_widths = {8, 40, 136, 24};
  spec.top_k = 2;
  return spec;
}

inline std::unique_ptr<varmoe::cpu::CpuLayer> bound_layer(const oracle::RandomCase& c, int threads,
                                                          const std::string& instruction_set = {}) {
  auto layer = varmoe::cpu::CpuLayer::create(c.spec, threads, instruction_set);
  REQUIRE_MESSAGE(layer.ok(), (layer.ok() ? "" : layer.error().message()));
  const auto weights = c.host_weights();
  REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
  REQUIRE((*layer)->bind(*weights).ok());
  return std::move(*layer);
}

inline varmoe::ForwardArgs arguments(oracle::RandomCase& c) {
  varmoe::ForwardArgs args;
  args.tokens = c.options.tokens;
  args.x = c.x.data();
  args.x_stride = c.x_stride;
  args.topk_ids = c.ids32.data();
  args.topk_weights = c.topk_weights.data();
  args.out = c.out.data();
  args.out_stride = c.out_stride;
  args.accumulate = c.options.accumulate;
  return args;
}

inline void run(varmoe::cpu::CpuLayer& layer, const varmoe::ForwardArgs& args) {
  const auto status = layer.forward(args);
  REQUIRE_MESSAGE(status.ok(), (status.ok() ? "" : status.error().message()));
}

/// Against the oracle's numbers, computed before `out` was written.
inline void check(const oracle::RandomCase& c, const std::vector<double>& reference) {
  const auto tokens = oracle::sample_tokens(c.options.tokens, c.options.tokens);
  const auto comparison =
      oracle::compare_rows(c.spec.dtype, reference, c.out.data(), c.out_stride, c.spec.hidden_size, tokens);
  CHECK_MESSAGE(comparison.pass, comparison.text());
  for (std::int64_t t = 0; t < c.options.tokens; ++t) {  // gaps between rows are not written
    for (std::int64_t i = c.spec.hidden_size; i < c.out_stride; ++i) {
      if (c.out[t * c.out_stride + i] != oracle::kPoison) FAIL("the gap after row ", t, " was written");
    }
  }
}

inline void run_and_check(oracle::RandomCase& c, int threads, const std::string& instruction_set = {}) {
  const auto reference = c.reference();
  run(*bound_layer(c, threads, instruction_set), arguments(c));
  check(c, reference);
}

inline std::vector<std::uint16_t> output(const oracle::RandomCase& c) {
  return {c.out.data(), c.out.data() + c.out.size()};
}

}  // namespace cpu_test
