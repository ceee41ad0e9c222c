#include "tools/bench/router_bench.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "base/text.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "cuda/event.hpp"
#include "cuda/graph.hpp"
#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "oracle/router_case.hpp"
#include "tools/bench/backend.hpp"
#include "tools/common/exit_status.hpp"
#include "varmoe/router.hpp"

namespace varmoe::tools {
namespace {

/// Operations in one graph: the launch of the graph and the events weigh little.
constexpr std::int64_t kChain = 64;
/// Of the layer whose sort is timed: experts as narrow as may be, since sorting does not look at them.
constexpr std::int64_t kHidden = 256, kWidth = 64;

struct RouterTimes {
  Timing chain;                     ///< one of kChain in a graph; on the CPU, one call
  std::optional<Timing> alone;      ///< a graph of one
  std::optional<Timing> with_sort;  ///< as chain, each followed by the layer's sort
  std::optional<Timing> with_sort_alone;
  std::optional<double> host_us;
};

struct RoutedRows {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

RouterSpec router_of(const InputLayer& layer) {
  if (layer.router) return *layer.router;
  RouterSpec router;
  router.num_experts = layer.spec.num_experts();
  router.top_k = layer.spec.top_k;
  router.logit_type = LogitType::bf16;
  router.renormalize = true;
  return router;
}

double microseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

RouteArgs host_args(const oracle::RouterCase& c, RoutedRows& rows) {
  const auto places = static_cast<std::size_t>(c.tokens * c.spec.top_k);
  rows = {std::vector<std::int32_t>(places, -1), std::vector<float>(places, NAN)};
  RouteArgs args;
  args.tokens = c.tokens;
  args.logits = c.logits.data();
  args.logit_stride = c.stride;
  args.correction_bias = c.bias.empty() ? nullptr : c.bias.data();
  args.topk_ids = rows.ids.data();
  args.topk_weights = rows.weights.data();
  return args;
}

/// Where routers run.
class RouterBackend {
 public:
  virtual ~RouterBackend() = default;
  virtual std::string description() const = 0;
  virtual Status load(const RouterSpec& router, const std::vector<std::int64_t>& tokens) = 0;
  virtual Status run(const oracle::RouterCase& c, RoutedRows& rows) = 0;
  /// After run() of the same case.
  virtual Result<RouterTimes> measure(const oracle::RouterCase& c) = 0;
};

class CpuRouterBackend final : public RouterBackend {
 public:
  CpuRouterBackend(const BenchOptions& options, Engine engine)
      : options_(options), engine_(std::move(engine)) {}
  std::string description() const override { return engine_.device_description(); }

  Status load(const RouterSpec& spec, const std::vector<std::int64_t>&) override {
    auto router = engine_.create_router(spec);
    if (!router) return router.error();
    router_.emplace(*std::move(router));
    return {};
  }
  Status run(const oracle::RouterCase& c, RoutedRows& rows) override {
    return router_->route(host_args(c, rows));
  }

  Result<RouterTimes> measure(const oracle::RouterCase& c) override {
    RoutedRows rows;
    const RouteArgs args = host_args(c, rows);
    std::vector<double> samples;
    for (int i = 0; i < std::max(options_.iterations, 5) && !interrupted; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (auto status = router_->route(args); !status) return status.error();
      samples.push_back(microseconds_since(start));
    }
    RouterTimes times;
    times.chain = Timing::of(std::move(samples));
    return times;
  }

 private:
  const BenchOptions& options_;
  Engine engine_;
  std::optional<Router> router_;
};

class GpuRouterBackend final : public RouterBackend {
 public:
  GpuRouterBackend(const BenchOptions& options, std::shared_ptr<cuda::Device> device, Engine engine,
                   cuda::Stream stream)
      : options_(options),
        device_(std::move(device)),
        engine_(std::move(engine)),
        stream_(std::move(stream)) {}
  std::string description() const override { return engine_.device_description(); }

  Status load(const RouterSpec& spec, const std::vector<std::int64_t>& tokens) override {
    auto router = engine_.create_router(spec);
    if (!router) return router.error();
    router_.emplace(*std::move(router));
    if (auto report = router_->prepare(); !report) return report.error();
    const LayerSpec layer_spec = uniform_spec(kHidden, spec.num_experts, kWidth, spec.top_k);
    auto layer = engine_.create_layer(layer_spec);
    if (!layer) return layer.error();
    layer_.emplace(*std::move(layer));
    if (auto report = layer_->prepare({.tokens = tokens}); !report) return report.error();
    const auto matrix = static_cast<std::size_t>(spec.num_experts * kHidden * kWidth) * 2;
    if (auto status = zeros(fc1_, 2 * matrix); !status) return status;
    if (auto status = zeros(fc2_, matrix); !status) return status;
    auto weights = Weights::blocks(layer_spec, fc1_.data(), fc2_.data());
    if (!weights) return weights.error();
    if (auto status = layer_->bind(*weights); !status) return status;
    const auto most = static_cast<std::size_t>(tokens.back());
    auto workspace = layer_->workspace_bytes(tokens.back());
    if (!workspace) return workspace.error();
    const auto places = most * static_cast<std::size_t>(spec.top_k) * 4;
    const std::pair<cuda::DeviceBuffer*, std::size_t> buffers[] = {{&workspace_, *workspace},
                                                                   {&x_, most * kHidden * 2},
                                                                   {&out_, most * kHidden * 2},
                                                                   {&ids_, places},
                                                                   {&weights_, places}};
    for (const auto& [buffer, bytes] : buffers)
      if (auto status = zeros(*buffer, bytes); !status) return status;
    return stream_.synchronize();
  }

  Status run(const oracle::RouterCase& c, RoutedRows& rows) override {
    static_cast<void>(host_args(c, rows));
    if (auto status = upload(logits_, c.logits.data(), c.logits.size()); !status) return status;
    if (auto status = upload(bias_, c.bias.data(), c.bias.size() * 4); !status) return status;
    for (const cuda::DeviceBuffer* buffer : {&ids_, &weights_})
      if (auto status = cuda::fill_async(*device_, buffer->address(), 0xff, buffer->size(), stream_.handle());
          !status)
        return status;
    if (auto status = router_->route(route_args(c)); !status) return status;
    if (auto status = stream_.synchronize(); !status) return status;
    if (auto status = cuda::copy_to_host(*device_, rows.ids.data(), ids_.address(), rows.ids.size() * 4);
        !status)
      return status;
    return cuda::copy_to_host(*device_, rows.weights.data(), weights_.address(), rows.weights.size() * 4);
  }

  Result<RouterTimes> measure(const oracle::RouterCase& c) override {
    const RouteArgs route = route_args(c);
    const ForwardArgs forward = forward_args(c);
    const auto router = [&] { return router_->route(route); };
    const auto whole = [&] { return route_and_forward(*router_, route, *layer_, forward); };
    RouterTimes times;
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < kChain; ++i)
      if (auto status = router(); !status) return status.error();
    times.host_us = microseconds_since(start) / static_cast<double>(kChain);
    const struct {
      std::optional<Timing>* to;
      std::int64_t count;
      bool sort;
    } parts[] = {
        {&times.alone, 1, false}, {&times.with_sort, kChain, true}, {&times.with_sort_alone, 1, true}};
    auto chain = time(kChain, router, false);
    if (!chain) return chain.error();
    times.chain = *chain;
    for (const auto& part : parts) {
      auto timing = part.sort ? time(part.count, whole, true) : time(part.count, router, false);
      if (!timing) return timing.error();
      *part.to = *timing;
    }
    return times;
  }

 private:
  Status zeros(cuda::DeviceBuffer& buffer, std::size_t bytes) {
    auto made = cuda::DeviceBuffer::allocate(device_, std::max<std::size_t>(bytes, 16));
    if (!made) return made.error();
    buffer = *std::move(made);
    return cuda::fill_async(*device_, buffer.address(), 0, buffer.size(), stream_.handle());
  }
  Status upload(cuda::DeviceBuffer& buffer, const void* source, std::size_t bytes) {
    if (auto status = zeros(buffer, bytes); !status) return status;
    if (auto status = stream_.synchronize(); !status) return status;
    return bytes == 0 ? Status() : cuda::copy_to_device(*device_, buffer.address(), source, bytes);
  }

  RouteArgs route_args(const oracle::RouterCase& c) const {
    RouteArgs args;
    args.tokens = c.tokens;
    args.logits = logits_.data();
    args.logit_stride = c.stride;
    args.correction_bias = c.bias.empty() ? nullptr : static_cast<const float*>(bias_.data());
    args.topk_ids = static_cast<std::int32_t*>(ids_.data());
    args.topk_weights = static_cast<float*>(weights_.data());
    args.stream = stream_.handle();
    return args;
  }
  ForwardArgs forward_args(const oracle::RouterCase& c) const {
    ForwardArgs args;
    args.tokens = c.tokens;
    args.x = x_.data();
    args.topk_ids = ids_.data();
    args.topk_weights = static_cast<const float*>(weights_.data());
    args.out = out_.data();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    args.stream = stream_.handle();
    return args;
  }

  /// `count` operations in one graph, replayed; with `sort_alone`, the layer's kernels behind the sort are
  /// passed over.
  template <class F>
  Result<Timing> time(std::int64_t count, const F& enqueue, bool sort_alone) {
    if (auto status = cuda::begin_capture(*device_, stream_.handle()); !status) return status.error();
    Status enqueued;
    for (std::int64_t i = 0; i < count && enqueued; ++i) enqueued = enqueue();
    auto graph = cuda::Graph::end_capture(device_, stream_.handle());
    if (!enqueued) return enqueued.error();
    if (!graph) return graph.error();
    auto exec = cuda::GraphExec::instantiate(*graph);
    if (!exec) return exec.error();
    if (sort_alone) {
      auto kernels = graph->kernels();
      if (!kernels) return kernels.error();
      for (const cuda::GraphKernel& kernel : *kernels) {
        const bool works =
            kernel.name.rfind("varmoe_route_", 0) == 0 || kernel.name.rfind("varmoe_sort_", 0) == 0;
        if (auto status = exec->enable(kernel, works); !status) return status.error();
      }
    }
    const int warmup = options_.warmup < 0 ? 5 : options_.warmup;
    const int iterations = options_.iterations < 0 ? 100 : options_.iterations;
    auto start = cuda::Event::create(device_, true);
    if (!start) return start.error();
    auto end = cuda::Event::create(device_, true);
    if (!end) return end.error();
    std::vector<double> samples;
    for (int i = -warmup; i < iterations && !interrupted; ++i) {
      if (auto status = start->record(stream_.handle()); !status) return status.error();
      if (auto status = exec->launch(stream_.handle()); !status) return status.error();
      if (auto status = end->record(stream_.handle()); !status) return status.error();
      if (auto status = end->synchronize(); !status) return status.error();
      auto ms = cuda::elapsed_ms(*device_, *start, *end);
      if (!ms) return ms.error();
      if (i >= 0) samples.push_back(static_cast<double>(*ms) * 1000 / static_cast<double>(count));
    }
    return Timing::of(std::move(samples));
  }

  const BenchOptions& options_;
  std::shared_ptr<cuda::Device> device_;
  Engine engine_;
  cuda::Stream stream_;
  std::optional<Router> router_;
  std::optional<Layer> layer_;
  cuda::DeviceBuffer fc1_, fc2_, workspace_, x_, out_, ids_, weights_, logits_, bias_;
};

Result<std::unique_ptr<RouterBackend>> open_cpu_router(const BenchOptions& options) {
  auto engine = Engine::create(options.engine_options(kCpuDevice));
  if (!engine) return engine.error();
  return std::unique_ptr<RouterBackend>(std::make_unique<CpuRouterBackend>(options, *std::move(engine)));
}

Result<std::unique_ptr<RouterBackend>> open_router(const BenchOptions& options, const Output& out) {
  if (options.device == "cpu") return open_cpu_router(options);
  auto driver = cuda::Driver::load();
  if (!driver) {
    if (options.device != "auto" || driver.error().code() != ErrorCode::no_device) return driver.error();
    out.say("no GPU here, so the CPU backend runs: " + driver.error().message());
    return open_cpu_router(options);
  }
  int ordinal = 0;
  if (options.device != "auto") {
    const auto given = parse_uint64(options.device);
    if (!given || *given > 1023)
      return {ErrorCode::invalid_argument, "--device is auto, cpu or a CUDA device number"};
    ordinal = static_cast<int>(*given);
  }
  auto device = cuda::Device::open(*driver, ordinal);
  if (!device) return device.error();
  auto engine = Engine::create(options.engine_options(ordinal));
  if (!engine) return engine.error();
  auto stream = cuda::Stream::create(*device);
  if (!stream) return stream.error();
  return std::unique_ptr<RouterBackend>(std::make_unique<GpuRouterBackend>(
      options, *std::move(device), *std::move(engine), *std::move(stream)));
}

std::string cell(const std::optional<Timing>& timing) {
  return timing ? fmt::format("{:.2f}", timing->median_us) : "-";
}

}  // namespace

int bench_router(const BenchOptions& options, const Output& out) {
  auto tokens = options.token_counts();
  if (!tokens) return out.fail(tokens.error());
  std::vector<std::string> notes;
  auto layers = options.input.read(&notes);
  if (!layers) return out.fail(layers.error());
  RouterSpec spec = router_of(layers->front());
  if (!options.logits.empty()) {
    auto type = parse_logit_type(options.logits);
    if (!type) return out.fail(type.error());
    spec.logit_type = *type;
  }
  if (auto status = spec.validate(); !status) return out.fail(status.error());
  auto backend = open_router(options, out);
  if (!backend) return out.fail(backend.error());
  if (auto status = (*backend)->load(spec, *tokens); !status) return out.fail(status.error());
  out.say(fmt::format("{}: {}{}; {}", layers->front().label, router_signature(spec),
                      layers->front().router ? "" : " (the file describes no router)",
                      (*backend)->description()));

  Table table({"tokens", "route us", "spread", "alone us", "route + sort us", "spread", "alone us", "host us",
               "check"});
  bool failed = false;
  for (const std::int64_t count : *tokens) {
    if (interrupted) break;
    const auto c = oracle::make_router_case(spec, count, oracle::Logits::normal, options.seed);
    RoutedRows rows;
    if (auto status = (*backend)->run(c, rows); !status) return out.fail(status.error());
    std::string problem;
    if (!options.no_check) problem = c.problem(rows.ids.data(), rows.weights.data(), count);
    failed |= !problem.empty();
    auto times = (*backend)->measure(c);
    if (!times) return out.fail(times.error());
    table.add({std::to_string(count), fmt::format("{:.2f}", times->chain.median_us),
               fmt::format("{:.1f} %", times->chain.spread * 100), cell(times->alone), cell(times->with_sort),
               times->with_sort ? fmt::format("{:.1f} %", times->with_sort->spread * 100) : "-",
               cell(times->with_sort_alone), times->host_us ? fmt::format("{:.2f}", *times->host_us) : "-",
               options.no_check  ? "-"
               : problem.empty() ? "ok"
                                 : "FAILED: " + problem});
    Json json;
    json.add("router", router_signature(spec))
        .add("tokens", count)
        .add("route_us", times->chain.median_us)
        .add("spread", times->chain.spread);
    if (times->alone) json.add("route_alone_us", times->alone->median_us);
    if (times->with_sort) json.add("route_sort_us", times->with_sort->median_us);
    if (times->with_sort_alone) json.add("route_sort_alone_us", times->with_sort_alone->median_us);
    if (times->host_us) json.add("host_us", *times->host_us);
    if (!options.no_check) json.add("check", problem.empty()).add("failure", problem);
    out.event("router", json);
  }
  out.say(table.text());
  return failed || interrupted ? kSomeFailed : kDone;
}

}  // namespace varmoe::tools
