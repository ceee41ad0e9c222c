#include "tools/bench/check.hpp"

#include <cmath>
#include <cstring>
#include <optional>

namespace varmoe::tools {
namespace {

/// A weight to alter, and by what.
struct Alteration {
  oracle::Part part;
  std::int64_t element;
  std::uint16_t bits;
};

oracle::Buffer16& buffer_of(oracle::RandomCase& c, oracle::Part part) {
  return part == oracle::Part::fc1 ? c.fc1 : part == oracle::Part::up ? c.up : c.fc2;
}

/// An up weight of an expert that a sampled token goes to, at the largest element of that token's x, with its
/// sign: whatever the activation, that element of h becomes large.
std::optional<Alteration> choose_alteration(const oracle::RandomCase& c,
                                            const std::vector<std::int64_t>& sample) {
  const std::int64_t k = c.spec.top_k;
  for (const std::int64_t t : sample) {
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t e = c.ids64[static_cast<std::size_t>(t * k + j)];
      if (e < 0 || e >= c.spec.num_experts()) continue;
      const auto value = [&](std::int64_t i) {
        return oracle::decode(c.spec.dtype, c.x[t * c.x_stride + i]);
      };
      std::int64_t at = 0;
      for (std::int64_t i = 1; i < c.spec.hidden_size; ++i) {
        if (std::fabs(value(i)) > std::fabs(value(at))) at = i;
      }
      const oracle::Place& up = c.plan.experts[static_cast<std::size_t>(e)].up;
      return Alteration{up.part, up.offset + at * up.k_stride,
                        oracle::encode(c.spec.dtype, value(at) < 0 ? -100.0 : 100.0)};
    }
  }
  return std::nullopt;
}

}  // namespace

Result<CheckResult> check(Backend& backend, oracle::RandomCase& layer_case, std::int64_t tokens,
                          std::int64_t rows, bool inject_error) {
  const std::vector<std::int64_t> sample = oracle::sample_tokens(tokens, rows == 0 ? tokens : rows);
  const std::vector<double> reference = layer_case.reference(sample);
  const auto run_both = [&](oracle::Buffer16& first, oracle::Buffer16& second) -> Status {
    if (auto status = backend.run(tokens, first); !status) return status;
    return backend.run(tokens, second);
  };
  const std::int64_t hidden = layer_case.spec.hidden_size;
  oracle::Buffer16 first(tokens * hidden), second(tokens * hidden);
  Status ran;
  if (inject_error) {
    const auto alteration = choose_alteration(layer_case, sample);
    if (!alteration)
      return {ErrorCode::invalid_argument, "--inject-error: no sampled token goes to any expert"};
    std::uint16_t& weight = buffer_of(layer_case, alteration->part)[alteration->element];
    const std::uint16_t original = std::exchange(weight, alteration->bits);
    ran = backend.reload_weight(alteration->part, alteration->element);
    if (ran) ran = run_both(first, second);
    weight = original;
    if (Status restored = backend.reload_weight(alteration->part, alteration->element); ran && !restored)
      ran = restored;
  } else {
    ran = run_both(first, second);
  }
  if (!ran) return ran.error();
  CheckResult result;
  result.comparison =
      oracle::compare_rows(layer_case.spec.dtype, reference, first.data(), hidden, hidden, sample);
  result.repeatable = std::memcmp(first.data(), second.data(), first.bytes()) == 0;
  return result;
}

}  // namespace varmoe::tools
