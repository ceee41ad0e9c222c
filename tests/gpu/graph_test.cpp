#include <doctest/doctest.h>

#include "cuda/graph.hpp"
#include "gpu/device_layer.hpp"

// Capture, replay with other inputs, and capture when nothing is prepared.

namespace {

varmoe::LayerSpec spec_of(std::int64_t width) {
  auto spec = varmoe::uniform_spec(256, 12, width, 3);
  spec.expert_widths[5] = width + 64;
  return spec;
}

}  // namespace

TEST_CASE("small: a captured forward replays on changed ids and outlives the layer object") {
  oracle::CaseOptions options;
  options.tokens = 64;
  const auto first = oracle::make_case(spec_of(96), options);
  options.seed = 2;
  auto other = oracle::make_case(spec_of(96), options);
  auto layer = std::make_unique<gpu::DeviceLayer>(first);
  gpu::must(layer->layer().prepare(gpu::buckets({64})), "prepare");
  const auto args = layer->args({});
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), layer->stream()), "begin_capture");
  const varmoe::Status forwarded = layer->layer().forward(args);
  const auto graph =
      gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), layer->stream()), "end_capture");
  CHECK(forwarded.ok());
  const auto exec = gpu::must(varmoe::cuda::GraphExec::instantiate(graph), "instantiate");

  layer->poison_out();
  gpu::must(exec.launch(layer->stream()), "replay");
  const auto replayed = layer->download_out();
  CHECK(replayed == layer->forward_twice());

  // Other ids in the same buffer: the graph follows.
  gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), layer->ids_address(), other.ids32.data(),
                                         other.ids32.size() * 4),
            "upload");
  layer->poison_out();
  gpu::must(exec.launch(layer->stream()), "replay");
  const auto changed = layer->download_out();
  CHECK(changed != replayed);
  CHECK(changed == layer->forward_twice());
}

TEST_CASE("small: fault 39: capturing an unprepared layer is not_prepared and leaves the capture intact") {
  oracle::CaseOptions options;
  options.tokens = 16;
  const auto c = oracle::make_case(spec_of(104), options);
  gpu::DeviceLayer layer(c);
  const auto args = layer.args({});
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), layer.stream()), "begin_capture");
  const varmoe::Status forwarded = layer.layer().forward(args);
  const auto graph =
      gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), layer.stream()), "end_capture");
  REQUIRE(!forwarded.ok());
  CHECK(forwarded.error().code() == varmoe::ErrorCode::not_prepared);
  CHECK(gpu::must(graph.node_count(), "node_count") == 0);
  gpu::check_case("after a refused capture", layer);
}

TEST_CASE("small: fault 39: capturing a missing bucket takes a prepared one") {
  oracle::CaseOptions options;
  options.tokens = 200;
  const auto c = oracle::make_case(spec_of(112), options);
  gpu::DeviceLayer layer(c);
  gpu::must(layer.layer().prepare(gpu::buckets({8})), "prepare");
  const auto args = layer.args({});
  layer.poison_out();
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), layer.stream()), "begin_capture");
  const varmoe::Status forwarded = layer.layer().forward(args);
  const auto graph =
      gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), layer.stream()), "end_capture");
  REQUIRE(forwarded.ok());
  const auto exec = gpu::must(varmoe::cuda::GraphExec::instantiate(graph), "instantiate");
  gpu::must(exec.launch(layer.stream()), "replay");
  CHECK(layer.download_out() == layer.forward_twice());
  gpu::check_case("another bucket's kernels", layer);
}

TEST_CASE("small: two layers on two streams with workspaces of their own") {
  oracle::CaseOptions options;
  options.tokens = 500;
  const auto a = oracle::make_case(spec_of(96), options);
  options.seed = 9;
  const auto b = oracle::make_case(spec_of(96), options);
  gpu::DeviceLayer one(a), two(b);
  const auto expect_one = one.forward_twice(), expect_two = two.forward_twice();
  const auto args_one = one.args({}), args_two = two.args({});
  for (int round = 0; round < 50; ++round) {
    gpu::must(one.layer().forward(args_one), "forward");
    gpu::must(two.layer().forward(args_two), "forward");
  }
  CHECK(one.download_out() == expect_one);
  CHECK(two.download_out() == expect_two);
}
