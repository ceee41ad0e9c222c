#include "tools/bench/search.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"

namespace varmoe::tools {
namespace {

/// Candidates in the cost model's order.
std::vector<GemmConfig> ranked(const LayerSpec& spec, model::GemmStage stage, std::int64_t tokens,
                               const model::DeviceProfile& device, std::size_t width) {
  std::vector<std::pair<double, GemmConfig>> rated;
  for (const GemmConfig& config : model::gemm_candidates(spec, stage, device))
    rated.emplace_back(model::predict_gemm_seconds(spec, stage, config, tokens, device), config);
  std::stable_sort(rated.begin(), rated.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  if (width != 0 && rated.size() > width) rated.resize(width);
  std::vector<GemmConfig> configs;
  for (const auto& [seconds, config] : rated) configs.push_back(config);
  return configs;
}

/// The trials with the least time of one step first, those that failed left out.
std::vector<Trial> fastest(std::vector<Trial> trials, double Trial::*step, std::size_t count) {
  std::erase_if(trials, [](const Trial& t) { return !t.pass; });
  std::stable_sort(trials.begin(), trials.end(),
                   [step](const Trial& a, const Trial& b) { return a.*step < b.*step; });
  if (trials.size() > count) trials.resize(count);
  return trials;
}

void report(const Trial& t, std::int64_t tokens, const Output& out) {
  out.event("trial", Json()
                         .add("tokens", tokens)
                         .add("fc1", to_string(t.fc1))
                         .add("fc2", to_string(t.fc2))
                         .add("fc1_us", t.fc1_us)
                         .add("fc2_us", t.fc2_us)
                         .add("us", t.layer_us)
                         .add("check", t.pass)
                         .add("failure", t.failure));
}

}  // namespace

Result<SearchResult> search(Backend& backend, const oracle::RandomCase& layer_case, std::int64_t tokens,
                            std::int64_t rows, std::size_t width, const Output& out) {
  const LayerSpec& spec = layer_case.spec;
  if (backend.profile() == nullptr)
    return {ErrorCode::unsupported, "--search needs a GPU: the CPU backend has no tiles to choose"};
  const model::DeviceProfile& device = *backend.profile();
  const std::vector<std::int64_t> sample = oracle::sample_tokens(tokens, rows == 0 ? tokens : rows);
  const std::vector<double> reference = layer_case.reference(sample);

  const auto fc1 = ranked(spec, model::GemmStage::fc1, tokens, device, width);
  const auto fc2 = ranked(spec, model::GemmStage::fc2, tokens, device, width);
  const LayerConfig predicted = model::predict_layer_config(spec, tokens, device);
  std::vector<Trial> trials(1);
  trials[0].fc1 = predicted.fc1;
  trials[0].fc2 = predicted.fc2;
  for (std::size_t i = 0; i < std::max(fc1.size(), fc2.size()); ++i) {
    Trial trial;
    trial.fc1 = fc1[i % fc1.size()];
    trial.fc2 = fc2[i % fc2.size()];
    trials.push_back(std::move(trial));
  }
  if (auto status = backend.try_configs(tokens, reference, sample, trials); !status) return status.error();

  constexpr std::size_t kFinalists = 3;
  std::vector<Trial> finals;
  for (const Trial& a : fastest(trials, &Trial::fc1_us, kFinalists)) {
    for (const Trial& b : fastest(trials, &Trial::fc2_us, kFinalists)) {
      Trial trial;
      trial.fc1 = a.fc1;
      trial.fc2 = b.fc2;
      finals.push_back(std::move(trial));
    }
  }
  if (auto status = backend.try_configs(tokens, reference, sample, finals); !status) return status.error();

  SearchResult result;
  result.predicted = trials[0];
  trials.insert(trials.end(), finals.begin(), finals.end());
  for (const Trial& trial : trials) {
    report(trial, tokens, out);
    ++result.tried;
    if (!trial.pass) ++result.failed;
  }
  const auto passed = fastest(trials, &Trial::layer_us, 1);
  if (passed.empty())
    return {ErrorCode::internal,
            fmt::format("{} tokens: no trial passed; the first said: {}", tokens, trials[0].failure)};
  result.best = passed.front();
  return result;
}

}  // namespace varmoe::tools
