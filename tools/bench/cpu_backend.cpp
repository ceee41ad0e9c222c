#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "tools/bench/backend.hpp"

namespace varmoe::tools {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const BenchOptions& options, Engine engine) : options_(options), engine_(std::move(engine)) {}

  std::string description() const override { return engine_.device_description(); }
  const model::DeviceProfile* profile() const override { return nullptr; }

  Result<PrepareReport> load(oracle::RandomCase& layer_case,
                             const std::vector<std::int64_t>& tokens) override {
    case_ = &layer_case;
    auto layer = engine_.create_layer(layer_case.spec);
    if (!layer) return layer.error();
    layer_ = std::make_unique<Layer>(*std::move(layer));
    PrepareOptions prepare;
    prepare.tokens = tokens;
    auto report = layer_->prepare(prepare);
    if (!report) return report.error();
    auto weights = layer_case.host_weights();
    if (!weights) return weights.error();
    if (auto status = layer_->bind(*weights); !status) return status.error();
    auto bytes = layer_->workspace_bytes(tokens.back());
    if (!bytes) return bytes.error();
    workspace_ = oracle::Buffer16(static_cast<std::int64_t>((*bytes + 1) / 2));
    return report;
  }

  /// The case's buffers are what the layer reads.
  Status reload_weight(oracle::Part, std::int64_t) override { return {}; }

  Status run(std::int64_t tokens, oracle::Buffer16& out) override {
    std::fill(out.data(), out.data() + out.size(), oracle::kPoison);
    std::fill(workspace_.data(), workspace_.data() + workspace_.size(), oracle::kPoison);
    return layer_->forward(arguments(tokens, out));
  }

  Status try_configs(std::int64_t, const std::vector<double>&, const std::vector<std::int64_t>&,
                     std::vector<Trial>&) override {
    return {ErrorCode::unsupported, "--search needs a GPU: the CPU backend has no tiles to choose"};
  }

  Result<Measurement> measure(std::int64_t tokens) override {
    oracle::Buffer16 out(tokens * case_->spec.hidden_size);
    const ForwardArgs args = arguments(tokens, out);
    const int warmup = options_.warmup < 0 ? 1 : options_.warmup;
    const int iterations = options_.iterations < 0 ? 5 : options_.iterations;
    for (int i = 0; i < warmup; ++i) {
      if (auto status = layer_->forward(args); !status) return status.error();
    }
    std::vector<double> samples;
    for (int i = 0; i < iterations && !interrupted; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (auto status = layer_->forward(args); !status) return status.error();
      samples.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    Measurement measurement;
    measurement.forward = Timing::of(std::move(samples));
    return measurement;
  }

 private:
  ForwardArgs arguments(std::int64_t tokens, oracle::Buffer16& out) {
    ForwardArgs args;
    args.tokens = tokens;
    args.x = case_->x.data();
    args.x_stride = case_->x_stride;
    args.topk_ids = case_->ids32.data();
    args.topk_weights = case_->topk_weights.data();
    args.out = out.data();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.bytes();
    return args;
  }

  const BenchOptions& options_;
  Engine engine_;
  oracle::RandomCase* case_ = nullptr;
  std::unique_ptr<Layer> layer_;
  oracle::Buffer16 workspace_;
};

}  // namespace

Result<std::unique_ptr<Backend>> open_cpu(const BenchOptions& options) {
  auto engine = Engine::create(options.engine_options(kCpuDevice));
  if (!engine) return engine.error();
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(options, *std::move(engine)));
}

}  // namespace varmoe::tools
