// A router's own product, and router statistics, on the GPU.
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "cuda/graph.hpp"
#include "gpu/device_bytes.hpp"
#include "gpu/evidence.hpp"
#include "oracle/product_case.hpp"
#include "oracle/router_case.hpp"
#include "oracle/statistics_oracle.hpp"
#include "support/router_methods.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_statistics.hpp"

using namespace varmoe;
using gpu::DeviceBytes;
using gpu::upload;

namespace {

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, logits;
  bool operator==(const Routed& other) const {
    // Bits, for the weights of what is not computed are poison, which equals nothing as a number.
    return ids == other.ids && same(weights, other.weights) && same(logits, other.logits);
  }
  static bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }
};

/// A case on the device, and the router of its spec. Any leading part of the tokens can be routed.
class DeviceProduct {
 public:
  explicit DeviceProduct(const oracle::ProductCase& c)
      : case_(c),
        router_(gpu::must(gpu::engine().create_router(c.spec), "create_router")),
        stream_(gpu::must(cuda::Stream::create(gpu::device()), "stream")),
        x_(upload(c.x.bytes)),
        weight_(upload(c.weight.bytes)),
        logit_bias_(upload(c.logit_bias)),
        correction_bias_(upload(c.correction_bias)),
        ids_(static_cast<std::size_t>(c.tokens * c.spec.top_k) * 4),
        weights_(static_cast<std::size_t>(c.tokens * c.spec.top_k) * 4),
        logits_(static_cast<std::size_t>(c.tokens * c.spec.num_experts) * 4),
        workspace_(gpu::must(router_.workspace_bytes(c.tokens), "workspace_bytes")) {
    gpu::must(router_.prepare(), "prepare");
  }

  RouteArgs args(std::int64_t tokens, bool logits = true) const {
    RouteArgs a;
    a.tokens = tokens;
    a.x = x_.data();
    a.x_stride = case_.x_stride;
    a.weight = weight_.data();
    a.weight_stride = case_.weight_stride;
    a.logit_bias = case_.logit_bias.empty() ? nullptr : static_cast<const float*>(logit_bias_.data());
    a.correction_bias =
        case_.correction_bias.empty() ? nullptr : static_cast<const float*>(correction_bias_.data());
    a.topk_ids = ids_.as<std::int32_t>();
    a.topk_weights = weights_.as<float>();
    if (logits) a.logits_out = logits_.as<float>();
    a.workspace = workspace_.buffer.data();
    a.workspace_bytes = gpu::must(router_.workspace_bytes(case_.tokens), "workspace_bytes");
    a.stream = stream_.handle();
    return a;
  }
  void poison() const {
    for (const DeviceBytes* b : {&ids_, &weights_, &logits_, &workspace_}) b->poison(stream_.handle());
  }
  Routed read(std::int64_t tokens) const {
    gpu::must(stream_.synchronize(), "synchronize");
    const auto all = static_cast<std::size_t>(case_.tokens), some = static_cast<std::size_t>(tokens);
    const auto k = static_cast<std::size_t>(case_.spec.top_k),
               experts = static_cast<std::size_t>(case_.spec.num_experts);
    Routed out{ids_.read<std::int32_t>(all * k), weights_.read<float>(all * k),
               logits_.read<float>(all * experts)};
    static_cast<void>(workspace_.read<std::uint8_t>(
        gpu::must(router_.workspace_bytes(case_.tokens), "workspace_bytes")));  // its guard
    out.ids.resize(some * k);
    out.weights.resize(some * k);
    out.logits.resize(some * experts);
    return out;
  }
  Routed run(std::int64_t tokens, bool logits = true) {
    poison();
    gpu::must(router_.route(args(tokens, logits)), "route");
    return read(tokens);
  }
  Router& router() { return router_; }
  const cuda::Stream& stream() const { return stream_; }

 private:
  const oracle::ProductCase& case_;
  Router router_;
  cuda::Stream stream_;
  cuda::DeviceBuffer x_, weight_, logit_bias_, correction_bias_;
  DeviceBytes ids_, weights_, logits_, workspace_;
};

/// The routing is that of the logits returned, by the oracle's rules.
std::string routing_problem(const oracle::ProductCase& c, const Routed& out) {
  const auto experts = static_cast<std::size_t>(c.spec.num_experts),
             k = static_cast<std::size_t>(c.spec.top_k);
  const std::vector<double> logits(out.logits.begin(), out.logits.end());
  const std::vector<double> bias(c.correction_bias.begin(), c.correction_bias.end());
  for (std::size_t t = 0; t < out.ids.size() / k; ++t) {
    const std::string what = oracle::routing_problem(c.spec, std::span(logits).subspan(t * experts, experts),
                                                     bias, std::span(out.ids).subspan(t * k, k),
                                                     std::span(out.weights).subspan(t * k, k));
    if (!what.empty()) return "token " + std::to_string(t) + ": " + what;
  }
  return {};
}

RouterSpec product_spec(std::size_t method, std::int64_t experts, std::int64_t top_k, std::int64_t hidden,
                        DType input, LogitType weight, bool bias = false) {
  RouterSpec spec = test::router_of(test::router_methods().at(method), experts, top_k);
  spec.hidden_size = hidden;
  spec.input_type = input;
  spec.weight_type = weight;
  spec.logit_bias = bias;
  return spec;
}

void prepare_all(const std::vector<RouterSpec>& specs) {
  parallel_for(specs.size(), 0, [&](std::size_t i) {
    Router router = gpu::must(gpu::engine().create_router(specs[i]), "create_router");
    gpu::must(router.prepare(), "prepare");
  });
}

void check_case(const RouterSpec& spec, std::int64_t tokens, std::uint64_t seed, std::int64_t gap) {
  const auto c = oracle::make_product_case(spec, tokens, seed, gap);
  DeviceProduct product(c);
  const Routed out = product.run(tokens);
  CAPTURE(router_signature(spec));
  CAPTURE(tokens);
  CHECK(c.problem(out.logits, tokens > 512 ? 61 : 1) == "");
  CHECK(routing_problem(c, out) == "");
  const Routed again = product.run(tokens, false);
  CHECK(again.ids == out.ids);
  CHECK(Routed::same(again.weights, out.weights));
}

}  // namespace

TEST_CASE("small: a router's own product: every pair of types and few and many tokens") {
  std::vector<RouterSpec> specs;
  for (const DType input : {DType::bf16, DType::fp16}) {
    for (const LogitType weight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      specs.push_back(product_spec(1, 60, 4, 200, input, weight));
      specs.push_back(product_spec(10, 128, 8, 1032, input, weight, true));
    }
  }
  prepare_all(specs);
  std::uint64_t seed = 1;
  for (const RouterSpec& spec : specs) {
    for (const std::int64_t tokens : {1, 7, 16, 17, 100}) {
      ++seed;
      check_case(spec, tokens, seed, seed % 3 == 0 ? 8 : 0);
    }
  }
}

TEST_CASE("a router's own product: models' sizes") {
  std::vector<RouterSpec> specs = {product_spec(1, 8, 2, 4096, DType::bf16, LogitType::bf16),
                                   product_spec(1, 128, 8, 2048, DType::bf16, LogitType::bf16),
                                   product_spec(11, 256, 8, 7168, DType::bf16, LogitType::fp32),
                                   product_spec(11, 256, 8, 7168, DType::bf16, LogitType::bf16),
                                   product_spec(3, 128, 4, 2880, DType::bf16, LogitType::bf16, true),
                                   product_spec(6, 16, 1, 5120, DType::fp16, LogitType::fp16),
                                   product_spec(0, 1024, 32, 512, DType::bf16, LogitType::bf16),
                                   product_spec(0, 1, 1, 8, DType::bf16, LogitType::bf16)};
  prepare_all(specs);
  std::uint64_t seed = 100;
  for (const RouterSpec& spec : specs)
    for (const std::int64_t tokens : {1, 64, 1500}) check_case(spec, tokens, ++seed, 0);
}

TEST_CASE("small: a token's logits have the same bits whatever the number of tokens") {
  for (const LogitType weight : {LogitType::bf16, LogitType::fp32}) {
    // 64 experts are one tile: from 6081 tokens on K is not cut.
    const auto c = oracle::make_product_case(product_spec(1, 64, 4, 1032, DType::bf16, weight), 6200, 5);
    DeviceProduct product(c);
    const Routed all = product.run(6200);
    for (const std::int64_t tokens : {1, 16, 17, 640, 6080, 6081}) {
      const Routed some = product.run(tokens);
      CAPTURE(tokens);
      CHECK(Routed::same(some.logits, {all.logits.begin(), all.logits.begin() + tokens * 64}));
      CHECK(some.ids == std::vector<std::int32_t>(all.ids.begin(), all.ids.begin() + tokens * 4));
    }
  }
}

TEST_CASE("small: a router's own product: NaN in one token or one expert stays there") {
  auto c = oracle::make_product_case(product_spec(1, 60, 4, 200, DType::bf16, LogitType::bf16), 40, 9);
  const auto poison = [](std::vector<std::byte>& bytes, std::int64_t at) {
    const std::uint16_t bits = 0x7fff;
    std::memcpy(&bytes[static_cast<std::size_t>(at) * 2], &bits, 2);
  };
  poison(c.x.bytes, 3 * c.x_stride + 199);
  poison(c.weight.bytes, 17 * c.weight_stride);
  DeviceProduct product(c);
  for (const std::int64_t tokens : {16, 40}) {
    const Routed out = product.run(tokens);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t e = 0; e < 60; ++e)
        CHECK(std::isnan(out.logits[static_cast<std::size_t>(t * 60 + e)]) == (t == 3 || e == 17));
  }
}

TEST_CASE("small: a router's own product with a device-side token count and in a captured graph") {
  const auto c = oracle::make_product_case(product_spec(1, 128, 8, 512, DType::bf16, LogitType::bf16), 50, 7);
  DeviceProduct product(c);
  const Routed all = product.run(50);
  for (const std::int32_t live : {-1, 0, 1, 16, 49, 50, 70}) {
    const auto count = upload(std::vector<std::int32_t>{live});
    product.poison();
    RouteArgs args = product.args(50);
    args.token_count = static_cast<const std::int32_t*>(count.data());
    gpu::must(product.router().route(args), "route");
    const Routed out = product.read(50);
    const auto rows = std::clamp<std::ptrdiff_t>(live, 0, 50);
    CHECK(std::equal(out.ids.begin(), out.ids.begin() + rows * 8, all.ids.begin()));
    CHECK(std::all_of(out.ids.begin() + rows * 8, out.ids.end(),
                      [](std::int32_t id) { return id == -0x01010102; }));
  }
  const RouteArgs args = product.args(50);
  gpu::must(cuda::begin_capture(*gpu::device(), args.stream), "begin_capture");
  const Status enqueued = product.router().route(args);
  auto graph = gpu::must(cuda::Graph::end_capture(gpu::device(), args.stream), "end_capture");
  gpu::must(enqueued, "route");
  auto exec = gpu::must(cuda::GraphExec::instantiate(graph), "instantiate");
  for (int round = 0; round < 3; ++round) {
    product.poison();
    gpu::must(exec.launch(args.stream), "launch");
    CHECK(product.read(50) == all);
  }
}

TEST_CASE("small: router statistics are the oracle's and the same on each run") {
  auto stream = gpu::must(cuda::Stream::create(gpu::device()), "stream");
  std::uint64_t seed = 1;
  for (const std::int64_t experts : {1, 24, 96, 256, 1024}) {
    for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
      const std::int64_t k = std::min<std::int64_t>(experts, 6);
      const auto type = static_cast<LogitType>(++seed % 3);
      const RouterStatisticsSpec spec{experts, k, type, scoring};
      RouterStatistics statistics =
          gpu::must(gpu::engine().create_router_statistics(spec), "create_router_statistics");
      gpu::must(statistics.prepare(), "prepare");
      for (const std::int64_t tokens : {0, 1, 7, 64, 1000}) {
        ++seed;
        CAPTURE(experts);
        CAPTURE(tokens);
        RouterSpec of;
        of.num_experts = experts;
        of.top_k = k;
        of.logit_type = type;
        const auto c =
            oracle::make_router_case(of, tokens, oracle::Logits::normal, seed, seed % 3 == 0 ? 5 : 0);
        std::mt19937_64 random(seed);
        std::vector<std::int64_t> ids64;
        for (std::int64_t i = 0; i < tokens * k; ++i)
          ids64.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(experts + 3)) - 1);
        const std::vector<std::int32_t> ids32(ids64.begin(), ids64.end());
        const bool wide = seed % 2 != 0, varied = seed % 5 != 0;
        std::vector<std::int32_t> widths;
        for (std::int64_t e = 0; e < experts; ++e)
          widths.push_back(varied ? 64 * static_cast<std::int32_t>(1 + e % 4) : 1);
        const std::int32_t live =
            static_cast<std::int32_t>(tokens) - static_cast<std::int32_t>(seed % 7 == 0);
        const auto count = upload(std::vector<std::int32_t>{live});
        const auto logits = upload(c.logits), device_widths = upload(widths);
        const auto ids = wide ? upload(ids64) : upload(ids32);
        const DeviceBytes counts(static_cast<std::size_t>(experts) * 4),
            means(static_cast<std::size_t>(experts) * 4), losses(kRouterLosses * 4);
        RouterStatisticsArgs args;
        args.tokens = tokens;
        args.logits = logits.data();
        args.logit_stride = c.stride;
        args.topk_ids = ids.data();
        args.id_type = wide ? IdType::int64 : IdType::int32;
        args.expert_widths = varied ? static_cast<const std::int32_t*>(device_widths.data()) : nullptr;
        args.tokens_per_expert = counts.as<std::int32_t>();
        args.mean_scores = means.as<float>();
        args.losses = losses.as<float>();
        if (seed % 7 == 0) args.token_count = static_cast<const std::int32_t*>(count.data());
        args.workspace_bytes = gpu::must(statistics.workspace_bytes(tokens), "workspace_bytes");
        const DeviceBytes workspace(args.workspace_bytes);
        args.workspace = workspace.buffer.data();
        args.stream = stream.handle();
        const auto expected =
            oracle::statistics_of(spec, c.exact, ids64, widths, std::max<std::int64_t>(live, 0));
        std::vector<float> first;
        for (int round = 0; round < 2; ++round) {
          for (const DeviceBytes* b : {&counts, &means, &losses, &workspace}) b->poison(stream.handle());
          gpu::must(statistics.compute(args), "compute");
          gpu::must(stream.synchronize(), "synchronize");
          const auto got = losses.read<float>(kRouterLosses);
          CHECK(oracle::statistics_problem(expected,
                                           counts.read<std::int32_t>(static_cast<std::size_t>(experts)),
                                           means.read<float>(static_cast<std::size_t>(experts)), got) == "");
          if (round == 0) first = got;
          CHECK(got == first);
          static_cast<void>(workspace.read<std::uint8_t>(args.workspace_bytes));
        }
      }
    }
  }
}

TEST_CASE("router statistics of many tokens") {
  auto stream = gpu::must(cuda::Stream::create(gpu::device()), "stream");
  const RouterStatisticsSpec spec{128, 8, LogitType::bf16, Scoring::softmax};
  RouterStatistics statistics =
      gpu::must(gpu::engine().create_router_statistics(spec), "create_router_statistics");
  RouterSpec of;
  of.num_experts = 128;
  of.top_k = 8;
  of.logit_type = LogitType::bf16;
  const std::int64_t tokens = 20000;
  const auto c = oracle::make_router_case(of, tokens, oracle::Logits::normal, 77);
  std::mt19937_64 random(4);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < tokens * 8; ++i)
    ids.push_back(random() % 3 != 0 ? 5 : static_cast<std::int64_t>(random() % 128));
  const std::vector<std::int32_t> widths(128, 1);
  const auto logits = upload(c.logits), device_ids = upload(ids);
  const DeviceBytes counts(512), means(512), losses(kRouterLosses * 4);
  RouterStatisticsArgs args;
  args.tokens = tokens;
  args.logits = logits.data();
  args.topk_ids = device_ids.data();
  args.id_type = IdType::int64;
  args.tokens_per_expert = counts.as<std::int32_t>();
  args.mean_scores = means.as<float>();
  args.losses = losses.as<float>();
  args.workspace_bytes = gpu::must(statistics.workspace_bytes(tokens), "workspace_bytes");
  const DeviceBytes workspace(args.workspace_bytes);
  args.workspace = workspace.buffer.data();
  args.stream = stream.handle();
  for (const DeviceBytes* b : {&counts, &means, &losses, &workspace}) b->poison(stream.handle());
  gpu::must(statistics.compute(args), "compute");
  gpu::must(stream.synchronize(), "synchronize");
  const auto expected = oracle::statistics_of(spec, c.exact, ids, widths, tokens);
  CHECK(oracle::statistics_problem(expected, counts.read<std::int32_t>(128), means.read<float>(128),
                                   losses.read<float>(kRouterLosses)) == "");
}
