// Router and moe_align_block_size on the GPU, held against the fp64 oracle.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "cuda/graph.hpp"
#include "gpu/device_bytes.hpp"
#include "gpu/device_layer.hpp"
#include "gpu/evidence.hpp"
#include "oracle/router_case.hpp"
#include "support/router_methods.hpp"
#include "varmoe/router.hpp"

using namespace varmoe;
using gpu::DeviceBytes;
using gpu::upload;

namespace {

constexpr std::int32_t kPoison = -0x01010102;  // bytes fe

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, scores;
};

/// A case on the device, and the router of its spec.
class DeviceRouter {
 public:
  explicit DeviceRouter(const oracle::RouterCase& c)
      : case_(c),
        router_(gpu::must(gpu::engine().create_router(c.spec), "create_router")),
        stream_(gpu::must(cuda::Stream::create(gpu::device()), "stream")),
        logits_(upload(c.logits)),
        bias_(upload(c.bias)),
        ids_(static_cast<std::size_t>(c.tokens * c.spec.top_k) * 4),
        weights_(static_cast<std::size_t>(c.tokens * c.spec.top_k) * 4),
        scores_(static_cast<std::size_t>(c.tokens * c.spec.num_experts) * 4) {
    gpu::must(router_.prepare(), "prepare");
  }

  RouteArgs args(bool scores) const {
    RouteArgs a;
    a.tokens = case_.tokens;
    a.logits = logits_.data();
    a.logit_stride = case_.stride;
    a.correction_bias = case_.bias.empty() ? nullptr : static_cast<const float*>(bias_.data());
    a.topk_ids = ids_.as<std::int32_t>();
    a.topk_weights = weights_.as<float>();
    if (scores) a.scores = scores_.as<float>();
    a.stream = stream_.handle();
    return a;
  }
  void poison() const {
    for (const DeviceBytes* b : {&ids_, &weights_, &scores_}) b->poison(stream_.handle());
  }
  Routed read() const {
    gpu::must(stream_.synchronize(), "synchronize");
    const auto places = static_cast<std::size_t>(case_.tokens * case_.spec.top_k);
    return {ids_.read<std::int32_t>(places), weights_.read<float>(places),
            scores_.read<float>(static_cast<std::size_t>(case_.tokens * case_.spec.num_experts))};
  }
  Routed run(bool scores = true) {
    poison();
    gpu::must(router_.route(args(scores)), "route");
    return read();
  }
  Router& router() { return router_; }
  const cuda::Stream& stream() const { return stream_; }

 private:
  const oracle::RouterCase& case_;
  Router router_;
  cuda::Stream stream_;
  cuda::DeviceBuffer logits_, bias_;
  DeviceBytes ids_, weights_, scores_;
};

std::string name_of(const oracle::RouterCase& c, oracle::Logits kind) {
  return router_signature(c.spec) + ", " + std::to_string(c.tokens) + " tokens, logits " +
         std::to_string(static_cast<int>(kind));
}

/// One case, twice, against the oracle.
void check_case(const RouterSpec& spec, std::int64_t tokens, oracle::Logits kind, std::uint64_t seed,
                std::int64_t gap) {
  const auto c = oracle::make_router_case(spec, tokens, kind, seed, gap);
  DeviceRouter router(c);
  const Routed out = router.run();
  const std::string problem = c.problem(out.ids.data(), out.weights.data(), tokens);
  CHECK_MESSAGE(problem.empty(), name_of(c, kind), ": ", problem);
  const std::string scores = c.scores_problem(out.scores.data(), tokens);
  CHECK_MESSAGE(scores.empty(), name_of(c, kind), ": ", scores);
  const Routed again = router.run(false);
  CHECK_MESSAGE((again.ids == out.ids && again.weights == out.weights), name_of(c, kind),
                ": a second run, without scores, differs");
}

/// Compiles the routers side by side; those made later find their kernels.
void prepare_all(const std::vector<RouterSpec>& specs) {
  parallel_for(specs.size(), 0, [&](std::size_t i) {
    Router router = gpu::must(gpu::engine().create_router(specs[i]), "create_router");
    gpu::must(router.prepare(), "prepare");
  });
}

}  // namespace

TEST_CASE("small: the router, every method, kind of logits and type") {
  std::vector<RouterSpec> specs;
  for (const auto& method : test::router_methods()) {
    for (const auto& [experts, top_k] : {std::pair<std::int64_t, std::int64_t>{60, 4}, {256, 8}}) {
      for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16})
        specs.push_back(test::router_of(method, experts, top_k, type));
    }
  }
  prepare_all(specs);
  std::uint64_t seed = 100;
  for (const RouterSpec& spec : specs) {
    for (const oracle::Logits kind : oracle::kLogits) {
      ++seed;
      check_case(spec, 37, kind, seed, seed % 3 == 0 ? 5 : 0);
    }
  }
}

TEST_CASE("router: every method with many numbers of experts and tokens") {
  std::vector<RouterSpec> specs;
  for (const auto& method : test::router_methods()) {
    for (const std::int64_t experts : {8, 60, 64, 128, 256, 384, 512, 1024}) {
      for (const std::int64_t top_k : {1, 8, 32})
        specs.push_back(test::router_of(method, experts, top_k,
                                        static_cast<LogitType>((specs.size() / 3 + specs.size()) % 3)));
    }
  }
  prepare_all(specs);
  std::uint64_t seed = 1000;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    for (const std::int64_t tokens : {1, 7, 64})
      check_case(specs[i], tokens, oracle::Logits::normal, ++seed, 0);
    check_case(specs[i], 64, oracle::Logits::special, ++seed, 3);
    if (i % 3 == 1) check_case(specs[i], 4096, oracle::Logits::normal, ++seed, 0);
  }
  gpu::record_number("router cases", static_cast<double>(seed - 1000));
}

TEST_CASE("small: the router leaves rows beyond a device-side token count as they are") {
  const auto methods = test::router_methods();
  const auto c =
      oracle::make_router_case(test::router_of(methods.at(1), 128, 8), 50, oracle::Logits::normal, 7);
  DeviceRouter router(c);
  for (const std::int32_t live : {-1, 0, 1, 49, 50, 70}) {
    const auto count = upload(std::vector<std::int32_t>{live});
    router.poison();
    RouteArgs args = router.args(true);
    args.token_count = static_cast<const std::int32_t*>(count.data());
    gpu::must(router.router().route(args), "route");
    const Routed out = router.read();
    const std::int64_t rows = std::clamp<std::int64_t>(live, 0, 50);
    CHECK(c.problem(out.ids.data(), out.weights.data(), rows) == "");
    CHECK(std::all_of(out.ids.begin() + static_cast<std::ptrdiff_t>(rows * 8), out.ids.end(),
                      [](std::int32_t id) { return id == kPoison; }));
  }
}

TEST_CASE("small: router and layer in one captured graph give what the layer gives from the same ids") {
  auto spec = uniform_spec(256, 16, 128, 4);
  oracle::CaseOptions options;
  options.tokens = 96;
  auto c = oracle::make_case(spec, options);
  RouterSpec of;
  of.num_experts = 16;
  of.top_k = 4;
  of.renormalize = true;
  const auto routing = oracle::make_router_case(of, 96, oracle::Logits::normal, 3);
  DeviceRouter router(routing);
  const Routed routed = router.run();
  // The layer's case with the router's ids and weights, for the oracle.
  std::copy(routed.ids.begin(), routed.ids.end(), c.ids32.begin());
  std::copy(routed.ids.begin(), routed.ids.end(), c.ids64.begin());
  std::copy(routed.weights.begin(), routed.weights.end(), c.topk_weights.begin());
  gpu::DeviceLayer layer(c);
  gpu::check_case("routed layer", layer);
  gpu::must(layer.layer().prepare(gpu::buckets({96})), "prepare");

  RouteArgs route = router.args(false);
  ForwardArgs forward = layer.args({});
  route.stream = forward.stream;
  forward.topk_ids = route.topk_ids;
  forward.topk_weights = route.topk_weights;
  const auto expected = layer.forward_twice();
  router.poison();
  gpu::must(router.stream().synchronize(), "synchronize");
  gpu::must(cuda::begin_capture(*gpu::device(), forward.stream), "begin_capture");
  const Status enqueued = route_and_forward(router.router(), route, layer.layer(), forward);
  auto graph = gpu::must(cuda::Graph::end_capture(gpu::device(), forward.stream), "end_capture");
  gpu::must(enqueued, "route_and_forward");
  auto exec = gpu::must(cuda::GraphExec::instantiate(graph), "instantiate");
  for (int round = 0; round < 3; ++round) {
    layer.poison_out();
    gpu::must(exec.launch(forward.stream), "launch");
    CHECK(layer.download_out() == expected);
  }
}

TEST_CASE("small: moe_align_block_size is exact") {
  std::mt19937_64 random(11);
  auto stream = gpu::must(cuda::Stream::create(gpu::device()), "stream");
  for (const std::int64_t experts : {1, 8, 60, 256, 1024}) {
    for (const std::int64_t block : {1, 16, 128}) {
      const AlignSpec spec{experts, block};
      BlockAligner aligner = gpu::must(gpu::engine().create_block_aligner(spec), "create_block_aligner");
      gpu::must(aligner.prepare(), "prepare");
      for (const std::int64_t rows : {0, 1, 63, 4096, 4097, 40000}) {
        CAPTURE(experts);
        CAPTURE(block);
        CAPTURE(rows);
        std::vector<std::int64_t> ids64;
        const bool skewed = rows % 2 != 0;
        for (std::int64_t i = 0; i < rows; ++i) {
          const auto any = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(experts + 3)) - 1;
          ids64.push_back(skewed && random() % 2 != 0 ? experts - 1 : any);
        }
        const std::vector<std::int32_t> ids32(ids64.begin(), ids64.end());
        const auto ids = block == 16 ? upload(ids64) : upload(ids32);
        AlignArgs args;
        args.rows = rows;
        args.topk_ids = ids.data();
        args.id_type = block == 16 ? IdType::int64 : IdType::int32;
        args.sorted_size = sorted_ids_size(spec, rows) + (experts == 8 ? 77 : 0);
        const auto places = static_cast<std::size_t>(args.sorted_size),
                   blocks = static_cast<std::size_t>(aligned_blocks(spec, args.sorted_size));
        const DeviceBytes sorted(places * 4), expert_ids(blocks * 4), padded(4);
        args.workspace_bytes = gpu::must(aligner.workspace_bytes(rows), "workspace_bytes");
        const DeviceBytes workspace(args.workspace_bytes);
        for (const DeviceBytes* b : {&sorted, &expert_ids, &padded, &workspace}) b->poison(stream.handle());
        args.sorted_token_ids = sorted.as<std::int32_t>();
        args.expert_ids = expert_ids.as<std::int32_t>();
        args.num_tokens_post_pad = padded.as<std::int32_t>();
        args.workspace = workspace.buffer.data();
        args.stream = stream.handle();
        gpu::must(aligner.align(args), "align");
        gpu::must(stream.synchronize(), "synchronize");
        const auto expected = oracle::align_rows(experts, block, ids64, args.sorted_size);
        CHECK(padded.read<std::int32_t>(1).at(0) == expected.num_tokens_post_pad);
        CHECK(sorted.read<std::int32_t>(places) == expected.sorted_token_ids);
        CHECK(expert_ids.read<std::int32_t>(blocks) == expected.expert_ids);
        static_cast<void>(workspace.read<std::uint8_t>(args.workspace_bytes));
      }
    }
  }
}
