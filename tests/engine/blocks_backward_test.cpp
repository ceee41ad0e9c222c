// The backward passes of the building blocks on the CPU engine, each held against the oracle; tests/gpu has
// the GPU's.
#include <string>
#include <vector>

#include "blocks_fixture.hpp"
#include "oracle/blocks_backward_case.hpp"

using namespace varmoe;
using namespace test;

namespace {

oracle::RandomCase case_of(const LayerSpec& spec, int kind) {
  oracle::CaseOptions options;
  options.tokens = 37;
  options.routing = kind % 2 == 0 ? oracle::Routing::zipf : oracle::Routing::half_on_one;
  options.invalid_fraction = 0.2;
  options.empty_every = 4;
  return oracle::make_case(spec, options);
}

BlocksOptions training(bool weighted = false, GradientType type = GradientType::layer_dtype) {
  BlocksOptions options;
  options.weighted_down = weighted;
  options.training = true;
  options.gradient_type = type;
  return options;
}

bool has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE_FIXTURE(
    BlocksFixture,
    "blocks' backward: of every kind of layer, in every layout, gives what the oracle computes") {
  Engine engine = make_engine();
  for (int kind = 0; kind < 5; ++kind) {
    const LayerSpec spec = tail_spec(kind);
    const auto c = case_of(spec, kind);
    for (const bool weighted : {false, true}) {
      if (weighted && spec.weight_on_input) continue;
      for (const bool from_z : {false, true}) {
        oracle::BlocksBackwardOptions what;
        what.from_z = from_z;
        what.fp32 = (kind + weighted) % 2 == 0;
        what.accumulate = from_z != weighted;
        Blocks blocks = make(engine, spec,
                             training(weighted, what.fp32 ? GradientType::fp32 : GradientType::layer_dtype));
        require_ok(blocks.bind(*c.host_weights()));
        oracle::GradientBuffers before(spec, what.storage, what.fp32);
        if (what.accumulate) before.fill(5);
        for (const RowLayout layout : kLayouts) {
          CAPTURE(kind);
          CAPTURE(weighted);
          CAPTURE(from_z);
          CAPTURE(static_cast<int>(layout));
          const auto b = oracle::make_blocks_case(c, layout, layout == RowLayout::offsets ? 1 : 16, from_z);
          oracle::BlocksBackwardOutput outputs[2];
          for (int run = 0; run < 2; ++run) {
            HostMemory memory;
            outputs[run] =
                oracle::run_blocks_backward(blocks, b, what, before, memory, run == 0 ? 0xff : 0x01);
          }
          CHECK(oracle::blocks_backward_problem(b, what, before, outputs[0], weighted) == "");
          CHECK(outputs[0] == outputs[1]);
        }
      }
    }
  }
}

TEST_CASE_FIXTURE(BlocksFixture, "blocks' backward: no rows make zeros of their own gradients, or add none") {
  Engine engine = make_engine();
  const LayerSpec spec = tail_spec(1);
  Blocks blocks = make(engine, spec, training());
  const auto c = case_of(spec, 1);
  require_ok(blocks.bind(*c.host_weights()));
  oracle::GradientBuffers gradients(spec, oracle::Storage::blocks, false);
  gradients.fill(3);
  const auto before = gradients.read();
  require_ok(blocks.bind_gradients(gradients.weights()));
  const std::vector<std::int32_t> offsets(static_cast<std::size_t>(spec.all_experts()) + 1, 0);
  GroupedDownBackwardArgs down;
  down.by_expert.expert_offsets = offsets.data();
  down.accumulate_weight_gradients = true;
  require_ok(blocks.down_backward(down));
  CHECK(gradients.read().experts[0].down == before.experts[0].down);
  down.accumulate_weight_gradients = false;
  require_ok(blocks.down_backward(down));
  for (std::size_t e = 0; e < before.experts.size(); ++e) {
    const auto now = gradients.read().experts[e];
    CHECK(now.down == std::vector<double>(now.down.size(), 0.0));
    CHECK(now.down_bias == std::vector<double>(now.down_bias.size(), 0.0));
    CHECK(now.up == before.experts[e].up);
    CHECK(now.gate_bias == before.experts[e].gate_bias);
  }
  GroupedUpBackwardArgs up;
  up.by_expert.expert_offsets = offsets.data();
  require_ok(blocks.up_backward(up));
  for (const auto& now : gradients.read().experts) {
    CHECK(now.up == std::vector<double>(now.up.size(), 0.0));
    CHECK(now.gate == std::vector<double>(now.gate.size(), 0.0));
    CHECK(now.up_bias == std::vector<double>(now.up_bias.size(), 0.0));
  }
  CHECK(gradients.gaps_are_poison());
}

TEST_CASE_FIXTURE(BlocksFixture, "blocks' backward: what cannot be meant is refused by name") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  const auto c = oracle::make_case(spec, {.tokens = 8});
  HostMemory memory;
  constexpr std::int64_t kRows = 16;
  const auto array = [&](std::int64_t columns) {
    return memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(kRows * columns), 0));
  };
  Blocks blocks = make(engine, spec, training(true));
  require_ok(blocks.bind(*c.host_weights()));
  GroupedDownBackwardArgs sound;
  sound.by_expert.rows = kRows;
  sound.by_expert.expert_offsets = memory.put(std::vector<std::int32_t>(9, 0));
  sound.dy = array(spec.hidden_size);
  sound.h = array(64);
  sound.dh = array(64);
  sound.row_weights = memory.put(std::vector<float>(kRows, 1.0f));
  sound.workspace_bytes = *blocks.backward_workspace_bytes(kRows);
  sound.workspace = memory.put(std::vector<std::uint8_t>(sound.workspace_bytes, 0));
  const auto refused = [&](const auto& change, const char* part, ErrorCode code) {
    GroupedDownBackwardArgs args = sound;
    change(args);
    const Status status = blocks.down_backward(args);
    REQUIRE_FALSE(status.ok());
    CHECK_MESSAGE(has(status.error().message(), part), status.error().message());
    CHECK(status.error().code() == code);
  };
  const ErrorCode bad = ErrorCode::invalid_argument;
  refused([](auto&) {}, "before bind_gradients", ErrorCode::not_bound);
  oracle::GradientBuffers gradients(spec, oracle::Storage::blocks, false);
  require_ok(blocks.bind_gradients(gradients.weights()));
  require_ok(blocks.down_backward(sound));
  refused([](auto& a) { a.dy = nullptr; }, "dy is null", bad);
  refused([](auto& a) { a.h = nullptr; }, "h is null", bad);
  refused([](auto& a) { a.dh = nullptr; }, "dh is null", bad);
  refused([](auto& a) { a.row_weights = nullptr; }, "row_weights is null", bad);
  refused([](auto& a) { a.z = a.h; }, "h and z are given", bad);
  refused([](auto& a) { a.dz = a.dh; }, "dz is given", bad);
  refused([](auto& a) { a.h_stride = 56; }, "h_stride = 56", bad);
  refused([](auto& a) { a.dh = const_cast<void*>(a.h); }, "dh overlaps h", bad);
  refused([](auto& a) { --a.workspace_bytes; }, "backward_workspace_bytes", ErrorCode::workspace_too_small);
  GroupedUpBackwardArgs up;
  up.by_expert = sound.by_expert;
  up.x = array(spec.hidden_size);
  up.z = array(128);
  up.dh = sound.dh;
  up.dz = array(128);
  up.workspace = sound.workspace;
  up.workspace_bytes = sound.workspace_bytes;
  const auto up_refused = [&](const auto& change, const char* part) {
    GroupedUpBackwardArgs args = up;
    change(args);
    const Status status = blocks.up_backward(args);
    REQUIRE_FALSE(status.ok());
    CHECK_MESSAGE(has(status.error().message(), part), status.error().message());
  };
  require_ok(blocks.up_backward(up));
  up_refused([](auto& a) { a.z = nullptr; }, "z is null");
  up_refused([](auto& a) { a.dh = nullptr; }, "z is given");
  up_refused([](auto& a) { a.dz = nullptr; }, "dz is null");
  up_refused([](auto& a) { a.x = nullptr; }, "x is null");
  up_refused([&](auto& a) { a.row_weights = sound.row_weights; }, "row_weights is given");
  up_refused([&](auto& a) { a.drow_weights = const_cast<float*>(sound.row_weights); },
             "drow_weights is given");
  Blocks plain = make(engine, spec);
  require_ok(plain.bind(*c.host_weights()));
  const Status status = plain.up_backward(up);
  REQUIRE_FALSE(status.ok());
  CHECK(has(status.error().message(), "BlocksOptions::training"));
  CHECK_FALSE(plain.bind_gradients(gradients.weights()).ok());
  CHECK_FALSE(plain.backward_workspace_bytes(4).ok());
}
