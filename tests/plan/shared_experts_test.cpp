// Shared experts on their way through table, workspace and launches.
#include "model/config_space.hpp"
#include "plan/device_table.hpp"
#include "plan/run_fixture.hpp"
#include "plan/sort_grid.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

struct Fixture : RunFixture {
  explicit Fixture(bool gate) {
    spec.shared_widths = {320, 64};
    spec.shared_gate = gate;
    context.max_width = spec.widest_of_all();
    context.classes = 4;
  }
};

const void* at(std::uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}

}  // namespace

TEST_CASE("the table holds the shared experts after the routed ones, and the gate's address") {
  LayerSpec spec = uniform_spec(128, 3, 64, 2);
  spec.expert_widths = {64, 192, 64};
  spec.shared_widths = {192, 256};
  spec.shared_gate = true;
  auto weights = Weights::blocks(spec, at(0x100000), at(0x200000));
  REQUIRE(weights.ok());
  CHECK_FALSE(plan::make_expert_table(spec, *weights).ok());
  REQUIRE(weights->set_shared_blocks(spec, at(0x300000), at(0x400000), at(0x500000)).ok());
  const auto bytes = plan::make_expert_table(spec, *weights);
  REQUIRE(bytes.ok());
  const DeviceTable table = take_apart(*bytes, 5);
  CHECK(table.entries[1].gate == 0x100000 + 2 * 64 * 128 * 2);
  CHECK(table.entries[3].gate == 0x300000);
  CHECK(table.entries[3].down == 0x400000);
  CHECK(table.entries[3].width == 192);
  CHECK(table.entries[3].width_class == table.entries[1].width_class);
  CHECK(table.entries[4].gate == 0x300000 + 2 * 192 * 128 * 2);
  CHECK(table.entries[4].width == 256);
  CHECK(table.entries[4].width_class == 0);
  CHECK(table.order == std::vector<i32>{4, 1, 3, 0, 2});
  CHECK(table.class_begin[1] == 1);
  CHECK(table.class_begin[2] == 3);
  CHECK(table.class_begin[3] == 5);
  CHECK(table.one_class == std::vector<i32>{0, 5});
  const plan::ExpertTableLayout layout(5);
  CHECK(layout.shared_gate % 8 == 0);
  u64 gate = 0;
  std::memcpy(&gate, bytes->data() + layout.shared_gate, sizeof gate);
  CHECK(gate == 0x500000);
}

TEST_CASE("the workspace has room for the rows of shared experts, and the weights of a gate") {
  LayerSpec spec = uniform_spec(256, 8, 64, 2), plain = uniform_spec(256, 10, 64, 4);
  spec.shared_widths = {64, 64};
  const auto of = [](const LayerSpec& s, std::int64_t tokens) {
    return plan::workspace_layout(s, nullptr, tokens);
  };
  CHECK(of(spec, 1000).total_bytes == of(plain, 1000).total_bytes);
  spec.shared_gate = true;
  const auto layout = of(spec, 1000);
  CHECK(layout.shared_weight % 256 == 0);
  CHECK(layout.h - layout.shared_weight >= 4000);
  CHECK(layout.total_bytes >= of(plain, 1000).total_bytes + 4000);
  // h's rows are as wide as the widest of all.
  spec.shared_widths = {64, 512};
  const auto wide = of(spec, 1000);
  CHECK(wide.y - wide.h == 4000 * 512 * 2);
}

TEST_CASE(
    "shared experts without a gate: rows, grids and pointers count all slots, ids and weights the routed") {
  Fixture f(false);
  f.kernels.config.sort.single_block_rows = 3072;
  const auto launches = f.run(700, 400);
  REQUIRE(names_of(launches) ==
          Names{"sort_single", "fc1", "fc2", "combine", "sort_single", "fc1", "fc2", "combine"});
  CHECK(launches[0].grid[0] == 1);
  const auto second = params_of<abi::SortParams>(launches[4]);
  CHECK(second.sort_blocks == 1);
  CHECK(second.x == nullptr);
  CHECK(second.shared_weight == nullptr);
  CHECK(address(second.topk_ids) == address(f.args.topk_ids) + 400 * 2 * 4);
  CHECK(second.classes == 4);
  const auto combine = params_of<abi::CombineParams>(launches[7]);
  CHECK(address(combine.topk_weights) == address(f.args.topk_weights) + 400 * 2 * 4);
  CHECK(combine.shared_weight == nullptr);
  const auto fc1 = params_of<abi::GemmParams>(launches[1]);
  CHECK(fc1.out_stride == model::h_columns(320));
  // 4 slots a token: 3073 rows are two launches.
  CHECK(names_of(f.run(768))[0] == "sort_single");
  CHECK(names_of(f.run(769))[0] == "sort_count");
}

TEST_CASE("up alone: sort and fc1 write where the caller says, and nobody counts or weighs") {
  Fixture f(true);
  UpArgs up;
  up.tokens = 100;
  up.x = f.args.x;
  up.topk_ids = f.args.topk_ids;
  up.workspace = f.args.workspace;
  up.stream = f.args.stream;
  up.h = reinterpret_cast<void*>(0x70000000);
  up.expert_offsets = reinterpret_cast<i32*>(0x71000000);
  up.slot_row = reinterpret_cast<i32*>(0x72000000);
  fake_cuda::clear_launches();
  REQUIRE(plan::run_up(f.context, f.kernels, up).ok());
  auto launches = fake_cuda::launches();
  REQUIRE(names_of(launches) == Names{"sort_single", "fc1"});
  CHECK(launches[0].grid[0] == 1);
  const auto sort = params_of<abi::SortParams>(launches[0]);
  CHECK(sort.expert_offsets == up.expert_offsets);
  CHECK(sort.slot_row == up.slot_row);
  CHECK(sort.h_pending == nullptr);
  CHECK(sort.shared_weight == nullptr);
  const auto fc1 = params_of<abi::GemmParams>(launches[1]);
  CHECK(fc1.out == up.h);
  CHECK(fc1.out_stride == 320);
  CHECK(fc1.expert_offsets == up.expert_offsets);
  CHECK(fc1.h_pending == nullptr);
  CHECK(address(fc1.row_source) == f.in_workspace(f.layout(100).row_source));

  f.add(Stage::gather);
  f.add(Stage::whole_layer);
  f.kernels.config.one_launch.max_tokens = 8;
  up.h_stride = 328;
  up.tokens = 8;
  fake_cuda::clear_launches();
  REQUIRE(plan::run_up(f.context, f.kernels, up).ok());
  launches = fake_cuda::launches();
  REQUIRE(names_of(launches) == Names{"sort_single", "gather", "fc1"});
  CHECK(params_of<abi::GemmParams>(launches[2]).out_stride == 328);
}

TEST_CASE("a shared gate adds blocks to the sort's first kernel, as many as tokens or SMs") {
  Fixture f(true);
  f.args.x_stride = 320;
  for (const std::int64_t tokens : {1, 100, 500}) {
    const auto launches = f.run(tokens);
    REQUIRE(names_of(launches) == Names{"sort_single", "fc1", "fc2", "combine"});
    CHECK(launches[0].grid[0] == 1 + std::min<std::int64_t>(tokens, f.kSms));
    const auto sort = params_of<abi::SortParams>(launches[0]);
    const auto layout = f.layout(tokens);
    CHECK(sort.sort_blocks == 1);
    CHECK(sort.x == f.args.x);
    CHECK(sort.x_stride == 320);
    CHECK(address(sort.shared_gate) == f.kTable + plan::ExpertTableLayout(8).shared_gate);
    CHECK(address(sort.shared_weight) == f.in_workspace(layout.shared_weight));
    CHECK(params_of<abi::CombineParams>(launches[3]).shared_weight == sort.shared_weight);
  }
  const auto launches = f.run(5000);
  REQUIRE(names_of(launches)[0] == "sort_count");
  const plan::SortGrid grid(5000 * 4);
  CHECK(params_of<abi::SortParams>(launches[0]).sort_blocks == grid.blocks);
  CHECK(launches[0].grid[0] == grid.blocks + f.kSms);
  CHECK(launches[1].grid[0] == grid.blocks + 1);
}
