#include "tools/bench/training_bench.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "base/text.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "cuda/graph.hpp"
#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "tools/bench/backend.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/gpu/timing.hpp"
#include "varmoe/training.hpp"

namespace varmoe::tools {
namespace {

/// Elements of the random values that large buffers are filled with over and over: the power that products
/// draw depends on their operands.
constexpr std::size_t kPattern = std::size_t{1} << 22;

class TrainingBench {
 public:
  TrainingBench(const BenchOptions& options, std::shared_ptr<cuda::Device> device, cuda::Stream stream,
                TrainingLayer layer)
      : options_(options), device_(std::move(device)), stream_(std::move(stream)), layer_(std::move(layer)) {
    std::mt19937 random(static_cast<unsigned>(options.seed));
    std::normal_distribution<float> normal(0.0f, 1.0f);
    pattern_.resize(kPattern);
    for (std::uint16_t& v : pattern_) v = element(normal(random) * 0.05f);
  }

  Status load(const std::vector<std::int64_t>& tokens) {
    const LayerSpec& spec = layer_.spec();
    std::int64_t fc1 = 0, fc2 = 0;
    for (std::int64_t e = 0; e < spec.num_experts(); ++e) {
      fc1 += spec.width_of(e) * spec.hidden_size * (spec.gated() ? 2 : 1);
      fc2 += spec.width_of(e) * spec.hidden_size;
    }
    const std::int64_t gradient = layer_.options().gradient_type == GradientType::fp32 ? 4 : 2;
    const std::size_t most = static_cast<std::size_t>(tokens.back()),
                      hidden = static_cast<std::size_t>(spec.hidden_size);
    const std::size_t slots = most * static_cast<std::size_t>(spec.top_k);
    const struct {
      cuda::DeviceBuffer* buffer;
      std::size_t bytes;
    } buffers[] = {{&fc1_, static_cast<std::size_t>(fc1) * 2},
                   {&fc2_, static_cast<std::size_t>(fc2) * 2},
                   {&x_, most * hidden * 2},
                   {&dout_, most * hidden * 2},
                   {&dfc1_, static_cast<std::size_t>(fc1 * gradient)},
                   {&dfc2_, static_cast<std::size_t>(fc2 * gradient)},
                   {&out_, most * hidden * 2},
                   {&dx_, most * hidden * 2},
                   {&ids_, slots * 4},
                   {&weights_, slots * 4},
                   {&dweights_, slots * 4}};
    for (const auto& b : buffers) {
      auto made = cuda::DeviceBuffer::allocate(device_, b.bytes);
      if (!made) return made.error();
      *b.buffer = *std::move(made);
      for (std::size_t at = 0; at < b.bytes; at += kPattern * 2)
        if (auto ok = cuda::copy_to_device(*device_, b.buffer->address() + at, pattern_.data(),
                                           std::min(kPattern * 2, b.bytes - at));
            !ok)
          return ok;
    }
    auto saved = layer_.saved_bytes(tokens.back());
    if (!saved) return saved.error();
    auto workspace = layer_.workspace_bytes(tokens.back());
    if (!workspace) return workspace.error();
    for (const auto& [buffer, bytes] : {std::pair{&saved_, *saved}, std::pair{&workspace_, *workspace}}) {
      auto made = cuda::DeviceBuffer::allocate(device_, std::max<std::size_t>(bytes, 256));
      if (!made) return made.error();
      *buffer = *std::move(made);
    }
    const std::vector<std::int32_t> ids = routed(most);
    const std::vector<float> weights(slots, 1.0f / static_cast<float>(spec.top_k));
    if (auto ok = cuda::copy_to_device(*device_, ids_.address(), ids.data(), ids.size() * 4); !ok) return ok;
    if (auto ok = cuda::copy_to_device(*device_, weights_.address(), weights.data(), weights.size() * 4); !ok)
      return ok;
    auto bound = Weights::blocks(spec, fc1_.data(), fc2_.data());
    if (!bound) return bound.error();
    auto gradients = Weights::blocks(spec, dfc1_.data(), dfc2_.data(), gradient);
    if (!gradients) return gradients.error();
    if (auto ok = layer_.bind(*bound); !ok) return ok;
    if (auto ok = layer_.bind_gradients(*gradients); !ok) return ok;
    PrepareOptions prepare;
    prepare.tokens = tokens;
    auto report = layer_.prepare(prepare);
    return report ? Status() : Status(report.error());
  }

  /// Experts of the slots of so many tokens: with uniform routing distinct ones a token, as routers choose
  /// them; else each slot by itself, as the names of oracle::Routing say.
  std::vector<std::int32_t> routed(std::size_t tokens) const {
    const LayerSpec& spec = layer_.spec();
    const auto experts = static_cast<std::size_t>(spec.num_experts()),
               k = static_cast<std::size_t>(spec.top_k);
    const oracle::Routing routing = options_.parsed_routing();
    std::mt19937_64 random(options_.seed);
    std::vector<std::int32_t> ids(tokens * k), order(experts);
    if (routing == oracle::Routing::uniform) {
      std::iota(order.begin(), order.end(), 0);
      for (std::size_t slot = 0; slot < ids.size(); ++slot) {
        const std::size_t at = slot % k % experts;
        std::swap(order[at], order[at + random() % (experts - at)]);
        ids[slot] = order[at];
      }
      return ids;
    }
    std::vector<double> shares(experts, 1.0);
    for (std::size_t e = 0; e < experts; ++e) {
      if (routing == oracle::Routing::zipf) shares[e] = std::pow(static_cast<double>(e + 1), -1.2);
      if (routing == oracle::Routing::one_expert && e > 0) shares[e] = 0;
    }
    if (routing == oracle::Routing::half_on_one)
      shares[0] = static_cast<double>(std::max<std::size_t>(experts - 1, 1));
    std::discrete_distribution<std::int32_t> draw(shares.begin(), shares.end());
    for (std::int32_t& id : ids) id = draw(random);
    return ids;
  }

  Status forward(std::int64_t tokens) {
    ForwardArgs a;
    a.tokens = tokens;
    a.x = x_.data();
    a.topk_ids = ids_.data();
    a.topk_weights = static_cast<const float*>(weights_.data());
    a.out = out_.data();
    a.workspace = workspace_.data();
    a.workspace_bytes = workspace_.size();
    a.stream = stream_.handle();
    return layer_.forward(a, saved_.data(), saved_.size());
  }

  Status backward(std::int64_t tokens) {
    BackwardArgs a;
    a.tokens = tokens;
    a.x = x_.data();
    a.topk_ids = ids_.data();
    a.topk_weights = static_cast<const float*>(weights_.data());
    a.dout = dout_.data();
    a.saved = saved_.data();
    a.saved_bytes = saved_.size();
    a.dx = dx_.data();
    a.dtopk_weights = static_cast<float*>(dweights_.data());
    a.accumulate_weight_gradients = options_.accumulate;
    a.workspace = workspace_.data();
    a.workspace_bytes = workspace_.size();
    a.stream = stream_.handle();
    return layer_.backward(a);
  }

  template <class F>
  Result<Timing> time(const F& enqueue, std::vector<StepTime>* steps = nullptr) {
    if (Status warm = enqueue(); !warm) return warm.error();
    if (auto ok = stream_.synchronize(); !ok) return ok.error();
    auto graph = capture_graph(device_, stream_.handle(), enqueue);
    if (!graph) return graph.error();
    auto exec = cuda::GraphExec::instantiate(*graph);
    if (!exec) return exec.error();
    const int count = options_.iterations < 0 ? 30 : options_.iterations;
    auto samples = replay_times_us(device_, stream_.handle(), *exec, count);
    if (!samples) return samples.error();
    const Timing timing = Timing::of(*std::move(samples));
    if (steps) {
      // A kernel's share is what it adds to those before it.
      auto kernels = graph->kernels();
      if (!kernels) return kernels.error();
      for (const cuda::GraphKernel& kernel : *kernels)
        if (auto ok = exec->enable(kernel, false); !ok) return ok.error();
      double before = 0;
      for (const cuda::GraphKernel& kernel : *kernels) {
        if (auto ok = exec->enable(kernel, true); !ok) return ok.error();
        auto so_far = replay_times_us(device_, stream_.handle(), *exec, std::max(count / 3, 5));
        if (!so_far) return so_far.error();
        const double us = Timing::of(*std::move(so_far)).median_us;
        steps->push_back({kernel.name, us - before});
        before = us;
      }
    }
    return timing;
  }

 private:
  std::uint16_t element(float v) const { return oracle::encode(oracle::format_of(layer_.spec().dtype), v); }

  const BenchOptions& options_;
  std::shared_ptr<cuda::Device> device_;
  cuda::Stream stream_;
  TrainingLayer layer_;
  std::vector<std::uint16_t> pattern_;
  cuda::DeviceBuffer fc1_, fc2_, x_, dout_, dfc1_, dfc2_, out_, dx_, ids_, weights_, dweights_, saved_,
      workspace_;
};

}  // namespace

int bench_training(const BenchOptions& options, const Output& out) {
  auto tokens = options.token_counts();
  if (!tokens) return out.fail(tokens.error());
  std::vector<std::string> notes;
  auto layers = options.input.read(&notes);
  if (!layers) return out.fail(layers.error());
  const LayerSpec& spec = layers->front().spec;
  if (spec.bias || spec.num_shared() > 0)
    return out.fail(
        {ErrorCode::unsupported, "--mode backward and both time layers without biases and shared experts"});
  if (options.device == "cpu")
    return out.fail({ErrorCode::unsupported,
                     "--mode backward and both time a GPU; the CPU backend computes both passes, untimed"});
  int ordinal = 0;
  if (options.device != "auto") {
    const auto given = parse_uint64(options.device);
    if (!given || *given > 1023)
      return out.fail({ErrorCode::invalid_argument, "--device is auto or a CUDA device number"});
    ordinal = static_cast<int>(*given);
  }
  auto driver = cuda::Driver::load();
  if (!driver) return out.fail(driver.error());
  auto device = cuda::Device::open(*driver, ordinal);
  if (!device) return out.fail(device.error());
  auto engine = Engine::create(options.engine_options(ordinal));
  if (!engine) return out.fail(engine.error());
  auto stream = cuda::Stream::create(*device);
  if (!stream) return out.fail(stream.error());
  TrainingOptions training;
  training.save_preactivation = !options.recompute;
  training.gradient_type = options.fp32_gradients ? GradientType::fp32 : GradientType::layer_dtype;
  auto layer = engine->create_training_layer(spec, training);
  if (!layer) return out.fail(layer.error());
  TrainingBench bench(options, *std::move(device), *std::move(stream), *std::move(layer));
  if (auto ok = bench.load(*tokens); !ok) return out.fail(ok.error());
  out.say(
      fmt::format("{}: {}; {}", layers->front().label, tuning_signature(spec), engine->device_description()));

  Table table(
      {"tokens", "forward us", "backward us", "both us", "spread", "forward TFLOP/s", "backward TFLOP/s"});
  std::vector<std::string> remarks;
  double width = 0;
  for (const std::int64_t w : spec.expert_widths)
    width += static_cast<double>(w) / static_cast<double>(spec.num_experts());
  for (const std::int64_t count : *tokens) {
    if (interrupted) break;
    std::vector<StepTime> steps;
    auto forward = bench.time([&] { return bench.forward(count); });
    if (!forward) return out.fail(forward.error());
    auto backward = bench.time([&] { return bench.backward(count); }, options.profile ? &steps : nullptr);
    if (!backward) return out.fail(backward.error());
    auto both = bench.time([&]() -> Status {
      if (Status ok = bench.forward(count); !ok) return ok;
      return bench.backward(count);
    });
    if (!both) return out.fail(both.error());
    const double flops =
        2.0 * static_cast<double>(count * spec.top_k * spec.hidden_size) * width * (spec.gated() ? 3 : 2);
    const double forward_rate = flops / forward->median_us * 1e-6,
                 backward_rate = 2 * flops / backward->median_us * 1e-6;
    table.add({std::to_string(count), fmt::format("{:.1f}", forward->median_us),
               fmt::format("{:.1f}", backward->median_us), fmt::format("{:.1f}", both->median_us),
               fmt::format("{:.1f} %", both->spread * 100), fmt::format("{:.0f}", forward_rate),
               fmt::format("{:.0f}", backward_rate)});
    for (const StepTime& step : steps)
      remarks.push_back(fmt::format("{} tokens: {:.1f} us {}", count, step.us, step.name));
    out.event("training", Json()
                              .add("tokens", count)
                              .add("forward_us", forward->median_us)
                              .add("backward_us", backward->median_us)
                              .add("both_us", both->median_us)
                              .add("spread", both->spread)
                              .add("forward_tflops", forward_rate)
                              .add("backward_tflops", backward_rate));
  }
  out.say(table.text());
  for (const std::string& remark : remarks) out.say(remark);
  return interrupted ? kSomeFailed : kDone;
}

}  // namespace varmoe::tools
