#include "tools/bench/options.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "tools/common/command_line.hpp"

namespace varmoe::tools {
namespace {

template <class T, std::size_t N>
std::vector<std::string> names_of(const T (&values)[N]) {
  std::vector<std::string> names;
  for (const T value : values) names.emplace_back(oracle::to_string(value));
  return names;
}

/// Checked by the parser, so it is there.
template <class T, std::size_t N>
T value_of(const T (&values)[N], const std::string& name) {
  return *std::find_if(std::begin(values), std::end(values),
                       [&](T v) { return name == oracle::to_string(v); });
}

}  // namespace

void BenchOptions::add_options(Command& app) {
  input.add_options(app);
  app.add_option("--device", device, "auto, cpu, or a CUDA device number")->capture_default_str();
  app.add_option("--threads", cpu_threads, "CPU backend: threads; 0: one per core")->range(0, 1024);
  session.add_build(app);
  session.add_backward_overrides(app);
  app.add_option("--tokens", tokens, "token counts, e.g. 1,64,4096; default 64");
  app.add_option("--batch-sizes", batch_sizes, "with --seq: token counts are all products");
  app.add_option("--seq", seq, "sequence lengths");
  app.add_option("--mode", mode,
                 "forward; backward or both: a layer that learns, forward, backward and both timed apart")
      ->capture_default_str()
      ->member({"forward", "backward", "both"});
  app.add_option(
         "--gather", gather,
         "how fc1 reads x: fused, or separate (a copy in expert order); default the cost model's choice")
      ->member({"fused", "separate"});
  app.add_option("--scatter", scatter, "how rows are combined: separate (deterministic) or fused")
      ->capture_default_str()
      ->member({"separate", "fused"});
  app.add_option("--routing", routing, "how tokens choose experts")
      ->capture_default_str()
      ->member(names_of(oracle::kRoutings));
  app.add_option("--storage", storage, "how the weights are stored")
      ->capture_default_str()
      ->member(names_of(oracle::kStorages));
  app.add_option("--seed", seed, "of weights, inputs and routing")->capture_default_str();
  app.add_option("--warmup", warmup, "forwards before timing; default 10 on a GPU, 1 on the CPU")
      ->range(0, 1000000);
  app.add_option("--iterations", iterations, "timed samples; default 50 on a GPU, 5 on the CPU")
      ->range(1, 1000000);
  app.add_option("--check-rows", check_rows, "tokens that are checked against the oracle; 0: all")
      ->capture_default_str()
      ->range(std::int64_t{0}, std::int64_t{1} << 40);
  app.add_option("--search", search,
                 "GPU: try this many configs of each GEMM (0: every one), the cost model's favourites first; "
                 "every one is checked")
      ->range(std::int64_t{0}, std::int64_t{100000});
  app.add_flag(
      "--router", router,
      "instead of the layer, its router: alone, and on a GPU with the layer's sort behind it; of flags and "
      "sets: softmax, top-k, renormalised");
  app.add_option("--logits", logits, "with --router: fp32, bf16 or fp16; default the model's");
  app.add_flag("--recompute", recompute,
               "training: backward computes the pre-activation again instead of reading it");
  app.add_flag("--accumulate", accumulate, "training: weight gradients are added to what is there");
  app.add_flag("--fp32-gradients", fp32_gradients, "training: weight gradients of 32 bits");
  app.add_flag("--no-check", no_check, "time only");
  app.add_flag("--inject-error", inject_error,
               "alter one weight behind the oracle's back: the check must fail");
  app.add_flag("--profile", profile, "GPU: time and share of each step");
  app.add_flag("--detailed", detailed, "errors against the oracle: Frobenius, worst row, worst element");
  app.add_flag("--json", json, "one JSON object a line on stdout instead of text");
}

Result<std::vector<std::int64_t>> BenchOptions::token_counts() const {
  if (mode != "forward" && (router || inject_error || search >= 0))
    return {ErrorCode::invalid_argument,
            "--mode backward and both exclude --router, --inject-error and --search"};
  if (mode == "forward" && (recompute || accumulate || fp32_gradients))
    return {ErrorCode::invalid_argument,
            "--recompute, --accumulate and --fp32-gradients go with --mode backward or both"};
  if (scatter != "separate") {
    return {ErrorCode::unsupported,
            "--scatter fused: this version has the separate, deterministic combine only"};
  }
  if (!logits.empty() && !router) return {ErrorCode::invalid_argument, "--logits goes with --router"};
  if (router && (inject_error || search >= 0 || profile))
    return {ErrorCode::invalid_argument, "--router excludes --inject-error, --search and --profile"};
  if (inject_error && no_check)
    return {ErrorCode::invalid_argument, "--inject-error needs the check that --no-check leaves out"};
  if (batch_sizes.empty() != seq.empty()) {
    return {ErrorCode::invalid_argument,
            "--batch-sizes and --seq go together: token counts are their products"};
  }
  if (batch_sizes.empty()) return parse_counts(tokens.empty() ? "64" : tokens, "--tokens");
  if (!tokens.empty()) return {ErrorCode::invalid_argument, "--tokens excludes --batch-sizes and --seq"};
  auto batches = parse_counts(batch_sizes, "--batch-sizes");
  if (!batches) return batches.error();
  auto lengths = parse_counts(seq, "--seq");
  if (!lengths) return lengths.error();
  std::vector<std::int64_t> counts;
  for (const std::int64_t b : *batches) {
    for (const std::int64_t s : *lengths) {
      if (b > (std::int64_t{1} << 31) / s)
        return {ErrorCode::invalid_argument, fmt::format("{} x {} tokens are too many", b, s)};
      counts.push_back(b * s);
    }
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

oracle::Routing BenchOptions::parsed_routing() const {
  return value_of(oracle::kRoutings, routing);
}
oracle::Storage BenchOptions::parsed_storage() const {
  return value_of(oracle::kStorages, storage);
}

EngineOptions BenchOptions::engine_options(int device_number) const {
  EngineOptions engine = session.engine_options();
  engine.device = device_number;
  engine.cpu_threads = cpu_threads;
  if (!gather.empty()) {
    engine.fc1_config += fmt::format("{}gather={}", engine.fc1_config.empty() ? "" : ",",
                                     gather == "fused" ? "fused" : "copy");
  }
  return engine;
}

}  // namespace varmoe::tools
