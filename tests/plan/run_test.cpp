#include "plan/run_fixture.hpp"

#include <cuda.h>

#include "plan/sort_grid.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

using Fixture = RunFixture;

const Names kSmall = {"sort_single", "fc1", "fc2", "combine"};
const Names kLarge = {"sort_count", "sort_scatter", "fc1", "fc2", "combine"};

}  // namespace

TEST_CASE("few rows: one sort, fc1, fc2, combine, each with its kernel's threads and shared memory") {
  Fixture f;
  const auto launches = f.run(8);
  REQUIRE(names_of(launches) == kSmall);
  const Stage stages[] = {Stage::sort_single, Stage::fc1, Stage::fc2, Stage::combine};
  for (std::size_t i = 0; i < 4; ++i) {
    const plan::LoadedKernel& kernel = f.kernels[stages[i]];
    CHECK(launches[i].block[0] == static_cast<unsigned>(kernel.block_threads));
    CHECK(launches[i].dynamic_smem == static_cast<unsigned>(kernel.dynamic_smem_bytes));
    CHECK(launches[i].stream == f.stream.handle());
    CHECK(launches[i].grid[1] == 1);
    CHECK(launches[i].grid[2] == 1);
  }
  CHECK(launches[0].grid[0] == 1);
  // Launches and nothing else: no allocation, copy or synchronisation.
  for (const std::string& call : fake_cuda::call_log()) CHECK(call == "cuLaunchKernelEx");
}

TEST_CASE("so few tokens as the whole-layer kernel takes are one launch, over all SMs; more are not") {
  Fixture f;
  f.add(Stage::whole_layer);
  f.kernels.config.one_launch.max_tokens = 8;
  f.context.nonce = 0x1234567890abcdeeu;
  f.args.id_type = IdType::int64;
  f.args.x_stride = 320;
  f.args.accumulate = true;
  for (const std::int64_t tokens : {1, 8}) {
    const auto launches = f.run(tokens);
    REQUIRE(names_of(launches) == Names{"whole_layer"});
    CHECK(launches[0].grid[0] == static_cast<unsigned>(f.kSms));
    const auto p = params_of<abi::LayerParams>(launches[0]);
    const auto layout = f.layout(tokens);
    CHECK(p.x == f.args.x);
    CHECK(p.out == f.args.out);
    CHECK(p.topk_ids == f.args.topk_ids);
    CHECK(p.topk_weights == f.args.topk_weights);
    CHECK(address(p.h) == f.in_workspace(layout.h));
    CHECK(address(p.control) == f.in_workspace(layout.layer_control));
    CHECK(p.nonce == f.context.nonce);
    CHECK(p.x_stride == 320);
    CHECK(p.out_stride == 256);
    CHECK(p.h_stride == 192);
    CHECK(p.tokens == tokens);
    CHECK(p.ids_are_64bit == 1);
    CHECK(p.accumulate == 1);
  }
  CHECK(names_of(f.run(9)) == kSmall);
  // Chunks each are few enough; the last is a token that begins at the eighth.
  const auto chunked = f.run(9, 8);
  REQUIRE(names_of(chunked) == Names{"whole_layer", "whole_layer"});
  const auto last = params_of<abi::LayerParams>(chunked[1]);
  CHECK(last.token_begin == 8);
  CHECK(last.tokens == 1);
  CHECK(address(last.x) == address(f.args.x) + 8 * 320 * 2);
  CHECK(address(last.topk_ids) == address(f.args.topk_ids) + 8 * 2 * 8);
  f.context.sm_count = 300;
  CHECK(f.run(1)[0].grid[0] == static_cast<unsigned>(abi::kMaxLayerBlocks));
}

TEST_CASE("an expert map goes to every sort and to the whole-layer kernel, which writes all rows") {
  Fixture f;
  static const std::int32_t map[12] = {};
  f.add(Stage::whole_layer);
  f.kernels.config.one_launch.max_tokens = 8;
  const auto none = params_of<abi::LayerParams>(f.run(8)[0]);
  CHECK(none.expert_map == nullptr);
  f.args.expert_map = map;
  f.args.num_global_experts = 12;
  const auto whole = params_of<abi::LayerParams>(f.run(8)[0]);
  CHECK(whole.expert_map == map);
  CHECK(whole.global_experts == 12);
  const auto large = f.run(4000);
  REQUIRE(names_of(large) == kLarge);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(params_of<abi::SortParams>(large[i]).expert_map == map);
    CHECK(params_of<abi::SortParams>(large[i]).global_experts == 12);
  }
  CHECK(params_of<abi::CombineParams>(large.back()).keep_absent == 0);
  // Rows that stay as they are: kernel by kernel.
  f.args.absent_tokens = AbsentTokens::untouched;
  const auto kept = f.run(8);
  REQUIRE(names_of(kept) == kSmall);
  CHECK(params_of<abi::CombineParams>(kept.back()).keep_absent == 1);
}

TEST_CASE("biases and weights on the input: their addresses, of layers that have them alone") {
  Fixture f;
  auto launches = f.run(16);
  CHECK(params_of<abi::SortParams>(launches[0]).row_weight == nullptr);
  CHECK(params_of<abi::GemmParams>(launches[1]).biases == nullptr);
  CHECK(params_of<abi::GemmParams>(launches[1]).row_weight == nullptr);
  f.spec.bias = f.spec.weight_on_input = true;
  launches = f.run(32, 16);
  REQUIRE(launches.size() == 8);
  const plan::ExpertTableLayout table(f.spec.num_experts());
  const auto layout = f.layout(16);
  CHECK(layout.row_weight >= layout.slot_row + 16 * 2 * 4);
  CHECK(layout.h >= layout.row_weight + 16 * 2 * 4);
  for (std::size_t chunk = 0; chunk < 2; ++chunk) {
    const auto sort = params_of<abi::SortParams>(launches[4 * chunk]);
    CHECK(address(sort.topk_weights) == address(f.args.topk_weights) + chunk * 16 * 2 * 4);
    CHECK(address(sort.row_weight) == f.in_workspace(layout.row_weight));
    for (std::size_t i = 1; i < 3; ++i) {
      const auto gemm = params_of<abi::GemmParams>(launches[4 * chunk + i]);
      CHECK(address(gemm.biases) == f.kTable + table.biases);
      CHECK(address(gemm.row_weight) == f.in_workspace(layout.row_weight));
    }
  }
}

TEST_CASE("many rows: the sort is two launches, over the same blocks of slots") {
  Fixture f;
  CHECK(names_of(f.run(1536)) == kSmall);  // 3072 rows: the last that one block sorts
  for (const std::int64_t tokens : {1537, 50000, 1000000}) {
    const auto launches = f.run(tokens);
    REQUIRE(names_of(launches) == kLarge);
    const plan::SortGrid grid(tokens * 2);
    for (std::size_t i = 0; i < 2; ++i) {
      // The second has one block more, which writes the tile lists.
      CHECK(launches[i].grid[0] == static_cast<unsigned>(grid.blocks) + i);
      CHECK(params_of<abi::SortParams>(launches[i]).slots_per_block == grid.slots_per_block);
    }
  }
}

TEST_CASE("many rows on a set without the two-launch sort go through one block") {
  Fixture f;
  f.kernels[Stage::sort_count] = f.kernels[Stage::sort_scatter] = {};
  CHECK(names_of(f.run(5000)) == kSmall);
}

TEST_CASE("a set with the gather kernel copies x between sort and fc1, which then reads the copy") {
  Fixture f;
  f.args.x_stride = 512;
  f.args.out_stride = 264;
  const auto fused = params_of<abi::GemmParams>(f.run(16)[1]);
  CHECK(fused.a == f.args.x);
  CHECK(fused.a_stride == 512);
  f.add(Stage::gather);
  const auto launches = f.run(16);
  REQUIRE(names_of(launches) == Names{"sort_single", "gather", "fc1", "fc2", "combine"});
  const auto layout = f.layout(16);
  const auto gather = params_of<abi::GatherParams>(launches[1]);
  CHECK(gather.x == f.args.x);
  CHECK(gather.x_stride == 512);
  CHECK(address(gather.out) == f.in_workspace(layout.y));
  const auto fc1 = params_of<abi::GemmParams>(launches[2]);
  CHECK(fc1.a == gather.out);
  CHECK(fc1.a_stride == 256);
  CHECK(params_of<abi::CombineParams>(launches[4]).out_stride == 264);
}

TEST_CASE(
    "GEMM grids are the resident blocks, or the most tiles that the rows can make where those are fewer") {
  Fixture f;
  // One token: two rows, two row tiles; fc1 (gated, 64 columns of h a tile) has up to 3 column tiles, fc2
  // (64 of 256) has 4.
  auto launches = f.run(1);
  CHECK(launches[1].grid[0] == 2 * 3);
  CHECK(launches[2].grid[0] == 2 * 4);
  launches = f.run(100000);
  CHECK(launches[2].grid[0] == static_cast<unsigned>(f.resident(Stage::fc1)));
  CHECK(launches[3].grid[0] == static_cast<unsigned>(f.resident(Stage::fc2)));
}

TEST_CASE("combine covers every chunk of out once; a layer held to fewer SMs keeps to its resident blocks") {
  Fixture f;
  const auto threads = static_cast<std::int64_t>(f.kernels[Stage::combine].block_threads);
  for (const std::int64_t tokens : {1, 8, 9, 100000}) {
    CHECK(f.run(tokens).back().grid[0] == static_cast<unsigned>((tokens * 256 / 8 + threads - 1) / threads));
  }
  f.context.sm_limited = true;
  CHECK(f.run(100000).back().grid[0] == static_cast<unsigned>(f.resident(Stage::combine)));
  CHECK(f.run(1).back().grid[0] == 1);
}

TEST_CASE("chunks: each runs the whole sequence on its tokens, ids, weights and rows of out") {
  for (const bool wide : {false, true}) {
    Fixture f;
    f.args.id_type = wide ? IdType::int64 : IdType::int32;
    f.args.out_stride = 512;
    f.args.accumulate = true;
    f.args.token_count = reinterpret_cast<const std::int32_t*>(0x70000000);
    const auto launches = f.run(10, 4);
    Names expected;
    for (int c = 0; c < 3; ++c) expected.insert(expected.end(), kSmall.begin(), kSmall.end());
    REQUIRE(names_of(launches) == expected);
    for (std::size_t c = 0; c < 3; ++c) {
      const auto sort = params_of<abi::SortParams>(launches[4 * c]);
      const auto fc1 = params_of<abi::GemmParams>(launches[4 * c + 1]);
      const auto combine = params_of<abi::CombineParams>(launches[4 * c + 3]);
      const std::uint64_t begin = 4 * c;
      CHECK(sort.tokens == (c < 2 ? 4 : 2));
      CHECK(sort.token_begin == static_cast<i32>(begin));
      CHECK(sort.ids_are_64bit == (wide ? 1 : 0));
      CHECK(address(sort.topk_ids) == address(f.args.topk_ids) + begin * 2 * (wide ? 8 : 4));
      CHECK(address(sort.token_count) == 0x70000000);
      CHECK(address(fc1.a) == address(f.args.x) + begin * 256 * 2);
      CHECK(address(combine.topk_weights) == address(f.args.topk_weights) + begin * 2 * 4);
      CHECK(combine.tokens == sort.tokens);
      CHECK(combine.token_begin == sort.token_begin);
      CHECK(address(combine.out) == address(f.args.out) + begin * 512 * 2);
      CHECK(address(combine.token_count) == 0x70000000);
      CHECK(combine.accumulate == 1);
    }
  }
}

TEST_CASE("the stages hand each other what the workspace layout says") {
  Fixture f;
  const auto launches = f.run(5000);
  REQUIRE(names_of(launches) == kLarge);
  const auto layout = f.layout(5000);
  const auto at = [&](const void* p, std::size_t offset) { return address(p) == f.in_workspace(offset); };
  const plan::ExpertTableLayout table(6);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto sort = params_of<abi::SortParams>(launches[i]);
    CHECK(address(sort.experts) == Fixture::kTable + table.entries);
    CHECK(address(sort.expert_order) == Fixture::kTable + table.order);
    CHECK(address(sort.class_begin) == Fixture::kTable + table.class_begin);
    CHECK(at(sort.expert_offsets, layout.expert_offsets));
    CHECK(at(sort.row_source, layout.row_source));
    CHECK(at(sort.slot_row, layout.slot_row));
    CHECK(at(sort.block_histogram, layout.block_histogram));
    CHECK(at(sort.fc1_tiles, layout.fc1_tiles));
    CHECK(at(sort.fc2_tiles, layout.fc2_tiles));
    CHECK(at(sort.tile_counts, layout.tile_counts));
    CHECK(sort.fc1_tile_prefix == nullptr);  // it is the runtime-width kernels'
    CHECK(sort.fc1_block_m == 64);
    CHECK(sort.fc2_block_m == 32);
    CHECK(sort.fc1_tile_columns == 64);  // half of block_n: gated
    CHECK(sort.classes == 3);
  }
  const auto fc1 = params_of<abi::GemmParams>(launches[2]), fc2 = params_of<abi::GemmParams>(launches[3]);
  CHECK(at(fc1.tiles, layout.fc1_tiles));
  CHECK(at(fc1.out, layout.h));
  CHECK(fc1.out_stride == 192);
  CHECK(at(fc2.tiles, layout.fc2_tiles));
  CHECK(fc2.a == fc1.out);
  CHECK(fc2.a_stride == fc1.out_stride);
  CHECK(at(fc2.out, layout.y));
  CHECK(fc2.out_stride == 256);
  for (const auto& gemm : {fc1, fc2}) {
    CHECK(at(gemm.tile_counts, layout.tile_counts));
    CHECK(at(gemm.row_source, layout.row_source));
    CHECK(at(gemm.expert_offsets, layout.expert_offsets));
    CHECK(at(gemm.tile_prefix, layout.fc1_tile_prefix));
    CHECK(address(gemm.experts) == Fixture::kTable + table.entries);
    CHECK(address(gemm.expert_order) == Fixture::kTable + table.order);
  }
  const auto combine = params_of<abi::CombineParams>(launches[4]);
  CHECK(combine.y == fc2.out);
  CHECK(at(combine.slot_row, layout.slot_row));
  CHECK(combine.out_stride == 256);
  CHECK(combine.accumulate == 0);
  CHECK(combine.token_count == nullptr);
}

TEST_CASE("runtime widths: the sort sees one class of all and sums fc1's output tiles") {
  Fixture f;
  f.kernels.runtime_width = true;
  f.context.classes = 17;  // more than TileCounts has places for
  const auto sort = params_of<abi::SortParams>(f.run(8)[0]);
  CHECK(sort.classes == 1);
  CHECK(address(sort.class_begin) == Fixture::kTable + plan::ExpertTableLayout(6).one_class);
  CHECK(address(sort.fc1_tile_prefix) == f.in_workspace(f.layout(8).fc1_tile_prefix));
  CHECK(sort.fc1_tile_columns == 64);
}

TEST_CASE("more routed rows at a time than 31 bits count are refused before anything is launched") {
  Fixture f;
  f.args.tokens = std::int64_t{1} << 30;
  const Status status = plan::run(f.context, f.kernels, f.args, f.args.tokens);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::unsupported);
  CHECK(contains(status.error().message(), "max_workspace_bytes"));
  CHECK(fake_cuda::launches().empty());
}

TEST_CASE("a launch that fails ends the forward with its error") {
  for (int skip = 0; skip < 8; ++skip) {
    Fixture f;
    f.args.tokens = 10;
    fake_cuda::fail("cuLaunchKernelEx", CUDA_ERROR_ILLEGAL_ADDRESS, skip);
    const Status status = plan::run(f.context, f.kernels, f.args, 5);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::device_error);
    CHECK(contains(status.error().message(), "cuLaunchKernelEx"));
    CHECK(fake_cuda::launches().size() == static_cast<std::size_t>(skip));
  }
}
