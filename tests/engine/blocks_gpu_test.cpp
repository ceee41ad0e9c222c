// The building blocks on a GPU engine whose driver is a fake: what is prepared and launched, and what a
// capture may do.
#include <algorithm>
#include <string>
#include <vector>

#include "cuda/graph.hpp"
#include "engine_fixture.hpp"
#include "varmoe/blocks.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

using Names = std::vector<std::string>;

struct GpuBlocks : EngineFixture {
  Blocks make(Engine& engine, const LayerSpec& spec, const BlocksOptions& blocks_options = {}) {
    auto blocks = engine.create_blocks(spec, blocks_options);
    REQUIRE_MESSAGE(blocks.ok(), (blocks.ok() ? "" : blocks.error().message()));
    require_ok(blocks->bind(test::fake_weights(spec)));
    return *std::move(blocks);
  }
  GroupedUpArgs up_args(Blocks& blocks, std::int64_t rows) {
    GroupedUpArgs args;
    args.by_expert.rows = rows;
    args.by_expert.expert_offsets = arena.take(1024);
    args.x = arena.take(static_cast<std::size_t>(rows * blocks.spec().hidden_size) * 2);
    args.h = arena.take(static_cast<std::size_t>(rows) * 256 * 2);
    args.workspace_bytes = *blocks.workspace_bytes(rows);
    args.workspace = arena.take(args.workspace_bytes);
    return args;
  }
  GroupedDownArgs down_args(Blocks& blocks, std::int64_t rows) {
    const GroupedUpArgs up = up_args(blocks, rows);
    GroupedDownArgs args;
    args.by_expert = up.by_expert;
    args.h = up.h;
    args.y = const_cast<void*>(up.x);
    args.workspace = up.workspace;
    args.workspace_bytes = up.workspace_bytes;
    return args;
  }
  /// Entry names launched since the last call, without config and digest.
  static Names stages() {
    Names found;
    for (const std::string& name : test::launched_kernels()) {
      std::string stage = name.substr(std::string("varmoe_").size());
      for (const char* known :
           {"block_schedule", "block_gather", "block_slot_rows", "fc1_gradient", "fc2_gradient",
            "fc1_bias_gradient", "fc2_bias_gradient", "fc1", "fc2", "combine_gradient", "combine", "gather",
            "sort", "activation_gradient", "row_weight_gradient", "weigh_rows", "gradient_schedule"})
        if (stage.rfind(std::string(known) + "_", 0) == 0) {
          stage = known;
          break;
        }
      found.push_back(stage);
    }
    fake_cuda::clear_launches();
    return found;
  }

  test::Arena arena{std::size_t{64} << 20};
};

PrepareOptions tokens_of(std::vector<std::int64_t> tokens) {
  PrepareOptions prepare;
  prepare.tokens = std::move(tokens);
  return prepare;
}

}  // namespace

TEST_CASE_FIXTURE(GpuBlocks,
                  "building blocks: prepared ones launch a schedule and their product, and compile no more") {
  Engine engine = make_engine();
  Blocks blocks = make(engine, test::pruned_spec());
  auto report = blocks.prepare(tokens_of({64, 1024}));
  require_ok(report);
  for (const char* stage : {"up", "down", "combine", "combine_sum", "block_schedule", "block_gather",
                            "block_slot_rows", "combine_gradient"})
    CHECK_MESSAGE(std::any_of(report->kernels.begin(), report->kernels.end(),
                              [&](const KernelReport& k) { return k.stage == stage; }),
                  stage);
  const int compiles = fake_nvrtc::compiles();
  fake_cuda::clear_launches();
  require_ok(blocks.up(up_args(blocks, 128)));
  CHECK(stages() == Names{"block_schedule", "fc1"});
  require_ok(blocks.down(down_args(blocks, 2048)));
  CHECK(stages() == Names{"block_schedule", "fc2"});
  GatherArgs gather;
  gather.tokens = 64;
  gather.rows = 128;
  gather.x = arena.take(64 * 128 * 2);
  gather.row_map = static_cast<const std::int32_t*>(arena.take(128 * 4));
  gather.out = arena.take(128 * 128 * 2);
  require_ok(blocks.gather(gather));
  CHECK(stages() == Names{"block_gather"});
  SlotRowsArgs slot_rows;
  slot_rows.tokens = 64;
  slot_rows.rows = 128;
  slot_rows.row_map = gather.row_map;
  slot_rows.slot_row = static_cast<std::int32_t*>(arena.take(128 * 4));
  require_ok(blocks.slot_rows(slot_rows));
  CHECK(stages() == Names{"block_slot_rows", "block_slot_rows"});
  CombineArgs combine;
  combine.tokens = 64;
  combine.rows = 128;
  combine.y = gather.out;
  combine.slot_row = slot_rows.slot_row;
  combine.out = arena.take(64 * 128 * 2);
  require_ok(blocks.combine(combine));
  const Names sum = test::launched_kernels();
  fake_cuda::clear_launches();
  combine.topk_weights = static_cast<const float*>(arena.take(128 * 4));
  require_ok(blocks.combine(combine));
  const Names weighed = test::launched_kernels();
  REQUIRE(sum.size() == 1);
  REQUIRE(weighed.size() == 1);
  CHECK(sum != weighed);
  CombineBackwardArgs backward;
  backward.tokens = 64;
  backward.rows = 128;
  backward.dout = combine.out;
  backward.slot_row = combine.slot_row;
  backward.dy = gather.out;
  require_ok(blocks.combine_backward(backward));
  CHECK(stages() == Names{"combine", "combine_gradient"});
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(
    GpuBlocks, "building blocks: down and combine are the layer's own kernels; weighted rows take one more") {
  Engine engine = make_engine();
  const LayerSpec spec = test::pruned_spec();
  Layer layer = make_layer(engine, spec);
  prepare(layer, {64});
  const int compiles = fake_nvrtc::compiles();
  Blocks blocks = make(engine, spec);
  auto report = blocks.prepare(tokens_of({64}));
  require_ok(report);
  for (const KernelReport& kernel : report->kernels)
    if (kernel.stage == "down" || kernel.stage == "combine") CHECK(kernel.hit);
  // up reads rows as they lie; combine without weights; the four that are the blocks' own.
  CHECK(fake_nvrtc::compiles() - compiles <= 6);
  Blocks weighted = make(engine, spec, {.weighted_down = true});
  auto more = weighted.prepare(tokens_of({64}));
  require_ok(more);
  for (const KernelReport& kernel : more->kernels) {
    CAPTURE(kernel.stage);
    CHECK(kernel.hit == (kernel.stage != "down"));
  }
}

TEST_CASE_FIXTURE(GpuBlocks,
                  "building blocks: the first use prepares its bucket, but not while a stream is captured") {
  Engine engine = make_engine();
  Blocks blocks = make(engine, test::small_spec());
  auto device = EngineAccess::impl(engine).device;
  auto stream = cuda::Stream::create(device);
  require_ok(stream);
  {
    require_ok(cuda::begin_capture(*device, stream->handle()));
    GroupedUpArgs args = up_args(blocks, 64);
    args.stream = stream->handle();
    const Status status = blocks.up(args);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::not_prepared);
    auto graph = cuda::Graph::end_capture(device, stream->handle());
    require_ok(graph);
  }
  GroupedUpArgs args = up_args(blocks, 64);
  args.stream = stream->handle();
  require_ok(blocks.up(args));
  CHECK(said("at first use") == 1);
  const int compiles = fake_nvrtc::compiles();
  require_ok(blocks.up(args));
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(GpuBlocks,
                  "blocks' backward: prepared, it launches what is asked for, and compiles no more") {
  Engine engine = make_engine();
  for (const int kind : {0, 1, 2}) {
    CAPTURE(kind);
    LayerSpec spec = test::pruned_spec();
    spec.weight_on_input = kind == 2;
    BlocksOptions blocks_options;
    blocks_options.training = true;
    blocks_options.weighted_down = kind == 1;
    Blocks blocks = make(engine, spec, blocks_options);
    auto report = blocks.prepare(tokens_of({64}));
    require_ok(report);
    for (const char* stage : {"up", "up_saving", "down", "dh", "dz", "dx", "activation_gradient",
                              "gradient_schedule", "fc1_gradient", "fc2_gradient"})
      CHECK_MESSAGE(std::any_of(report->kernels.begin(), report->kernels.end(),
                                [&](const KernelReport& k) { return k.stage == stage; }),
                    stage);
    require_ok(blocks.bind_gradients(test::fake_weights(spec)));
    const int compiles = fake_nvrtc::compiles();
    fake_cuda::clear_launches();
    constexpr std::int64_t kRows = 128;
    GroupedUpArgs up = up_args(blocks, kRows);
    if (kind == 2) up.row_weights = static_cast<const float*>(arena.take(kRows * 4));
    up.z = arena.take(kRows * 512 * 2);
    require_ok(blocks.up(up));
    CHECK(stages() == Names{"block_schedule", "fc1"});

    GroupedDownBackwardArgs down;
    down.by_expert = up.by_expert;
    down.dy = up.x;
    down.h = up.h;
    down.dh = arena.take(kRows * 256 * 2);
    down.workspace_bytes = *blocks.backward_workspace_bytes(kRows);
    down.workspace = arena.take(down.workspace_bytes);
    if (kind == 1) {
      down.row_weights = static_cast<const float*>(arena.take(kRows * 4));
      down.drow_weights = static_cast<float*>(arena.take(kRows * 4));
    }
    require_ok(blocks.down_backward(down));
    CHECK(stages() == (kind == 1 ? Names{"block_schedule", "fc1", "row_weight_gradient", "gradient_schedule",
                                         "fc2_gradient"}
                                 : Names{"block_schedule", "fc1", "gradient_schedule", "fc2_gradient"}));
    down.weight_gradients = false;
    down.drow_weights = nullptr;
    require_ok(blocks.down_backward(down));
    const Names from_h = test::launched_kernels();
    CHECK(stages() == Names{"block_schedule", "fc1"});
    down.h = nullptr;
    down.dh = nullptr;
    down.z = up.z;
    down.dz = arena.take(kRows * 512 * 2);
    require_ok(blocks.down_backward(down));
    const Names from_z = test::launched_kernels();
    CHECK(stages() == Names{"block_schedule", "fc1"});
    CHECK(from_h != from_z);

    GroupedUpBackwardArgs back;
    back.by_expert = up.by_expert;
    back.x = up.x;
    back.z = up.z;
    back.dh = arena.take(kRows * 256 * 2);
    back.dz = down.dz;
    back.dx = arena.take(static_cast<std::size_t>(kRows * spec.hidden_size) * 2);
    back.workspace = down.workspace;
    back.workspace_bytes = down.workspace_bytes;
    if (kind == 2) {
      back.row_weights = up.row_weights;
      back.drow_weights = static_cast<float*>(arena.take(kRows * 4));
    }
    require_ok(blocks.up_backward(back));
    CHECK(stages() == (kind == 2 ? Names{"block_schedule", "activation_gradient", "fc2", "weigh_rows",
                                         "weigh_rows", "gradient_schedule", "fc1_gradient"}
                                 : Names{"block_schedule", "activation_gradient", "fc2", "gradient_schedule",
                                         "fc1_gradient"}));
    back.z = nullptr;
    back.dh = nullptr;
    back.weight_gradients = false;
    back.drow_weights = nullptr;
    require_ok(blocks.up_backward(back));
    CHECK(stages() ==
          (kind == 2 ? Names{"block_schedule", "fc2", "weigh_rows"} : Names{"block_schedule", "fc2"}));
    CHECK(fake_nvrtc::compiles() == compiles);
  }
}
