// What a forward does on Hopper beside what it does everywhere: dependent launches, tensor maps of rows,
// tickets.
#include <cuda.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <set>
#include <utility>

#include "plan/run_fixture.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

/// Both GEMMs by one of Hopper's schedules.
struct Fixture : RunFixture {
  cuda::ContextScope current{*device};

  explicit Fixture(Schedule fc1 = Schedule::wgmma, Schedule fc2 = Schedule::wgmma) {
    kernels.config.fc1.schedule = fc1;
    kernels.config.fc2.schedule = fc2;
    kernels.config.fc1.block_m = 160;
    kernels.config.fc1.row_step = 32;
    kernels.config.fc2.block_m = 48;
    kernels.config.fc2.row_step = 8;
  }
  void set_widths(std::vector<std::int64_t> widths) {
    spec.expert_widths = std::move(widths);
    context.max_width = spec.max_width();
  }
};

bool is_zero(const abi::TensorMap& map) {
  for (const u64 word : map.opaque) {
    if (word != 0) return false;
  }
  return true;
}

fake_cuda::TensorMap read(const abi::TensorMap& map) {
  const auto made = fake_cuda::read_tensor_map(&map);
  REQUIRE(made.has_value());
  return *made;
}

/// `rows` rows of `columns` elements from `base` on, in boxes of 64 by `box`.
void check_rows(const fake_cuda::TensorMap& map, std::uint64_t base, std::uint64_t columns,
                std::uint64_t rows, std::uint32_t box) {
  CHECK(map.base == base);
  CHECK(map.size == std::vector<std::uint64_t>{columns, rows});
  CHECK(map.stride == std::vector<std::uint64_t>{columns * 2});
  CHECK(map.box == std::vector<std::uint32_t>{64, box});
  CHECK(map.swizzle == static_cast<int>(CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(map.data_type == static_cast<int>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16));
}

/// What a kernel of a forward takes for each expert's unstored tiles of h.
struct HPending {
  std::string kernel;
  std::int64_t tokens;  ///< of its chunk
  std::uint64_t address;
};

/// Of the sorts, fc1 and fc2 of every chunk.
std::vector<HPending> h_pending_of(const std::vector<fake_cuda::Launch>& launches) {
  std::vector<HPending> all;
  int gemms = 0;
  for (const auto& launch : launches) {
    if (launch.name.rfind("sort", 0) == 0) {
      const auto p = params_of<abi::SortParams>(launch);
      all.push_back({launch.name, p.tokens, address(p.h_pending)});
    } else if (launch.name == "fc1" || launch.name == "fc2") {
      REQUIRE_FALSE(all.empty());
      all.push_back({launch.name, all.back().tokens, address(params_of<abi::GemmParams>(launch).h_pending)});
      ++gemms;
    }
  }
  CHECK(gemms >= 2);
  return all;
}

}  // namespace

TEST_CASE(
    "with dependent launch every kernel of a forward may start while its predecessor ends; without it none "
    "may") {
  for (const bool dependent : {true, false}) {
    for (const bool copied : {true, false}) {
      Fixture f;
      f.context.dependent_launch = dependent;
      if (copied) f.add(Stage::gather);
      for (const auto& launches : {f.run(8), f.run(5000), f.run(5000, 1000)}) {
        CHECK(launches.size() >= 4);
        for (const auto& launch : launches) {
          CAPTURE(launch.name);
          CHECK(launch.programmatic == dependent);
        }
      }
    }
  }
}

TEST_CASE("the sort cuts rows in the steps of each GEMM; mma_sync's tiles are full") {
  const auto steps = [](Schedule fc1, Schedule fc2) {
    Fixture f(fc1, fc2);
    const auto sort = params_of<abi::SortParams>(f.run(8)[0]);
    CHECK(sort.fc1_block_m == 160);
    CHECK(sort.fc2_block_m == 48);
    return std::pair{sort.fc1_row_step, sort.fc2_row_step};
  };
  CHECK(steps(Schedule::wgmma, Schedule::wgmma) == std::pair{32, 8});
  CHECK(steps(Schedule::wgmma_pingpong, Schedule::wgmma_pingpong) == std::pair{32, 8});
  CHECK(steps(Schedule::mma_sync, Schedule::wgmma) == std::pair{160, 8});
  CHECK(steps(Schedule::wgmma, Schedule::mma_sync) == std::pair{32, 48});
  Fixture f;
  for (const auto& launch : {f.run(5000)[0], f.run(5000)[1]}) {
    CHECK(params_of<abi::SortParams>(launch).fc1_row_step == 32);
    CHECK(params_of<abi::SortParams>(launch).fc2_row_step == 8);
  }
}

TEST_CASE("the sort completes each GEMM's clusters, in one launch and in two") {
  for (const auto& [fc1, fc2] : {std::pair{1, 1}, std::pair{1, 2}, std::pair{2, 1}, std::pair{2, 2}}) {
    Fixture f;
    f.kernels.config.fc1.cluster = fc1;
    f.kernels.config.fc2.cluster = fc2;
    const auto many = f.run(5000);
    for (const auto& launch : {f.run(8)[0], many[0], many[1]}) {
      CAPTURE(launch.name);
      CHECK(params_of<abi::SortParams>(launch).fc1_cluster == fc1);
      CHECK(params_of<abi::SortParams>(launch).fc2_cluster == fc2);
    }
  }
}

TEST_CASE(
    "GEMM grids are whole clusters, one at least, and no more blocks than are resident or have a tile") {
  for (const std::int32_t sms : {1, 2, 7, 131, 132}) {
    for (const bool sm_limited : {false, true}) {
      for (const std::int32_t cluster : {1, 2}) {
        CAPTURE(sms);
        CAPTURE(sm_limited);
        CAPTURE(cluster);
        Fixture f;
        f.context.sm_count = sms;
        f.context.sm_limited = sm_limited;
        for (const Stage stage : {Stage::fc1, Stage::fc2}) f.kernels[stage].blocks_per_sm = 1;
        f.kernels.config.fc1.cluster = f.kernels.config.fc2.cluster = cluster;
        const auto blocks = [&](std::int64_t work) {
          const std::int64_t most = std::min<std::int64_t>(work, sms);
          return static_cast<unsigned>(std::max<std::int64_t>(most / cluster, 1) * cluster);
        };
        // One token: two experts with a cluster of tiles each; up to 3 column tiles of fc1, 4 of fc2.
        auto launches = f.run(1);
        CHECK(launches[1].grid[0] == blocks(2 * cluster * 3));
        CHECK(launches[2].grid[0] == blocks(2 * cluster * 4));
        launches = f.run(100000);
        CHECK(launches[2].grid[0] == blocks(sms));
        CHECK(launches[3].grid[0] == blocks(sms));
      }
    }
  }
}

TEST_CASE("fc1 counts down and fc2 waits where the sort has counted each expert's tiles") {
  for (const Schedule fc1 : {Schedule::wgmma, Schedule::wgmma_pingpong}) {
    for (const Schedule fc2 : {Schedule::wgmma, Schedule::wgmma_pingpong}) {
      Fixture f(fc1, fc2);
      f.context.dependent_launch = true;
      for (const auto& [tokens, chunk] : {std::pair{24, 24}, std::pair{10, 4}, std::pair{5000, 5000}}) {
        CAPTURE(tokens);
        for (const HPending& h : h_pending_of(f.run(tokens, chunk))) {
          CAPTURE(h.kernel);
          const auto layout = f.layout(h.tokens);
          CHECK(h.address == f.in_workspace(layout.h_pending));
          CHECK(layout.h_pending + 6 * sizeof(i32) <= layout.total_bytes);
        }
      }
    }
  }
}

TEST_CASE("fc2 follows all of fc1, and nobody counts, where any one condition of an early start fails") {
  const std::pair<const char*, std::function<void(Fixture&)>> failures[] = {
      {"launches are not dependent", [](Fixture& f) { f.context.dependent_launch = false; }},
      {"fc1 by mma_sync", [](Fixture& f) { f.kernels.config.fc1.schedule = Schedule::mma_sync; }},
      {"fc2 by mma_sync", [](Fixture& f) { f.kernels.config.fc2.schedule = Schedule::mma_sync; }},
      {"a copy of x lies where fc2 writes", [](Fixture& f) { f.add(Stage::gather); }},
      {"the layer is held to few SMs", [](Fixture& f) { f.context.sm_limited = true; }},
  };
  for (const auto& [what, fail] : failures) {
    CAPTURE(what);
    Fixture f;
    f.context.dependent_launch = true;
    fail(f);
    for (const std::int64_t tokens : {24, 5000}) {
      for (const HPending& h : h_pending_of(f.run(tokens))) {
        CAPTURE(h.kernel);
        CHECK(h.address == 0);
      }
    }
  }
}

TEST_CASE("fc2 by wgmma reads h by box: the chunk's rows, whole stages of each") {
  for (const Schedule schedule : {Schedule::wgmma, Schedule::wgmma_pingpong}) {
    Fixture f(Schedule::wgmma, schedule);
    f.set_widths({64, 72, 200, 64, 8, 200});
    for (const std::int32_t block_m : {8, 16, 48, 160}) {
      f.kernels.config.fc2.block_m = block_m;
      const auto launches = f.run(24);
      const auto fc1 = params_of<abi::GemmParams>(launches[1]), fc2 = params_of<abi::GemmParams>(launches[2]);
      const std::uint32_t box = block_m % 32 == 0 ? 32 : block_m % 16 == 0 ? 16 : 8;
      check_rows(read(fc2.row_map), f.in_workspace(f.layout(24).h), 256, 48, box);
      CHECK(address(fc2.a) == f.in_workspace(f.layout(24).h));
      CHECK(fc2.a_stride == 256);
      CHECK(fc1.out_stride == 256);
      CHECK(is_zero(fc1.row_map));  // it gathers rows itself
    }
  }
}

TEST_CASE("fc1 by wgmma reads a copied x by box, an ungathered one by row") {
  Fixture f;
  f.args.x_stride = 512;
  CHECK(is_zero(params_of<abi::GemmParams>(f.run(24)[1]).row_map));
  f.add(Stage::gather);
  f.kernels.config.fc1.gather = GatherMode::copy;
  const auto fc1 = params_of<abi::GemmParams>(f.run(24)[2]);
  check_rows(read(fc1.row_map), f.in_workspace(f.layout(24).y), 256, 48, 32);
  CHECK(address(fc1.a) == f.in_workspace(f.layout(24).y));
  CHECK(fc1.a_stride == 256);
}

TEST_CASE("a gathered x beyond 64 GiB is refused; a copied one is not, nor one that fits") {
  Fixture f;
  // 24 tokens; the gather counts rows' beginnings in 32 bits of 16 bytes.
  const std::int64_t most = std::int64_t{UINT32_MAX} / 24 * 8;
  f.args.x_stride = most;
  CHECK(f.run(24).size() == 4);
  f.args.x_stride = most + 8;
  f.args.tokens = 24;
  const Status refused = plan::run(f.context, f.kernels, f.args, 24);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code() == ErrorCode::unsupported);
  CHECK(contains(refused.error().message(), "64 GiB"));
  CHECK(contains(refused.error().message(), "max_workspace_bytes"));
  f.add(Stage::gather);
  f.kernels.config.fc1.gather = GatherMode::copy;
  CHECK(f.run(24).size() == 5);
}

TEST_CASE("mma_sync encodes nothing, with a copied x or without") {
  Fixture f(Schedule::mma_sync, Schedule::mma_sync);
  f.kernels.config.fc2.block_m = 64;
  f.run(24);
  f.add(Stage::gather);
  f.run(24);
  CHECK(fake_cuda::calls("cuTensorMapEncodeTiled") == 0);
}

TEST_CASE("each chunk's map ends at the chunk's rows") {
  Fixture f;
  const auto launches = f.run(10, 4);
  REQUIRE(launches.size() == 12);
  for (std::size_t chunk = 0; chunk < 3; ++chunk) {
    const auto fc2 = params_of<abi::GemmParams>(launches[4 * chunk + 2]);
    const std::int64_t tokens = chunk < 2 ? 4 : 2;
    check_rows(read(fc2.row_map), f.in_workspace(f.layout(tokens).h), 192,
               static_cast<std::uint64_t>(tokens) * 2, 16);
  }
}

TEST_CASE("rows of fp16 layers are fp16 to the copy engine") {
  Fixture f;
  f.spec.dtype = DType::fp16;
  const auto map = read(params_of<abi::GemmParams>(f.run(8)[2]).row_map);
  CHECK(map.data_type == static_cast<int>(CU_TENSOR_MAP_DATA_TYPE_FLOAT16));
}

TEST_CASE("each GEMM has its own weight maps and its own tickets") {
  Fixture f;
  const auto launches = f.run(8);
  const auto fc1 = params_of<abi::GemmParams>(launches[1]), fc2 = params_of<abi::GemmParams>(launches[2]);
  const plan::ExpertTableLayout table(6);
  CHECK(address(fc1.weight_maps) == RunFixture::kTable + table.fc1_maps);
  CHECK(address(fc2.weight_maps) == RunFixture::kTable + table.fc2_maps);
  const std::uint64_t counts = f.in_workspace(f.layout(8).tile_counts);
  CHECK(address(fc1.tile_counts) == counts);
  CHECK(address(fc1.tickets) == counts + offsetof(abi::TileCounts, fc1_tickets));
  CHECK(address(fc2.tickets) == counts + offsetof(abi::TileCounts, fc2_tickets));
}

TEST_CASE("a map that the driver refuses ends the forward with its error") {
  Fixture f;
  f.args.tokens = 8;
  fake_cuda::fail("cuTensorMapEncodeTiled", CUDA_ERROR_INVALID_VALUE);
  const Status status = plan::run(f.context, f.kernels, f.args, 8);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::device_error);
  CHECK(contains(status.error().message(), "cuTensorMapEncodeTiled"));
  CHECK(names_of(fake_cuda::launches()) == Names{"sort_single", "fc1"});
}
