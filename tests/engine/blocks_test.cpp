// The building blocks on the CPU engine, each held against the oracle; tests/gpu has the GPU's.
#include "varmoe/blocks.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "blocks_fixture.hpp"
#include "oracle/blocks_case.hpp"

using namespace varmoe;
using namespace test;

TEST_CASE_FIXTURE(BlocksFixture,
                  "building blocks: every one in every layout gives what the oracle computes") {
  Engine engine = make_engine();
  for (int kind = 0; kind < 5; ++kind) {
    const LayerSpec spec = tail_spec(kind);
    for (const bool weighted : {false, true}) {
      if (weighted && spec.weight_on_input) continue;
      oracle::CaseOptions case_options;
      case_options.tokens = 37;
      case_options.routing = kind % 2 == 0 ? oracle::Routing::zipf : oracle::Routing::half_on_one;
      case_options.invalid_fraction = 0.2;
      case_options.empty_every = 4;
      case_options.x_stride = spec.hidden_size + 8;
      const auto c = oracle::make_case(spec, case_options);
      Blocks blocks = make(engine, spec, {.weighted_down = weighted});
      const auto weights = c.host_weights();
      REQUIRE(weights.ok());
      require_ok(blocks.bind(*weights));
      for (const RowLayout layout : kLayouts) {
        for (const std::int64_t multiple : {1, 16}) {
          CAPTURE(kind);
          CAPTURE(weighted);
          CAPTURE(static_cast<int>(layout));
          CAPTURE(multiple);
          const auto b = oracle::make_blocks_case(c, layout, multiple, multiple == 16);
          HostMemory memory;
          const auto out = oracle::run_blocks(blocks, b, memory, 0xff);
          CHECK(oracle::blocks_problem(b, out, weighted) == "");
        }
      }
    }
  }
}

TEST_CASE_FIXTURE(BlocksFixture, "building blocks: all of them one after another are the layer") {
  Engine engine = make_engine();
  const LayerSpec spec = tail_spec(0);
  const auto c = oracle::make_case(spec, {.tokens = 29, .routing = oracle::Routing::zipf});
  Blocks blocks = make(engine, spec);
  require_ok(blocks.bind(*c.host_weights()));
  const auto b = oracle::make_blocks_case(c, RowLayout::counts, 8, false);
  HostMemory memory;
  const auto found = oracle::run_blocks(blocks, b, memory, 0);
  std::vector<std::int64_t> tokens(29);
  for (std::size_t t = 0; t < tokens.size(); ++t) tokens[t] = static_cast<std::int64_t>(t);
  const auto compared = oracle::compare_rows(spec.dtype, c.reference(), found.out.data(), spec.hidden_size,
                                             spec.hidden_size, tokens);
  CHECK_MESSAGE(compared.pass, compared.text());
}

TEST_CASE_FIXTURE(BlocksFixture,
                  "building blocks: segments that reach too far are cut off, and written nowhere") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  const auto c = oracle::make_case(spec, {.tokens = 20});
  Blocks blocks = make(engine, spec);
  require_ok(blocks.bind(*c.host_weights()));
  HostMemory memory;
  constexpr std::int64_t kRows = 24;
  const auto poisoned = [&](std::int64_t columns) {
    return memory.put(
        std::vector<std::uint16_t>(static_cast<std::size_t>((kRows + 4) * columns), oracle::kPoison));
  };
  const std::vector<std::uint16_t> x(c.x.data(), c.x.data() + c.x.size());
  GroupedUpArgs up;
  up.by_expert.rows = kRows;
  up.x = memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(kRows * spec.hidden_size), 0x3f80));
  up.h = poisoned(64);
  up.workspace_bytes = *blocks.workspace_bytes(kRows);
  up.workspace = memory.put(std::vector<std::uint8_t>(up.workspace_bytes, 0xff));
  // Expert 1 has two rows, expert 2 begins before the arrays' end and ends behind it, expert 3 is backwards.
  const auto h = [&](std::int64_t row) { return static_cast<const std::uint16_t*>(up.h)[row * 64]; };
  up.by_expert.expert_offsets =
      memory.put(std::vector<std::int32_t>{-5, 0, 2, 22, 1000, 900, 24, 24, 2000000000});
  up.by_expert.expert_counts = memory.put(std::vector<std::int32_t>{3, 2, 0, 50, 4, -1, 1, 1});
  require_ok(blocks.up(up));
  for (std::int64_t r = 0; r < kRows + 4; ++r)
    CHECK_MESSAGE((h(r) != oracle::kPoison) == (r < 2 || (r >= 22 && r < 24)), r);
}

TEST_CASE_FIXTURE(BlocksFixture,
                  "building blocks: combine adds, keeps absent tokens, and ends at a device-side count") {
  Engine engine = make_engine();
  LayerSpec spec = test::small_spec();
  Blocks blocks = make(engine, spec);  // needs no weights
  const std::int64_t H = spec.hidden_size;
  HostMemory memory;
  const auto bf16 = [](double v) { return oracle::encode(DType::bf16, v); };
  std::vector<std::uint16_t> y(static_cast<std::size_t>(3 * H));
  for (std::int64_t r = 0; r < 3; ++r)
    std::fill_n(y.begin() + static_cast<std::ptrdiff_t>(r * H), H, bf16(static_cast<double>(1 << r)));
  CombineArgs combine;
  combine.tokens = 4;
  combine.rows = 3;
  combine.y = memory.put(y);
  combine.slot_row = memory.put(std::vector<std::int32_t>{2, 0, -1, -1, -3, 1, 0, 1});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  combine.topk_weights = memory.put(std::vector<float>{0.5f, 2.0f, nan, nan, nan, 3.0f, 1.0f, 1.0f});
  auto* out = memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(4 * H), bf16(8)));
  combine.out = out;
  const auto value = [&](std::int64_t t) { return oracle::decode(DType::bf16, out[t * H + 5]); };
  combine.absent_tokens = AbsentTokens::untouched;
  combine.token_count = memory.put(std::vector<std::int32_t>{3});
  require_ok(blocks.combine(combine));
  CHECK(value(0) == 4);
  CHECK(value(1) == 8);
  CHECK(value(2) == 6);
  CHECK(value(3) == 8);
  combine.absent_tokens = AbsentTokens::write_zeros;
  combine.accumulate = true;
  combine.token_count = nullptr;
  combine.topk_weights = nullptr;  // every row counts once
  require_ok(blocks.combine(combine));
  CHECK(value(0) == 4 + 5);
  CHECK(value(1) == 8);
  CHECK(value(2) == 6 + 2);
  CHECK(value(3) == 8 + 3);
}

TEST_CASE_FIXTURE(BlocksFixture,
                  "building blocks: gather takes maps of tokens, and a device-side number of rows") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  Blocks blocks = make(engine, spec);
  const auto c = oracle::make_case(spec, {.tokens = 6, .x_stride = spec.hidden_size + 16});
  HostMemory memory;
  const std::int64_t H = spec.hidden_size;
  GatherArgs gather;
  gather.tokens = 6;
  gather.x = c.x.data();
  gather.x_stride = c.x_stride;
  gather.rows = 5;
  gather.map_to = RowMap::tokens;
  gather.row_map = memory.put(std::vector<std::int32_t>{5, -1, 6, 0, 1});
  gather.row_count = memory.put(std::vector<std::int32_t>{4});
  auto* out = memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(5 * H), oracle::kPoison));
  gather.out = out;
  require_ok(blocks.gather(gather));
  const std::int64_t expected[] = {5, -1, -1, 0, -1};
  for (std::int64_t r = 0; r < 5; ++r)
    for (std::int64_t i = 0; i < H; ++i)
      REQUIRE(out[r * H + i] == (expected[r] < 0 ? oracle::kPoison : c.x[expected[r] * c.x_stride + i]));
}

TEST_CASE_FIXTURE(BlocksFixture, "building blocks: what cannot be meant is refused by name") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  Blocks blocks = make(engine, spec);
  HostMemory memory;
  const auto c = oracle::make_case(spec, {.tokens = 8});
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  GroupedUpArgs sound;
  sound.by_expert.rows = 16;
  sound.by_expert.expert_offsets = memory.put(std::vector<std::int32_t>(9, 0));
  sound.x = memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(16 * spec.hidden_size)));
  sound.h = memory.put(std::vector<std::uint16_t>(16 * 64));
  sound.workspace_bytes = *blocks.workspace_bytes(16);
  sound.workspace = memory.put(std::vector<std::uint8_t>(sound.workspace_bytes));
  {
    const Status status = blocks.up(sound);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::not_bound);
  }
  require_ok(blocks.bind(*c.host_weights()));
  require_ok(blocks.up(sound));
  const auto refused = [&](auto change, const char* part, ErrorCode code = ErrorCode::invalid_argument) {
    GroupedUpArgs args = sound;
    change(args);
    const Status status = blocks.up(args);
    REQUIRE_MESSAGE(!status.ok(), part);
    CHECK(status.error().code() == code);
    CHECK_MESSAGE(has(status.error().message(), part), status.error().message());
  };
  const auto* numbers = memory.put(std::vector<std::int32_t>(64, 0));
  refused([](GroupedUpArgs& a) { a.by_expert.rows = -1; }, "rows = -1");
  refused([](GroupedUpArgs& a) { a.by_expert.layout = static_cast<RowLayout>(9); }, "layout = 9");
  refused([](GroupedUpArgs& a) { a.by_expert.expert_offsets = nullptr; }, "expert_offsets is null");
  refused([&](GroupedUpArgs& a) { a.by_expert.expert_ids = numbers; },
          "expert_ids is given: layout offsets has none");
  refused([](GroupedUpArgs& a) { a.by_expert.layout = RowLayout::counts; },
          "expert_offsets is given: layout counts has none");
  refused(
      [](GroupedUpArgs& a) {
        a.by_expert.layout = RowLayout::counts;
        a.by_expert.expert_offsets = nullptr;
      },
      "expert_counts is null");
  refused(
      [](GroupedUpArgs& a) {
        a.by_expert.index_type = IdType::int64;
        a.by_expert.expert_offsets = static_cast<const std::int32_t*>(a.by_expert.expert_offsets) + 1;
      },
      "must be 8-byte aligned");
  refused(
      [&](GroupedUpArgs& a) {
        a.by_expert.layout = RowLayout::batched;
        a.by_expert.expert_offsets = nullptr;
        a.by_expert.expert_counts = numbers;
      },
      "rows = 16 of 8 experts in a batch are 2 of each");
  refused(
      [&](GroupedUpArgs& a) {
        a.by_expert.layout = RowLayout::counts;
        a.by_expert.expert_offsets = nullptr;
        a.by_expert.expert_counts = numbers;
        a.by_expert.multiple = 0;
      },
      "multiple = 0: must be from 1");
  refused([](GroupedUpArgs& a) { a.h_stride = 56; }, "h_stride = 56");
  refused([](GroupedUpArgs& a) { a.x_stride = 4; }, "x_stride = 4");
  refused([](GroupedUpArgs& a) { a.x = nullptr; }, "x is null");
  refused([](GroupedUpArgs& a) { a.h = const_cast<void*>(a.x); }, "h overlaps x");
  refused([&](GroupedUpArgs& a) { a.row_weights = reinterpret_cast<const float*>(numbers); },
          "row_weights is given");
  refused([](GroupedUpArgs& a) { a.workspace_bytes -= 1; },
          "workspace_bytes = ", ErrorCode::workspace_too_small);
  GroupedDownArgs down;
  down.by_expert = sound.by_expert;
  down.h = sound.h;
  down.y = memory.put(std::vector<std::uint16_t>(static_cast<std::size_t>(16 * spec.hidden_size)));
  down.workspace = sound.workspace;
  down.workspace_bytes = sound.workspace_bytes;
  require_ok(blocks.down(down));
  down.row_weights = reinterpret_cast<const float*>(numbers);
  CHECK(has(blocks.down(down).error().message(), "must be null without BlocksOptions::weighted_down"));
  Blocks weighted = make(engine, spec, {.weighted_down = true});
  require_ok(weighted.bind(*c.host_weights()));
  require_ok(weighted.down(down));
  down.row_weights = nullptr;
  CHECK(has(weighted.down(down).error().message(), "row_weights is null"));
  CombineArgs combine;
  combine.tokens = 1;
  CHECK(has(blocks.combine(combine).error().message(), "slot_row is null"));
  combine.tokens = -1;
  CHECK(has(blocks.combine(combine).error().message(), "tokens = -1"));
  GatherArgs gather;
  gather.rows = 1;
  CHECK(has(blocks.gather(gather).error().message(), "row_map is null"));
  SlotRowsArgs slot_rows;
  slot_rows.tokens = 1;
  CHECK(has(blocks.slot_rows(slot_rows).error().message(), "slot_row is null"));
  // Nothing to do.
  require_ok(blocks.up({.by_expert = {.expert_offsets = numbers}}));
  require_ok(blocks.gather({}));
  require_ok(blocks.combine({}));
  auto refused_options = engine.create_blocks(spec, {.max_sms = -1});
  REQUIRE_FALSE(refused_options.ok());
  CHECK(has(refused_options.error().message(), "max_sms = -1"));
  LayerSpec weight_on_input = spec;
  weight_on_input.weight_on_input = true;
  auto twice = engine.create_blocks(weight_on_input, {.weighted_down = true});
  REQUIRE_FALSE(twice.ok());
  CHECK(has(twice.error().message(), "weighted_down"));
}
