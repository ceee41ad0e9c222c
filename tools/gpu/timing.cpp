#include "tools/gpu/timing.hpp"

#include <algorithm>
#include <utility>

namespace varmoe::tools {

Timing Timing::of(std::vector<double> samples) {
  Timing timing;
  if (samples.empty()) return timing;
  std::sort(samples.begin(), samples.end());
  const auto at = [&](double share) {
    return samples[static_cast<std::size_t>(share * static_cast<double>(samples.size() - 1) + 0.5)];
  };
  timing.median_us = at(0.5);
  timing.best_us = samples.front();
  timing.worst_us = samples.back();
  if (timing.median_us > 0) timing.spread = (at(0.9) - at(0.1)) / timing.median_us;
  return timing;
}

Result<std::vector<double>> replay_times_us(const std::shared_ptr<cuda::Device>& device, void* stream,
                                            const cuda::GraphExec& graph, int count) {
  if (auto status = graph.launch(stream); !status) return status.error();
  std::vector<cuda::Event> marks;
  for (int i = 0; i <= count; ++i) {
    auto mark = cuda::Event::create(device, true);
    if (!mark) return mark.error();
    marks.push_back(*std::move(mark));
  }
  for (int i = 0; i <= count; ++i) {
    if (i > 0) {
      if (auto status = graph.launch(stream); !status) return status.error();
    }
    if (auto status = marks[static_cast<std::size_t>(i)].record(stream); !status) return status.error();
  }
  if (auto status = marks.back().synchronize(); !status) return status.error();
  std::vector<double> times;
  for (std::size_t i = 1; i < marks.size(); ++i) {
    auto ms = cuda::elapsed_ms(*device, marks[i - 1], marks[i]);
    if (!ms) return ms.error();
    times.push_back(static_cast<double>(*ms) * 1000);
  }
  return times;
}

const std::vector<std::string>& forward_steps() {
  static const std::vector<std::string> steps = {"sort_single", "sort_count", "sort_scatter", "gather",
                                                 "fc1",         "fc2",        "combine",      "whole_layer"};
  return steps;
}

const std::vector<std::string>& backward_steps() {
  static const std::vector<std::string> steps = {
      "topk_weight_gradient", "gradient_schedule", "fc2_gradient",        "fc1_gradient",
      "fc1_bias_gradient",    "fc2_bias_gradient", "shared_gate_gradient"};
  return steps;
}

std::string step_of(const std::string& kernel) {
  // Those of the backward pass first: "fc1_gradient" begins as "fc1" does.
  for (const auto* steps : {&backward_steps(), &forward_steps()}) {
    for (const std::string& step : *steps) {
      if (kernel.rfind("varmoe_" + step + "_", 0) == 0) return step;
    }
  }
  return kernel;
}

Status enable_steps(const cuda::GraphExec& graph, const std::vector<cuda::GraphKernel>& kernels,
                    const std::vector<std::string>& steps) {
  for (const cuda::GraphKernel& kernel : kernels) {
    const bool works = std::find(steps.begin(), steps.end(), step_of(kernel.name)) != steps.end();
    if (auto status = graph.enable(kernel, works); !status) return status;
  }
  return {};
}

}  // namespace varmoe::tools
