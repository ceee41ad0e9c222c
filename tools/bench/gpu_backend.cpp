#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "base/env.hpp"
#include "base/thread_pool.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "cuda/event.hpp"
#include "cuda/graph.hpp"
#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "oracle/compare.hpp"
#include "tools/bench/backend.hpp"
#include "tools/bench/l2_flush.hpp"
#include "tools/gpu/timing.hpp"
#include "tools/gpu/weight_copies.hpp"

namespace varmoe::tools {
namespace {

/// Poison of device memory: every 16-bit element is a NaN in bf16 and fp16.
constexpr std::uint8_t kPoisonByte = 0xFF;
/// A replay lasts about this long, so that events and the launch of the graph weigh little.
constexpr double kReplayMicroseconds = 2000;

/// The weights of a layer on the device, and a layer bound to them.
struct Copy {
  cuda::DeviceBuffer fc1, up, fc2, fc1_bias, fc2_bias;
  Layer layer;
};

class GpuBackend final : public Backend {
 public:
  GpuBackend(const BenchOptions& options, std::shared_ptr<cuda::Device> device, Engine engine,
             cuda::Stream stream, std::optional<L2Flush> flush, model::DeviceProfile profile)
      : options_(options),
        device_(std::move(device)),
        engine_(std::move(engine)),
        stream_(std::move(stream)),
        flush_(std::move(flush)),
        profile_(std::move(profile)) {}

  std::string description() const override { return engine_.device_description(); }
  const model::DeviceProfile* profile() const override { return &profile_; }

  Result<PrepareReport> load(oracle::RandomCase& layer_case,
                             const std::vector<std::int64_t>& tokens) override {
    case_ = &layer_case;
    copies_.clear();
    PrepareReport report;
    if (auto status = add_copy(&tokens, &report); !status) return status.error();
    const std::int64_t most = tokens.back();
    auto bytes = copies_.front().layer.workspace_bytes(most);
    if (!bytes) return bytes.error();
    const std::size_t row = static_cast<std::size_t>(case_->spec.hidden_size) * 2;
    if (auto status = allocate(workspace_, *bytes); !status) return status.error();
    if (auto status = allocate(out_, static_cast<std::size_t>(most) * row); !status) return status.error();
    if (auto status = upload(x_, case_->x.data(), case_->x.bytes()); !status) return status.error();
    if (auto status = upload(ids_, case_->ids32.data(), case_->ids32.size() * sizeof(std::int32_t));
        !status) {
      return status.error();
    }
    if (auto status =
            upload(weights_, case_->topk_weights.data(), case_->topk_weights.size() * sizeof(float));
        !status) {
      return status.error();
    }
    return report;
  }

  Status reload_weight(oracle::Part part, std::int64_t element) override {
    const Copy& first = copies_.front();
    const auto [buffer, source] = part == oracle::Part::fc1  ? std::pair(&first.fc1, case_->fc1.data())
                                  : part == oracle::Part::up ? std::pair(&first.up, case_->up.data())
                                                             : std::pair(&first.fc2, case_->fc2.data());
    return cuda::copy_to_device(*device_, buffer->address() + static_cast<std::uint64_t>(element) * 2,
                                source + element, 2);
  }

  Status run(std::int64_t tokens, oracle::Buffer16& out) override {
    if (auto status = poison(); !status) return status;
    if (auto status = copies_.front().layer.forward(arguments(tokens)); !status) return status;
    if (auto status = stream_.synchronize(); !status) return status;
    return cuda::copy_to_host(*device_, out.data(), out_.address(), out.bytes());
  }

  Status try_configs(std::int64_t tokens, const std::vector<double>& reference,
                     const std::vector<std::int64_t>& sample, std::vector<Trial>& trials) override {
    if (auto status = rotate(tokens); !status) return status;
    // Compiled side by side into the cache; the layers below then find them.
    parallel_for(trials.size(), 0, [&](std::size_t i) {
      if (interrupted) return;
      auto engine = trial_engine(trials[i]);
      auto layer = engine ? engine->create_layer(case_->spec) : Result<Layer>(engine.error());
      auto report = layer ? layer->prepare({.tokens = {tokens}}) : Result<PrepareReport>(layer.error());
      if (!report) trials[i].failure = report.error().message();
    });
    for (Trial& trial : trials) {
      if (interrupted) break;
      if (!trial.failure.empty()) continue;
      if (auto status = run_trial(tokens, reference, sample, trial); !status)
        trial.failure = status.error().message();
    }
    return {};
  }

  Result<Measurement> measure(std::int64_t tokens) override {
    if (auto status = rotate(tokens); !status) return status.error();
    const int warmup = options_.warmup < 0 ? 10 : options_.warmup;
    const int iterations = options_.iterations < 0 ? 50 : options_.iterations;
    Measurement result;
    result.copies = static_cast<std::int64_t>(used_copies_);

    // Eager first: it says how many forwards a replay should hold.
    std::vector<double> samples;
    double host_us = 0;
    for (int i = -warmup; i < iterations && !interrupted; ++i) {
      const auto start = std::chrono::steady_clock::now();
      auto us = timed([&] { return forwards(tokens, static_cast<std::int64_t>(used_copies_), &host_us); });
      if (!us) return us.error();
      if (i >= 0) samples.push_back(*us / static_cast<double>(used_copies_));
      if (seconds_since(start) > 1 && i >= 4) break;
    }
    result.eager = Timing::of(samples);
    result.host_us = host_us / static_cast<double>(used_copies_);

    const std::int64_t count = replayed_forwards(result.eager->median_us);
    auto graph = capture(tokens, count);
    if (!graph) return graph.error();
    auto exec = cuda::GraphExec::instantiate(*graph);
    if (!exec) return exec.error();
    auto replay = time_graph(*exec, count, warmup, iterations);
    if (!replay) return replay.error();
    result.replay = *replay;
    result.forward = *replay;
    if (flush_) {
      auto flushed = time_flushed(tokens, std::min(warmup, 3), iterations);
      if (!flushed) return flushed.error();
      result.flushed = *flushed;
      if (flushed->median_us < replay->median_us) result.forward = *flushed;
    }
    if (options_.profile) {
      auto steps = time_steps(*graph, *exec, count, iterations);
      if (!steps) return steps.error();
      result.steps = *std::move(steps);
    }
    return result;
  }

 private:
  std::int64_t replayed_forwards(double forward_us) const {
    return forwards_per_replay(forward_us, used_copies_, kReplayMicroseconds);
  }

  Result<Engine> trial_engine(const Trial& trial) const {
    EngineOptions options = options_.engine_options(device_->ordinal());
    options.fc1_config = to_string(trial.fc1);
    options.fc2_config = to_string(trial.fc2);
    options.compile_threads = 1;
    return Engine::create(options);
  }

  /// The copies' own layers step aside while the trial's run.
  Status run_trial(std::int64_t tokens, const std::vector<double>& reference,
                   const std::vector<std::int64_t>& sample, Trial& trial) {
    auto engine = trial_engine(trial);
    if (!engine) return engine.error();
    std::vector<Layer> layers;
    for (Copy& copy : copies_) {
      auto layer = engine->create_layer(case_->spec);
      if (!layer) return layer.error();
      if (auto report = layer->prepare({.tokens = {tokens}}); !report) return report.error();
      auto weights = weights_of(copy);
      if (!weights) return weights.error();
      if (auto status = layer->bind(*weights); !status) return status;
      layers.push_back(*std::move(layer));
    }
    const auto swap_layers = [&] {
      for (std::size_t i = 0; i < layers.size(); ++i) std::swap(copies_[i].layer, layers[i]);
    };
    swap_layers();
    const Status status = time_trial(tokens, reference, sample, trial);
    const Status finished = stream_.synchronize();
    swap_layers();
    return status ? finished : status;
  }

  Status time_trial(std::int64_t tokens, const std::vector<double>& reference,
                    const std::vector<std::int64_t>& sample, Trial& trial) {
    const std::int64_t hidden = case_->spec.hidden_size;
    oracle::Buffer16 first(tokens * hidden), second(tokens * hidden);
    if (auto status = run(tokens, first); !status) return status;
    if (auto status = run(tokens, second); !status) return status;
    const auto compared =
        oracle::compare_rows(case_->spec.dtype, reference, first.data(), hidden, hidden, sample);
    trial.pass = compared.pass &&
                 std::memcmp(first.data(), second.data(), static_cast<std::size_t>(tokens * hidden) * 2) == 0;
    if (!trial.pass) {
      trial.failure = compared.pass ? "a second run gave other bits" : compared.failure;
      return {};
    }
    constexpr int kIterations = 9;
    auto once = timed([&] { return forwards(tokens, static_cast<std::int64_t>(used_copies_)); });
    if (!once) return once.error();
    const std::int64_t count = replayed_forwards(*once / static_cast<double>(used_copies_));
    auto graph = capture(tokens, count);
    if (!graph) return graph.error();
    auto exec = cuda::GraphExec::instantiate(*graph);
    if (!exec) return exec.error();
    auto whole = time_graph(*exec, count, 2, kIterations);
    if (!whole) return whole.error();
    trial.layer_us = whole->median_us;
    if (flush_) {
      auto flushed = time_flushed(tokens, 2, kIterations);
      if (!flushed) return flushed.error();
      trial.layer_us = std::min(trial.layer_us, flushed->median_us);
    }
    auto steps = time_steps(*graph, *exec, count, kIterations);
    if (!steps) return steps.error();
    for (const StepTime& step : *steps) {
      if (step.name == "fc1" || step.name == "gather") trial.fc1_us += step.us;
      if (step.name == "fc2") trial.fc2_us = step.us;
    }
    return {};
  }

  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  Status allocate(cuda::DeviceBuffer& buffer, std::size_t bytes) {
    buffer = cuda::DeviceBuffer();
    auto made = cuda::DeviceBuffer::allocate(device_, bytes);
    if (!made) return made.error();
    buffer = *std::move(made);
    return {};
  }
  Status upload(cuda::DeviceBuffer& buffer, const void* source, std::size_t bytes) {
    if (auto status = allocate(buffer, bytes); !status) return status;
    return bytes == 0 ? Status() : cuda::copy_to_device(*device_, buffer.address(), source, bytes);
  }
  Status duplicate(cuda::DeviceBuffer& buffer, const cuda::DeviceBuffer& source) {
    if (auto status = allocate(buffer, source.size()); !status) return status;
    if (source.size() == 0) return {};
    return cuda::copy_on_device_async(*device_, buffer.address(), source.address(), source.size(),
                                      stream_.handle());
  }

  Result<Weights> weights_of(const Copy& copy) const {
    return case_->weights(copy.fc1.data(), copy.up.data(), copy.fc2.data(), copy.fc1_bias.data(),
                          copy.fc2_bias.data());
  }

  /// The first copy comes from the host, the others from the first. Kernels are shared by all layers of the
  /// engine.
  Status add_copy(const std::vector<std::int64_t>* tokens, PrepareReport* report) {
    auto layer = engine_.create_layer(case_->spec);
    if (!layer) return layer.error();
    PrepareOptions prepare;
    if (tokens != nullptr) tokens_ = *tokens;
    prepare.tokens = tokens_;
    auto prepared = layer->prepare(prepare);
    if (!prepared) return prepared.error();
    if (report != nullptr) *report = *std::move(prepared);
    Copy copy{{}, {}, {}, {}, {}, *std::move(layer)};
    const bool first = copies_.empty();
    const auto fill = [&](cuda::DeviceBuffer& to, const oracle::Buffer16& host,
                          cuda::DeviceBuffer Copy::*from) {
      return first ? upload(to, host.data(), host.bytes()) : duplicate(to, copies_.front().*from);
    };
    if (auto status = fill(copy.fc1, case_->fc1, &Copy::fc1); !status) return status;
    if (auto status = fill(copy.up, case_->up, &Copy::up); !status) return status;
    if (auto status = fill(copy.fc2, case_->fc2, &Copy::fc2); !status) return status;
    if (auto status = fill(copy.fc1_bias, case_->fc1_bias, &Copy::fc1_bias); !status) return status;
    if (auto status = fill(copy.fc2_bias, case_->fc2_bias, &Copy::fc2_bias); !status) return status;
    auto weights = weights_of(copy);
    if (!weights) return weights.error();
    if (auto status = copy.layer.bind(*weights); !status) return status;
    copies_.push_back(std::move(copy));
    return stream_.synchronize();
  }

  /// Enough copies of the weights that none of what a forward reads is left in L2 from the last time, as far
  /// as memory goes.
  Status rotate(std::int64_t tokens) {
    const double hit = weight_bytes_hit(
        case_->spec, std::span(case_->ids32).first(static_cast<std::size_t>(tokens * case_->spec.top_k)));
    const std::size_t count = weight_copies(hit, profile_.l2_bytes, 2);
    const Copy& first = copies_.front();
    const std::size_t bytes = first.fc1.size() + first.up.size() + first.fc2.size();
    while (copies_.size() < count) {
      auto memory = cuda::memory_info(*device_);
      if (!memory) return memory.error();
      if (memory->free_bytes < bytes + memory->total_bytes / 20) break;
      if (auto status = add_copy(nullptr, nullptr); !status) return status;
    }
    used_copies_ = std::min(copies_.size(), count);
    return {};
  }

  ForwardArgs arguments(std::int64_t tokens) const {
    ForwardArgs args;
    args.tokens = tokens;
    args.x = x_.data();
    args.x_stride = case_->x_stride;
    args.topk_ids = ids_.data();
    args.topk_weights = static_cast<const float*>(weights_.data());
    args.out = out_.data();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    args.stream = stream_.handle();
    return args;
  }

  Status poison() {
    if (auto status = cuda::fill_async(*device_, out_.address(), kPoisonByte, out_.size(), stream_.handle());
        !status) {
      return status;
    }
    if (workspace_.size() == 0) return {};
    return cuda::fill_async(*device_, workspace_.address(), kPoisonByte, workspace_.size(), stream_.handle());
  }

  Status forwards(std::int64_t tokens, std::int64_t count, double* host_us = nullptr) {
    const ForwardArgs args = arguments(tokens);
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < count; ++i) {
      Layer& layer = copies_[static_cast<std::size_t>(i) % used_copies_].layer;
      if (auto status = layer.forward(args); !status) return status;
    }
    if (host_us != nullptr) *host_us = seconds_since(start) * 1e6;
    return {};
  }

  template <class F>
  Result<double> timed(F&& enqueue) {
    return timed_us(device_, stream_.handle(), std::forward<F>(enqueue));
  }

  Result<cuda::Graph> capture(std::int64_t tokens, std::int64_t count) {
    return capture_graph(device_, stream_.handle(), [&] { return forwards(tokens, count); });
  }

  /// What each step adds: the time of the chain up to it less the time of the chain before it, by replays of
  /// the graph in which only those kernels work. A step cannot run alone (tile counters are set by the sort,
  /// fc2 may wait for fc1's tiles), and one that runs beside its predecessor's end adds less than it takes.
  /// The sum is the whole.
  Result<std::vector<StepTime>> time_steps(const cuda::Graph& graph, const cuda::GraphExec& exec,
                                           std::int64_t count, int iterations) {
    auto kernels = graph.kernels();
    if (!kernels) return kernels.error();
    std::vector<StepTime> steps;
    for (const std::string& name : forward_steps()) {
      const bool used = std::any_of(kernels->begin(), kernels->end(),
                                    [&](const cuda::GraphKernel& k) { return step_of(k.name) == name; });
      if (used) steps.push_back({name, 0});
    }
    double before = 0;
    std::vector<std::string> working;
    for (auto step = steps.begin(); step != steps.end(); ++step) {
      working.push_back(step->name);
      if (auto status = enable_steps(exec, *kernels, working); !status) return status.error();
      auto timing = time_graph(exec, count, 1, std::min(iterations, 20));
      if (!timing) return timing.error();
      step->us = std::max(0.0, timing->median_us - before);
      before = std::max(before, timing->median_us);
    }
    return steps;
  }

  /// One forward at a time, the copies of the weights in turn, L2 flushed before each.
  Result<Timing> time_flushed(std::int64_t tokens, int warmup, int iterations) {
    const ForwardArgs args = arguments(tokens);
    std::vector<double> samples;
    for (int i = -warmup; i < iterations && !interrupted; ++i) {
      if (auto status = flush_->enqueue(stream_); !status) return status.error();
      Layer& layer = copies_[static_cast<std::size_t>(i + warmup) % used_copies_].layer;
      auto us = timed([&] { return layer.forward(args); });
      if (!us) return us.error();
      if (i >= 0) samples.push_back(*us);
    }
    return Timing::of(std::move(samples));
  }

  Result<Timing> time_graph(const cuda::GraphExec& graph, std::int64_t count, int warmup, int iterations) {
    std::vector<double> samples;
    const int replays_before = std::min(warmup, 3);
    for (int i = -replays_before; i < iterations && !interrupted; ++i) {
      auto us = timed([&] { return graph.launch(stream_.handle()); });
      if (!us) return us.error();
      if (i >= 0) samples.push_back(*us / static_cast<double>(count));
    }
    return Timing::of(std::move(samples));
  }

  const BenchOptions& options_;
  std::shared_ptr<cuda::Device> device_;
  Engine engine_;
  cuda::Stream stream_;
  std::optional<L2Flush> flush_;  ///< none where there is no NVRTC: prebuilt kernels need none either
  model::DeviceProfile profile_;
  oracle::RandomCase* case_ = nullptr;
  std::vector<std::int64_t> tokens_;
  std::vector<Copy> copies_;
  std::size_t used_copies_ = 1;
  cuda::DeviceBuffer x_, ids_, weights_, out_, workspace_;
};

}  // namespace

Result<std::unique_ptr<Backend>> open_gpu(const BenchOptions& options, int ordinal) {
  auto driver = cuda::Driver::load();
  if (!driver) return driver.error();
  auto device = cuda::Device::open(*driver, ordinal);
  if (!device) return device.error();
  auto engine = Engine::create(options.engine_options(ordinal));
  if (!engine) return engine.error();
  auto stream = cuda::Stream::create(*device);
  if (!stream) return stream.error();
  const cuda::DeviceAttributes& a = (*device)->attributes();
  auto environment = Environment::read();
  if (!environment) return environment.error();
  std::optional<L2Flush> flush;
  if (auto made = L2Flush::create(*device, model::arch_name(a.compute_major, a.compute_minor),
                                  environment->nvrtc_lib))
    flush = *std::move(made);
  auto profile = model::find_profile(a.name);
  model::DeviceProfile known = profile ? *std::move(profile)
                                       : model::generic_profile(a.compute_major, a.compute_minor, a.sm_count,
                                                                a.smem_per_block, a.smem_per_sm, a.l2_bytes);
  return std::unique_ptr<Backend>(std::make_unique<GpuBackend>(options, *std::move(device),
                                                               *std::move(engine), *std::move(stream),
                                                               std::move(flush), std::move(known)));
}

}  // namespace varmoe::tools
