// A router's backward pass on the GPU.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "cuda/graph.hpp"
#include "gpu/device_bytes.hpp"
#include "oracle/router_gradient_case.hpp"
#include "support/router_methods.hpp"
#include "varmoe/router_gradient.hpp"

using namespace varmoe;
using gpu::DeviceBytes;
using gpu::upload;

namespace {

constexpr std::byte kPoison{0xfe};

std::size_t bytes_of(LogitType type) {
  return type == LogitType::fp32 ? 4 : 2;
}

RouterGradient must_create(const RouterGradientSpec& spec) {
  RouterGradient gradient = gpu::must(gpu::engine().create_router_gradient(spec), "create_router_gradient");
  gpu::must(gradient.prepare(), "prepare");
  return gradient;
}

void prepare_all(const std::vector<RouterGradientSpec>& specs) {
  parallel_for(specs.size(), 0, [&](std::size_t i) { static_cast<void>(must_create(specs[i])); });
}

/// A case on the device.
class DeviceGradient {
 public:
  DeviceGradient(const oracle::GradientCase& c, std::int64_t stride)
      : case_(c),
        stride_(stride),
        gradient_(must_create(c.spec)),
        stream_(gpu::must(cuda::Stream::create(gpu::device()), "stream")),
        logits_(upload(c.router.logits)),
        ids_(upload(c.ids)),
        ids32_(upload(std::vector<std::int32_t>(c.ids.begin(), c.ids.end()))),
        dweights_(upload(c.dweights)),
        counts_(upload(c.counts)),
        means_(upload(c.means)),
        widths_(upload(c.widths)),
        workspace_(workspace_bytes()),
        dlogits_(bytes()) {}

  std::size_t bytes() const {
    return static_cast<std::size_t>(case_.router.tokens * stride_) * bytes_of(case_.spec.dlogit_type);
  }
  std::size_t workspace_bytes() const {
    return gpu::must(gradient_.workspace_bytes(case_.router.tokens), "workspace_bytes");
  }
  RouterGradientArgs args(IdType type = IdType::int64) const {
    RouterGradientArgs a;
    a.tokens = case_.router.tokens;
    a.logits = logits_.data();
    a.logit_stride = case_.router.stride;
    a.topk_ids = type == IdType::int64 ? ids_.data() : ids32_.data();
    a.id_type = type;
    a.dtopk_weights = static_cast<const float*>(dweights_.data());
    a.dlogits = dlogits_.buffer.data();
    a.dlogit_stride = stride_;
    std::copy_n(case_.coefficients, kRouterLosses, a.coefficients);
    a.loss_tokens = case_.loss_tokens;
    a.tokens_per_expert = static_cast<const std::int32_t*>(counts_.data());
    a.mean_scores = static_cast<const float*>(means_.data());
    a.expert_widths = static_cast<const std::int32_t*>(widths_.data());
    a.workspace = workspace_.buffer.data();
    a.workspace_bytes = workspace_bytes();
    a.stream = stream_.handle();
    return a;
  }
  void poison() const {
    dlogits_.poison(stream_.handle());
    workspace_.poison(stream_.handle());
  }
  std::vector<std::byte> read() const {
    gpu::must(stream_.synchronize(), "synchronize");
    static_cast<void>(workspace_.read<std::uint8_t>(workspace_bytes()));  // its guard
    return dlogits_.read<std::byte>(bytes());
  }
  std::vector<std::byte> run(const RouterGradientArgs& a) {
    poison();
    gpu::must(gradient_.compute(a), "compute");
    return read();
  }
  /// Nothing but rows [0, live) of E elements was written.
  bool rest_untouched(const std::vector<std::byte>& out, std::int64_t live) const {
    const auto element = static_cast<std::int64_t>(bytes_of(case_.spec.dlogit_type));
    const std::int64_t row = stride_ * element, used = case_.spec.router.num_experts * element;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      if ((at / row >= live || at % row >= used) && out[i] != kPoison) return false;
    }
    return true;
  }
  RouterGradient& gradient() { return gradient_; }
  const cuda::Stream& stream() const { return stream_; }

 private:
  const oracle::GradientCase& case_;
  std::int64_t stride_;
  RouterGradient gradient_;
  cuda::Stream stream_;
  cuda::DeviceBuffer logits_, ids_, ids32_, dweights_, counts_, means_, widths_;
  DeviceBytes workspace_, dlogits_;
};

void check_case(const oracle::GradientCase& c, std::uint64_t seed) {
  const std::int64_t experts = c.spec.router.num_experts, tokens = c.router.tokens;
  DeviceGradient device(c, experts + static_cast<std::int64_t>(seed % 4));
  CAPTURE(router_signature(c.spec.router));
  CAPTURE(c.spec.losses);
  CAPTURE(seed);
  const RouterGradientArgs args = device.args(seed % 2 != 0 ? IdType::int32 : IdType::int64);
  const auto out = device.run(args);
  CHECK(c.problem(out, args.dlogit_stride, tokens) == "");
  CHECK(device.rest_untouched(out, tokens));
  CHECK(device.run(args) == out);
}

RouterGradientSpec product_spec(std::int64_t experts, std::int64_t hidden, DType input, LogitType weight,
                                LogitType dweight, bool bias) {
  RouterGradientSpec spec{test::router_of(test::router_methods().at(1), experts, 4)};
  spec.router.hidden_size = hidden;
  spec.router.input_type = input;
  spec.router.weight_type = weight;
  spec.router.logit_bias = bias;
  spec.dweight_type = dweight;
  return spec;
}

struct ProductResult {
  std::vector<std::byte> dx, dweight;
  std::vector<float> bias;
  bool operator==(const ProductResult& other) const {
    return dx == other.dx && dweight == other.dweight && bias.size() == other.bias.size() &&
           (bias.empty() || std::memcmp(bias.data(), other.bias.data(), bias.size() * 4) == 0);
  }
};

/// A product's case on the device.
class DeviceProductGradient {
 public:
  explicit DeviceProductGradient(const oracle::ProductGradientCase& c)
      : case_(c),
        gradient_(must_create(c.spec)),
        stream_(gpu::must(cuda::Stream::create(gpu::device()), "stream")),
        dlogits_(upload(c.dlogits)),
        x_(upload(c.product.x.bytes)),
        weight_(upload(c.product.weight.bytes)),
        dx_(c.dx.bytes.size()),
        dweight_(c.dweight.bytes.size()),
        bias_(c.dlogit_bias.size() * 4) {}

  RouterProductGradientArgs args(bool accumulate) const {
    RouterProductGradientArgs a;
    a.tokens = case_.product.tokens;
    a.dlogits = static_cast<const float*>(dlogits_.data());
    a.dlogit_stride = case_.dlogit_stride;
    a.x = x_.data();
    a.weight = weight_.data();
    a.x_stride = a.dx_stride = case_.product.x_stride;
    a.weight_stride = a.dweight_stride = case_.product.weight_stride;
    a.dx = dx_.buffer.data();
    a.dweight = dweight_.buffer.data();
    a.dlogit_bias = case_.dlogit_bias.empty() ? nullptr : bias_.as<float>();
    a.accumulate_dx = a.accumulate_weight = accumulate;
    a.stream = stream_.handle();
    return a;
  }
  /// Outputs as the case has them before.
  void reset() const {
    for (const DeviceBytes* b : {&dx_, &dweight_, &bias_}) b->poison(stream_.handle());
    gpu::must(stream_.synchronize(), "synchronize");
    const auto copy = [](const DeviceBytes& to, const void* from, std::size_t bytes) {
      if (bytes > 0)
        gpu::must(cuda::copy_to_device(*gpu::device(), to.buffer.address(), from, bytes), "upload");
    };
    copy(dx_, case_.dx.bytes.data(), case_.dx.bytes.size());
    copy(dweight_, case_.dweight.bytes.data(), case_.dweight.bytes.size());
    copy(bias_, case_.dlogit_bias.data(), case_.dlogit_bias.size() * 4);
  }
  ProductResult read() const {
    gpu::must(stream_.synchronize(), "synchronize");
    return {dx_.read<std::byte>(case_.dx.bytes.size()), dweight_.read<std::byte>(case_.dweight.bytes.size()),
            bias_.read<float>(case_.dlogit_bias.size())};
  }
  ProductResult run(const RouterProductGradientArgs& a) {
    reset();
    gpu::must(gradient_.product(a), "product");
    return read();
  }
  RouterGradient& gradient() { return gradient_; }
  const cuda::Stream& stream() const { return stream_; }

 private:
  const oracle::ProductGradientCase& case_;
  RouterGradient gradient_;
  cuda::Stream stream_;
  cuda::DeviceBuffer dlogits_, x_, weight_;
  DeviceBytes dx_, dweight_, bias_;
};

void check_product(const RouterGradientSpec& spec, std::int64_t tokens, std::uint64_t seed, std::int64_t gap,
                   std::int64_t step) {
  const auto c = oracle::make_product_gradient_case(spec, tokens, seed, gap);
  DeviceProductGradient device(c);
  CAPTURE(router_signature(spec.router));
  CAPTURE(tokens);
  for (const bool accumulate : {false, true}) {
    CAPTURE(accumulate);
    const ProductResult out = device.run(device.args(accumulate));
    CHECK(c.dx_problem(out.dx, tokens, accumulate, step) == "");
    CHECK(c.dweight_problem(out.dweight, tokens, accumulate, step) == "");
    if (!out.bias.empty()) CHECK(c.bias_problem(out.bias, tokens, accumulate) == "");
    CHECK(device.run(device.args(accumulate)) == out);
  }
}

}  // namespace

TEST_CASE("small: router gradient: every method and kind of logits") {
  std::vector<oracle::GradientCase> cases;
  std::vector<RouterGradientSpec> specs;
  std::uint64_t seed = 1;
  for (const auto& method : test::router_methods()) {
    for (const oracle::Logits kind : oracle::kLogits) {
      ++seed;
      RouterGradientSpec spec{
          test::router_of(method, seed % 2 != 0 ? 60 : 128, 6, static_cast<LogitType>(seed % 3))};
      spec.losses = seed % 4 == 0 ? 0 : seed % 4 == 1 ? 1 : 15;
      // Sigmoids that underflow to zero have no shares, those of the oracle's fp64 have.
      if (kind == oracle::Logits::degenerate && spec.router.scoring == Scoring::sigmoid) spec.losses &= 1;
      spec.dlogit_type = seed % 5 < 2 ? spec.router.logit_type : LogitType::fp32;
      specs.push_back(spec);
      cases.push_back(oracle::make_gradient_case(spec, 33, kind, seed, seed % 5 == 0 ? 3 : 0));
      cases.back().loss_tokens = seed % 3 == 0 ? 1000 : 0;
    }
  }
  prepare_all(specs);
  for (std::size_t i = 0; i < cases.size(); ++i) check_case(cases[i], i);
}

TEST_CASE("router gradient: one expert to 1024 and one token to many") {
  std::vector<oracle::GradientCase> cases;
  std::vector<RouterGradientSpec> specs;
  std::uint64_t seed = 500;
  for (const std::size_t method : {1u, 2u, 3u, 7u, 9u}) {
    for (const std::int64_t experts : {1, 8, 96, 256, 512, 1024}) {
      const auto& of = test::router_methods().at(method);
      RouterGradientSpec spec{
          test::router_of(of, experts, experts == 1024 ? 32 : std::min<std::int64_t>(experts, 8))};
      spec.losses = 15;
      specs.push_back(spec);
      for (const std::int64_t tokens : {1, 500})
        cases.push_back(oracle::make_gradient_case(spec, tokens, oracle::Logits::normal, ++seed));
    }
  }
  prepare_all(specs);
  for (std::size_t i = 0; i < cases.size(); ++i) check_case(cases[i], i);
}

TEST_CASE("small: router gradient: losses alone and each of them") {
  for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
    for (std::uint32_t loss = 0; loss < kRouterLosses; ++loss) {
      RouterGradientSpec spec{test::router_of(test::router_methods().at(0), 64, 4), 15};
      spec.router.scoring = scoring;
      auto c = oracle::make_gradient_case(spec, 40, oracle::Logits::normal, 40 + loss);
      for (std::uint32_t i = 0; i < kRouterLosses; ++i)
        if (i != loss) c.coefficients[i] = 0;
      DeviceGradient device(c, 64);
      RouterGradientArgs args = device.args();
      args.dtopk_weights = nullptr;
      args.topk_ids = nullptr;
      if (loss == 0) {  // z needs nothing of the statistics and no workspace
        args.tokens_per_expert = nullptr;
        args.workspace = nullptr;
        args.workspace_bytes = 0;
      }
      if (loss != 2) args.mean_scores = nullptr;
      CAPTURE(loss);
      CHECK(c.problem(device.run(args), 64, 40, false) == "");
    }
  }
}

TEST_CASE("small: router gradient: a device-side token count and a captured graph") {
  RouterGradientSpec spec{test::router_of(test::router_methods().at(10), 128, 8, LogitType::bf16), 15};
  const auto c = oracle::make_gradient_case(spec, 50, oracle::Logits::normal, 8);
  DeviceGradient device(c, 130);
  const auto all = device.run(device.args());
  for (const std::int32_t live : {-1, 0, 1, 49, 50, 70}) {
    const auto count = upload(std::vector<std::int32_t>{live});
    RouterGradientArgs args = device.args();
    args.token_count = static_cast<const std::int32_t*>(count.data());
    const auto out = device.run(args);
    const std::int64_t rows = std::clamp(live, 0, 50);
    CAPTURE(live);
    CHECK(c.problem(out, 130, rows) == "");
    CHECK(device.rest_untouched(out, rows));
  }
  const RouterGradientArgs args = device.args();
  gpu::must(cuda::begin_capture(*gpu::device(), args.stream), "begin_capture");
  const Status enqueued = device.gradient().compute(args);
  auto graph = gpu::must(cuda::Graph::end_capture(gpu::device(), args.stream), "end_capture");
  gpu::must(enqueued, "compute");
  auto exec = gpu::must(cuda::GraphExec::instantiate(graph), "instantiate");
  for (int round = 0; round < 3; ++round) {
    device.poison();
    gpu::must(exec.launch(args.stream), "launch");
    CHECK(device.read() == all);
  }
}

TEST_CASE("small: router gradient: the product of every set of types") {
  std::vector<RouterGradientSpec> specs;
  for (const DType input : {DType::bf16, DType::fp16}) {
    for (const LogitType weight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      for (const LogitType dweight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
        const bool odd = specs.size() % 2 != 0;
        specs.push_back(product_spec(odd ? 60 : 128, odd ? 200 : 136, input, weight, dweight, odd));
      }
    }
  }
  prepare_all(specs);
  std::uint64_t seed = 900;
  for (const RouterGradientSpec& spec : specs) {
    for (const std::int64_t tokens : {1, 31, 130}) {
      ++seed;
      check_product(spec, tokens, seed, seed % 3 == 0 ? 8 : 0, 1);
    }
  }
}

TEST_CASE("router gradient: the product at models' sizes") {
  const std::vector<RouterGradientSpec> specs = {
      product_spec(8, 4096, DType::bf16, LogitType::bf16, LogitType::fp32, false),
      product_spec(128, 2048, DType::bf16, LogitType::bf16, LogitType::bf16, false),
      product_spec(256, 7168, DType::bf16, LogitType::fp32, LogitType::fp32, false),
      product_spec(128, 2880, DType::bf16, LogitType::bf16, LogitType::fp32, true),
      product_spec(1024, 512, DType::fp16, LogitType::fp16, LogitType::fp16, true),
      product_spec(1, 8, DType::bf16, LogitType::bf16, LogitType::fp32, true)};
  prepare_all(specs);
  std::uint64_t seed = 1200;
  for (const RouterGradientSpec& spec : specs) {
    check_product(spec, 1500, ++seed, 0, 7);
    if (spec.router.hidden_size == 2048) check_product(spec, 32768, ++seed, 0, 97);
  }
}

TEST_CASE("small: router gradient: a product of fewer tokens and in a captured graph and of parts") {
  const auto spec = product_spec(60, 200, DType::bf16, LogitType::bf16, LogitType::fp32, true);
  const auto c = oracle::make_product_gradient_case(spec, 90, 4);
  DeviceProductGradient device(c);
  const ProductResult all = device.run(device.args(false));
  for (const std::int32_t live : {-1, 0, 1, 33, 64, 90, 100}) {
    const auto count = upload(std::vector<std::int32_t>{live});
    CAPTURE(live);
    for (const bool accumulate : {false, true}) {
      RouterProductGradientArgs args = device.args(accumulate);
      args.token_count = static_cast<const std::int32_t*>(count.data());
      const ProductResult out = device.run(args);
      const std::int64_t rows = std::clamp(live, 0, 90);
      CHECK(c.dx_problem(out.dx, rows, accumulate) == "");
      CHECK(c.dweight_problem(out.dweight, rows, accumulate) == "");
      CHECK(c.bias_problem(out.bias, rows, accumulate) == "");
      const auto row = static_cast<std::ptrdiff_t>(rows * c.product.x_stride * 2);
      CHECK(std::equal(out.dx.begin() + row, out.dx.end(), c.dx.bytes.begin() + row));
    }
  }
  // No tokens: gradients of the weight become zero.
  RouterProductGradientArgs none = device.args(false);
  none.tokens = 0;
  const ProductResult zero = device.run(none);
  CHECK(zero.dx == c.dx.bytes);
  CHECK(c.dweight_problem(zero.dweight, 0, false) == "");
  CHECK(c.bias_problem(zero.bias, 0, false) == "");
  // Each output alone has the bits it has with the others, and nothing else is written.
  const ProductResult before = [&] {
    device.reset();
    return device.read();
  }();
  RouterProductGradientArgs part = device.args(false);
  part.dweight = nullptr;
  part.dlogit_bias = nullptr;
  part.x = nullptr;
  CHECK(device.run(part) == ProductResult{all.dx, before.dweight, before.bias});
  part = device.args(false);
  part.dx = nullptr;
  part.dlogit_bias = nullptr;
  part.weight = nullptr;
  CHECK(device.run(part) == ProductResult{before.dx, all.dweight, before.bias});
  part = device.args(false);
  part.dx = part.dweight = nullptr;
  CHECK(device.run(part) == ProductResult{before.dx, before.dweight, all.bias});

  const RouterProductGradientArgs args = device.args(true);
  const ProductResult added = device.run(args);
  device.reset();
  gpu::must(cuda::begin_capture(*gpu::device(), args.stream), "begin_capture");
  const Status enqueued = device.gradient().product(args);
  auto graph = gpu::must(cuda::Graph::end_capture(gpu::device(), args.stream), "end_capture");
  gpu::must(enqueued, "product");
  auto exec = gpu::must(cuda::GraphExec::instantiate(graph), "instantiate");
  gpu::must(exec.launch(args.stream), "launch");
  CHECK(device.read() == added);
}
