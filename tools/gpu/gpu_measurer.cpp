#include "tools/gpu/gpu_measurer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/env.hpp"
#include "base/thread_pool.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "cuda/graph.hpp"
#include "cuda/stream.hpp"
#include "engine/device_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "engine/toolchain.hpp"
#include "tools/gpu/backward_reference.hpp"
#include "tools/gpu/candidate_kernels.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "tools/gpu/timing.hpp"
#include "tools/gpu/trial_layer.hpp"
#include "tools/gpu/trial_training.hpp"
#include "tools/gpu/weight_copies.hpp"

namespace varmoe::tools {
namespace {

using tuner::Effort;
using tuner::Measurement;

/// What an effort is worth: how long a replay lasts, and how many samples there are of the whole forward, of
/// the skewed one, of each chain of steps. Samples come in rounds between which the configs take turns.
struct Pace {
  Effort effort;
  double replay_us;
  /// Samples are fewer where they take longer than this together, but not fewer than `least`.
  double budget_us;
  int least, whole, skewed, steps, rounds;
};
Pace pace_of(Effort effort) {
  switch (effort) {
    case Effort::quick:
      return {effort, 600, 10e3, 3, 5, 3, 3, 1};
    case Effort::normal:
      return {effort, 1000, 40e3, 5, 11, 7, 3, 1};
    case Effort::final_:
      return {effort, 1500, 300e3, 12, 36, 18, 7, 6};
  }
  return {effort, 1500, 300e3, 12, 36, 18, 7, 6};
}

/// The kernels that run before and with each GEMM.
const std::vector<std::string> kBeforeFc1 = {"sort_single", "sort_count", "sort_scatter"};
const std::vector<std::string> kUpToFc1 = {"sort_single", "sort_count", "sort_scatter", "gather", "fc1"};
const std::vector<std::string> kUpToFc2 = {"sort_single", "sort_count", "sort_scatter",
                                           "gather",      "fc1",        "fc2"};

using Steps = std::vector<std::string>;
Steps with(Steps steps, const Steps& more) {
  steps.insert(steps.end(), more.begin(), more.end());
  return steps;
}
/// The chains of a backward pass up to each product; what comes between two of them is charged to neither.
const Steps kBeforeDh = kBeforeFc1;
const Steps kUpToDh = kUpToFc1;
const Steps kBeforeGradients = with(kUpToDh, {"topk_weight_gradient", "gradient_schedule"});
const Steps kUpToFc2Gradient = with(kBeforeGradients, {"fc2_gradient"});
const Steps kUpToFc1Gradient = with(kUpToFc2Gradient, {"fc1_gradient"});
const Steps kUpToDx = with(kUpToFc1Gradient, {"fc2"});

/// A config that is right, and its graphs.
struct Runner {
  std::size_t index = 0;
  std::function<Status(RoutingKind, std::size_t copy)> pass;  ///< enqueues one, forward or backward
  std::int64_t forwards = 1;                                  ///< passes in each graph
  double replay_us = 0;                                       ///< of a graph, roughly
  std::optional<cuda::Graph> uniform_graph;
  std::optional<cuda::GraphExec> uniform, skewed;
  std::vector<double> uniform_us, skewed_us;
  Measurement measurement;
};

class GpuMeasurer final : public tuner::Measurer {
 public:
  GpuMeasurer(std::shared_ptr<cuda::Device> device, model::DeviceProfile profile, engine::Toolchain toolchain,
              ReferenceKernels kernels, BackwardReference backward_kernels, cuda::Stream stream)
      : device_(std::move(device)),
        profile_(std::move(profile)),
        toolchain_(std::move(toolchain)),
        kernels_(std::move(kernels)),
        backward_kernels_(std::move(backward_kernels)),
        stream_(std::move(stream)) {
    engine::BuilderSettings settings = toolchain_.builder_settings(profile_.arch);
    // One core is for the thread that measures, one for the driver's.
    if (settings.threads == 0) settings.threads = std::max(1, available_cores() - 2);
    builder_ = std::make_unique<engine::KernelBuilder>(std::move(settings));
  }

  std::string description() const override {
    return fmt::format("GPU {} ({})", device_->ordinal(), device_->attributes().name);
  }

  Status measure(const tuner::MeasureRequest& request, tuner::MeasureEvents& events) override {
    if (Status selected = select(request); !selected) {
      if (!is_recoverable(selected.error())) return selected;
      for (std::size_t i = 0; i < request.count(); ++i) events.answer(i, failed(selected.error()));
      return {};
    }
    const Pace pace = pace_of(request.effort);
    if (request.pass == TuningPass::backward) {
      CandidateTraining candidates(*builder_, *table_, training_->spec(), request.bucket,
                                   request.gradient_type, request.products, profile_);
      return measure_each(request, events, candidates, pace, [&](Runner& runner) {
        auto kernels = candidates.load(runner.index);
        if (!kernels) return Status(kernels.error());
        return check_backward(*kernels, pace, runner);
      });
    }
    CandidateKernels candidates(*builder_, *table_, layer_->spec(), request.bucket, request.configs);
    return measure_each(request, events, candidates, pace, [&](Runner& runner) {
      auto kernels = candidates.load(runner.index);
      if (!kernels) return Status(kernels.error());
      return check_forward(*kernels, pace, runner);
    });
  }

 private:
  /// `check` loads a config's kernels, says in the measurement whether they are right, and what a pass is.
  template <class Candidates, class Check>
  Status measure_each(const tuner::MeasureRequest& request, tuner::MeasureEvents& events,
                      Candidates& candidates, const Pace& pace, const Check& check) {
    const bool interleaved = pace.rounds > 1;
    std::vector<Runner> runners;
    for (std::size_t i = 0; i < request.count(); ++i) {
      const Status compiled = candidates.wait(i);
      events.turn(i);
      Runner runner;
      runner.index = i;
      Status status = compiled ? check(runner) : compiled;
      if (status) status = capture(pace, runner);
      if (status && !interleaved) status = sample(pace, runner);
      if (status && !interleaved) status = conclude(pace, runner);
      if (!status) {
        if (!is_recoverable(status.error())) return status;
        runner.measurement = failed(status.error());
      }
      if (!status || !interleaved || !runner.measurement.verified) {
        events.answer(i, runner.measurement);
        continue;
      }
      runners.push_back(std::move(runner));
    }
    return in_turn(pace, runners, events);
  }

  /// The configs round by round, so that a clock that drifts meets them all alike.
  Status in_turn(const Pace& pace, std::vector<Runner>& runners, tuner::MeasureEvents& events) {
    for (int round = 0; round < pace.rounds; ++round) {
      for (Runner& runner : runners) {
        if (!runner.measurement.failure.empty()) continue;
        events.turn(runner.index);
        if (Status status = sample(pace, runner); !status) {
          if (!is_recoverable(status.error())) return status;
          runner.measurement = failed(status.error());
        }
      }
    }
    for (Runner& runner : runners) {
      events.turn(runner.index);
      if (runner.measurement.failure.empty()) {
        if (Status status = conclude(pace, runner); !status) {
          if (!is_recoverable(status.error())) return status;
          runner.measurement = failed(status.error());
        }
      }
      events.answer(runner.index, runner.measurement);
    }
    return {};
  }

  static Measurement failed(const Error& error) {
    Measurement m;
    m.failure = error.message().empty() ? to_string(error.code()) : error.message();
    return m;
  }

  /// Whether the device still works after an error.
  bool is_recoverable(const Error& error) const {
    if (error.code() == ErrorCode::cancelled || error.code() == ErrorCode::no_device) return false;
    return device_->synchronize().ok();
  }

  Status select(const tuner::MeasureRequest& request) {
    const bool backward = request.pass == TuningPass::backward;
    const bool same = backward ? training_ != nullptr && training_->spec() == request.spec &&
                                     training_->gradient_type() == request.gradient_type
                               : layer_ != nullptr && layer_->spec() == request.spec;
    if (!same) {
      table_.reset();
      layer_.reset();
      training_.reset();
    }
    if (backward && training_ == nullptr) {
      auto layer = TrialTraining::create(device_, kernels_, backward_kernels_, stream_.handle(), request.spec,
                                         request.gradient_type);
      if (!layer) return layer.error();
      training_ = *std::move(layer);
    } else if (!backward && layer_ == nullptr) {
      auto layer = TrialLayer::create(device_, kernels_, stream_.handle(), request.spec, profile_.l2_bytes);
      if (!layer) return layer.error();
      layer_ = *std::move(layer);
    }
    if (table_ == nullptr || (backward ? training_->bucket() : layer_->bucket()) != request.bucket) {
      // Kernels of another bucket are mostly others; they would pile up on the device.
      table_ = std::make_unique<engine::KernelTable>(device_, *builder_, toolchain_.log);
      forwards_.clear();
    }
    return backward ? training_->set_bucket(request.bucket) : layer_->set_bucket(request.bucket);
  }

  std::size_t copies() const { return training_ != nullptr ? 1 : layer_->copies(); }

  Status check_forward(const plan::KernelSet& kernels, const Pace& pace, Runner& runner) {
    Measurement& m = runner.measurement;
    m.verified = true;
    for (const RoutingKind kind : {RoutingKind::uniform, RoutingKind::zipf, RoutingKind::hot}) {
      const bool twice = kind == RoutingKind::uniform || pace.rounds > 1;
      auto verdict = layer_->check(kernels, kind, twice);
      if (!verdict) return verdict.error();
      m.err1 = std::max(m.err1, verdict->err1);
      m.err2 = std::max(m.err2, verdict->err2);
      if (verdict->fault.empty()) continue;
      m.verified = false;
      m.failure = fmt::format("wrong result ({} routing): {}", name(kind), verdict->fault);
      return {};
    }
    runner.pass = [this, kernels](RoutingKind kind, std::size_t copy) {
      return layer_->forward(kernels, kind, copy);
    };
    return {};
  }

  Status check_backward(const plan::TrainingKernels& kernels, const Pace& pace, Runner& runner) {
    Measurement& m = runner.measurement;
    m.verified = true;
    BackwardFigures& products = m.products.emplace();
    for (const RoutingKind kind : {RoutingKind::hot, RoutingKind::zipf, RoutingKind::uniform}) {
      const bool twice = kind == RoutingKind::uniform || pace.rounds > 1;
      auto verdict = training_->check(kernels, kind, twice);
      if (!verdict) return verdict.error();
      products.err_dh = std::max(products.err_dh, verdict->dtopk);
      products.err_dx = std::max(products.err_dx, verdict->dx);
      products.err_fc1_gradient = std::max(products.err_fc1_gradient, verdict->dw1);
      products.err_fc2_gradient = std::max(products.err_fc2_gradient, verdict->dw2);
      if (verdict->fault.empty()) continue;
      m.verified = false;
      m.failure = fmt::format("wrong result ({} routing): {}", name(kind), verdict->fault);
      return {};
    }
    // z stays that of the last routing: what it holds changes no time.
    runner.pass = [this, kernels](RoutingKind kind, std::size_t) {
      return training_->backward(kernels, kind);
    };
    return {};
  }

  /// The graphs of a config that is right.
  Status capture(const Pace& pace, Runner& runner) {
    if (!runner.measurement.verified) return {};
    const auto round = static_cast<std::int64_t>(copies());
    auto once =
        timed_us(device_, stream_.handle(), [&] { return enqueue(runner, RoutingKind::uniform, round); });
    if (!once) return once.error();
    const double forward_us = *once / static_cast<double>(round);
    // The same for all configs of a bucket, so that what lies between two replays weighs on all alike.
    auto& forwards = forwards_[pace.effort];
    if (forwards == 0) forwards = forwards_per_replay(forward_us, copies(), pace.replay_us);
    runner.forwards = forwards;
    runner.replay_us = forward_us * static_cast<double>(forwards);
    for (const RoutingKind kind : {RoutingKind::uniform, RoutingKind::zipf}) {
      auto graph =
          capture_graph(device_, stream_.handle(), [&] { return enqueue(runner, kind, runner.forwards); });
      if (!graph) return graph.error();
      auto exec = cuda::GraphExec::instantiate(*graph);
      if (!exec) return exec.error();
      if (kind == RoutingKind::uniform) {
        runner.uniform_graph = *std::move(graph);
        runner.uniform = *std::move(exec);
      } else {
        runner.skewed = *std::move(exec);
      }
    }
    return {};
  }

  /// One round of samples of the whole forward.
  Status sample(const Pace& pace, Runner& runner) {
    if (!runner.measurement.verified) return {};
    if (auto status = add_samples(runner, *runner.uniform, pace, pace.whole, runner.uniform_us); !status)
      return status;
    return add_samples(runner, *runner.skewed, pace, pace.skewed, runner.skewed_us);
  }

  Status add_samples(const Runner& runner, const cuda::GraphExec& graph, const Pace& pace, int count,
                     std::vector<double>& samples) {
    const int affordable =
        std::clamp(static_cast<int>(std::min(pace.budget_us / std::max(runner.replay_us, 1.0), 1e6)),
                   std::min(pace.least, count), count);
    const int share = std::max(1, affordable / pace.rounds);
    auto times = replay_times_us(device_, stream_.handle(), graph, share);
    if (!times) return times.error();
    for (const double us : *times) samples.push_back(us / static_cast<double>(runner.forwards));
    return {};
  }

  /// Figures from the samples; times of the GEMMs.
  Status conclude(const Pace& pace, Runner& runner) {
    Measurement& m = runner.measurement;
    if (!m.verified) return {};
    const Timing whole = Timing::of(runner.uniform_us);
    m.us = whole.median_us;
    m.spread = whole.range();
    m.skewed_us = Timing::of(runner.skewed_us).median_us;
    if (m.products) {
      m.products->us_dh = m.products->us_dx = m.products->us_fc1_gradient = m.products->us_fc2_gradient =
          m.us;
    } else {
      m.fc1_us = m.fc2_us = m.us;
    }
    auto kernels = runner.uniform_graph->kernels();
    if (!kernels) {
      if (kernels.error().code() == ErrorCode::unsupported) return {};
      return kernels.error();
    }
    const auto chain_us = [&](const std::vector<std::string>& steps) -> Result<double> {
      if (auto status = enable_steps(*runner.uniform, *kernels, steps); !status) return status.error();
      auto times = replay_times_us(device_, stream_.handle(), *runner.uniform, pace.steps);
      if (!times) return times.error();
      return Timing::of(*times).median_us / static_cast<double>(runner.forwards);
    };
    if (m.products) return conclude_products(chain_us, *m.products);
    auto before = chain_us(kBeforeFc1);
    if (!before) return before.error();
    auto fc1 = chain_us(kUpToFc1);
    if (!fc1) return fc1.error();
    auto fc2 = chain_us(kUpToFc2);
    if (!fc2) return fc2.error();
    m.fc1_us = std::max(*fc1 - *before, tuner::kLeastMicroseconds);
    m.fc2_us = std::max(*fc2 - *fc1, tuner::kLeastMicroseconds);
    return {};
  }

  /// What each product adds to the chain up to it.
  static Status conclude_products(const auto& chain_us, BackwardFigures& products) {
    const struct {
      const Steps &before, &with;
      double BackwardFigures::*us;
    } chains[] = {{kBeforeDh, kUpToDh, &BackwardFigures::us_dh},
                  {kBeforeGradients, kUpToFc2Gradient, &BackwardFigures::us_fc2_gradient},
                  {kUpToFc2Gradient, kUpToFc1Gradient, &BackwardFigures::us_fc1_gradient},
                  {kUpToFc1Gradient, kUpToDx, &BackwardFigures::us_dx}};
    std::map<const Steps*, double> known;
    for (const auto& chain : chains) {
      for (const Steps* steps : {&chain.before, &chain.with}) {
        if (known.contains(steps)) continue;
        auto us = chain_us(*steps);
        if (!us) return us.error();
        known[steps] = *us;
      }
      products.*chain.us = std::max(known[&chain.with] - known[&chain.before], tuner::kLeastMicroseconds);
    }
    return {};
  }

  Status enqueue(const Runner& runner, RoutingKind kind, std::int64_t forwards) {
    for (std::int64_t i = 0; i < forwards; ++i) {
      const std::size_t copy = static_cast<std::size_t>(i) % copies();
      if (auto status = runner.pass(kind, copy); !status) return status;
    }
    return {};
  }

  static const char* name(RoutingKind kind) {
    return kind == RoutingKind::uniform ? "uniform" : kind == RoutingKind::zipf ? "zipf" : "hot";
  }

  std::shared_ptr<cuda::Device> device_;
  model::DeviceProfile profile_;
  engine::Toolchain toolchain_;
  ReferenceKernels kernels_;
  BackwardReference backward_kernels_;
  cuda::Stream stream_;
  std::unique_ptr<engine::KernelBuilder> builder_;
  std::unique_ptr<TrialLayer> layer_;        ///< the layer of the last request, if it was of a forward
  std::unique_ptr<TrialTraining> training_;  ///< and if it was of a backward pass
  std::unique_ptr<engine::KernelTable> table_;
  std::map<Effort, std::int64_t> forwards_;  ///< in a graph of this bucket
};

}  // namespace

Result<std::unique_ptr<tuner::Measurer>> open_gpu_measurer(const SessionOptions& options, int ordinal) {
  auto environment = Environment::read();
  if (!environment) return environment.error();
  auto driver = cuda::Driver::load();
  if (!driver) return driver.error();
  auto device = cuda::Device::open(*driver, ordinal);
  if (!device) return device.error();
  auto profile = engine::device_profile((*device)->attributes(), *environment);
  if (!profile) return profile.error();
  EngineOptions engine_options = options.engine_options();
  engine_options.jit = JitMode::on;  // a candidate is no kernel that a server would ask for
  auto toolchain = engine::Toolchain::open(engine_options, *environment);
  if (!toolchain) return toolchain.error();
  auto compiler = toolchain->compiler->load();
  if (!compiler) return compiler.error();
  auto kernels = ReferenceKernels::create(*device, **compiler, profile->arch);
  if (!kernels) return kernels.error();
  auto backward_kernels = BackwardReference::create(*device, **compiler, profile->arch);
  if (!backward_kernels) return backward_kernels.error();
  auto stream = cuda::Stream::create(*device);
  if (!stream) return stream.error();
  return std::unique_ptr<tuner::Measurer>(
      std::make_unique<GpuMeasurer>(*std::move(device), *std::move(profile), *std::move(toolchain),
                                    *std::move(kernels), *std::move(backward_kernels), *std::move(stream)));
}

}  // namespace varmoe::tools
