// Kernels of Hopper's main loop: what they are launched with, what they are called, which instructions they
// spell.
#include <functional>
#include <regex>
#include <set>
#include <utility>

#include "emit/emit_case.hpp"
#include "model/config_space.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

constexpr Stage kGemmStages[] = {Stage::fc1, Stage::fc2};

model::GemmStage gemm_stage(Stage stage) {
  return stage == Stage::fc1 ? model::GemmStage::fc1 : model::GemmStage::fc2;
}

/// Every layout that the main loop treats apart.
std::vector<LayerSpec> layouts() {
  std::vector<LayerSpec> all;
  for (const Activation activation : {Activation::silu_mul, Activation::relu2}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        for (const DType dtype : {DType::bf16, DType::fp16}) {
          LayerSpec spec = pruned_spec();
          spec.activation = activation;
          spec.fc1_layout = spec.fc2_layout = layout;
          spec.gate_order = order;
          spec.dtype = dtype;
          all.push_back(spec);
        }
      }
    }
  }
  return all;
}

std::string name_of(const LayerSpec& spec, const KernelRequest& request) {
  const std::string full = must_emit(spec, request).entry_name;
  return full.substr(0, full.size() - 17);  // "_" and the digest
}

/// (N, element, whether A is transposed) of each Wgmma that the text defines, in order.
std::vector<std::string> instructions(const std::string& text) {
  static const std::regex kDefinition("struct varmoe::ptx::Wgmma<([^>]*)>");
  std::vector<std::string> all;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), kDefinition); it != std::sregex_iterator();
       ++it)
    all.push_back((*it)[1]);
  return all;
}

}  // namespace

TEST_CASE(
    "wgmma kernels: a producer warpgroup and two consumers, one block an SM, the shared memory of the host's "
    "reckoning") {
  for (const LayerSpec& spec : layouts()) {
    for (const Schedule schedule : kHopperSchedules) {
      for (const Stage stage : kGemmStages) {
        for (const auto& [gather, cluster] :
             {std::pair{GatherMode::fused, 1}, std::pair{GatherMode::copy, 1},
              std::pair{GatherMode::fused, 2}, std::pair{GatherMode::copy, 2}}) {
          KernelRequest request = wgmma_request(stage, schedule);
          request.gemm.gather = gather;
          request.gemm.cluster = cluster;
          const EmittedKernel kernel = must_emit(spec, request);
          CAPTURE(kernel.entry_name);
          CHECK(kernel.block_threads == 384);
          CHECK(kernel.ctas_per_sm == 1);
          CHECK(contains(kernel.text, "__launch_bounds__(384, 1) "));
          CHECK(contains(kernel.text, "__cluster_dims__(2, 1, 1) ") == (cluster == 2));
          CHECK(contains(kernel.text, "__cluster_dims__") == (cluster == 2));
          CHECK(contains(kernel.text, "kCluster = " + std::to_string(cluster) + ","));
          const std::int64_t bytes = model::wgmma_smem_bytes(spec, gemm_stage(stage), request.gemm);
          CHECK(kernel.dynamic_smem_bytes == bytes);
          CHECK(contains(kernel.text, "Sm90Shared<Config>::kBytes == " + std::to_string(bytes) + ","));
          CHECK(
              contains(kernel.text, std::string("#include \"moe/") + emit::to_string(stage) + "_sm90.cuh\""));
        }
      }
    }
  }
}

TEST_CASE("wgmma shared memory: ring, two groups' staging, tile slots, offsets of gathered rows, barriers") {
  KernelRequest request = wgmma_request(Stage::fc1, Schedule::wgmma);
  request.gemm.block_m = 256;
  request.gemm.block_n = 128;
  request.gemm.stages = 4;
  const auto bytes = [&](const LayerSpec& spec, Stage stage) {
    request.stage = stage;
    return must_emit(spec, request).dynamic_smem_bytes;
  };
  const std::int32_t ring = 4 * (256 + 128) * 64 * 2, slots = 4 * 32, offsets = 4 * 256 * 4;
  const std::int32_t barriers = (4 + 4 + 4 + 4 + 2) * 8, known = 4 * 8;
  LayerSpec plain = pruned_spec();
  plain.activation = Activation::relu2;
  // A group's 64 weight rows are 32 columns of a gated h and 64 of a plain one or of y; two buffers of 32
  // rows each.
  CHECK(bytes(pruned_spec(), Stage::fc1) == ring + 2 * 2 * 32 * 32 * 2 + slots + offsets + barriers + known);
  CHECK(bytes(plain, Stage::fc1) == ring + 2 * 2 * 32 * 64 * 2 + slots + offsets + barriers + known);
  CHECK(bytes(pruned_spec(), Stage::fc2) == ring + 2 * 2 * 32 * 64 * 2 + slots + barriers);
  request.gemm.gather = GatherMode::copy;
  CHECK(bytes(pruned_spec(), Stage::fc1) == ring + 2 * 2 * 32 * 32 * 2 + slots + barriers);
  // The second block of a cluster is told its tickets: eight barriers and as many places of four bytes.
  request.gemm.cluster = 2;
  CHECK(bytes(pruned_spec(), Stage::fc1) == ring + 2 * 2 * 32 * 32 * 2 + slots + barriers + 8 * (8 + 4));
  CHECK(bytes(pruned_spec(), Stage::fc2) == ring + 2 * 2 * 32 * 64 * 2 + slots + barriers + 8 * (8 + 4));
}

TEST_CASE("wgmma staging: buffers of 32 rows, but of 16 where a group has more than 64 columns") {
  LayerSpec plain = pruned_spec();
  plain.activation = Activation::relu2;
  struct Case {
    Schedule schedule;
    std::int32_t block_n;
    // Columns of one group: of a gated h, and of a plain one or of y.
    std::int32_t gated, plain;
  };
  for (const Case& c :
       {Case{Schedule::wgmma, 128, 32, 64}, Case{Schedule::wgmma, 256, 64, 128},
        Case{Schedule::wgmma_pingpong, 64, 32, 64}, Case{Schedule::wgmma_pingpong, 128, 64, 128}}) {
    CAPTURE(c.block_n);
    const auto check = [&](const LayerSpec& spec, Stage stage, std::int32_t columns) {
      KernelRequest request = wgmma_request(stage, c.schedule);
      request.gemm.block_n = c.block_n;
      const std::int32_t staging = 2 * (columns > 64 ? 16 : 32) * columns * 2;
      CHECK(staging <= 2 * 4096);
      CHECK(model::wgmma_staging_bytes(spec, gemm_stage(stage), request.gemm) == staging);
      CHECK(contains(must_emit(spec, request).text, "kStagingBytes = " + std::to_string(staging) + ";"));
    };
    check(pruned_spec(), Stage::fc1, c.gated);
    check(plain, Stage::fc1, c.plain);
    check(pruned_spec(), Stage::fc2, c.plain);
  }
}

TEST_CASE("wgmma kernels carry the schedule in their names") {
  const LayerSpec spec = pruned_spec();
  KernelRequest tall = wgmma_request(Stage::fc1, Schedule::wgmma);
  CHECK(name_of(spec, tall) == "varmoe_fc1_wgmma_m128n256s3r8t16");
  tall.gemm.gather = GatherMode::copy;
  tall.runtime_width = true;
  CHECK(name_of(spec, tall) == "varmoe_fc1_wgmma_m128n256s3r8t16_copied_anywidth");
  tall.stage = Stage::fc2;
  CHECK(name_of(spec, tall) == "varmoe_fc2_wgmma_m128n256s3r8t16_anywidth");
  CHECK(name_of(spec, wgmma_request(Stage::fc2, Schedule::wgmma_pingpong)) ==
        "varmoe_fc2_wgmma_pingpong_m128n128s3r8t16");
  for (const Stage stage : kGemmStages) {
    KernelRequest cluster = wgmma_request(stage, Schedule::wgmma);
    cluster.gemm.cluster = 2;
    const std::string name = std::string("varmoe_") + emit::to_string(stage) + "_wgmma_m128n256s3r8t16c2";
    CHECK(name_of(spec, cluster) == name);
    cluster.gemm.gather = GatherMode::copy;
    cluster.runtime_width = true;
    CHECK(name_of(spec, cluster) == name + (stage == Stage::fc1 ? "_copied_anywidth" : "_anywidth"));
  }
}

TEST_CASE("fault 37: each field of a wgmma config changes its kernel's text and name") {
  struct Change {
    const char* what;
    std::function<void(KernelRequest&)> apply;
  };
  const std::vector<Change> changes = {
      {"nothing", [](KernelRequest&) {}},
      {"schedule",
       [](KernelRequest& r) {
         r = wgmma_request(r.stage, Schedule::wgmma_pingpong);
         r.gemm.block_n = 64;
         r.gemm.block_m = 64;
       }},
      {"block_m", [](KernelRequest& r) { r.gemm.block_m = 64; }},
      {"block_n", [](KernelRequest& r) { r.gemm.block_n = 128; }},
      {"stages", [](KernelRequest& r) { r.gemm.stages = 4; }},
      {"raster", [](KernelRequest& r) { r.gemm.raster = 4; }},
      {"row_step 8", [](KernelRequest& r) { r.gemm.row_step = 8; }},
      {"row_step 32", [](KernelRequest& r) { r.gemm.row_step = 32; }},
      {"cluster", [](KernelRequest& r) { r.gemm.cluster = 2; }},
      {"runtime_width", [](KernelRequest& r) { r.runtime_width = true; }},
  };
  for (const Stage stage : kGemmStages) {
    std::set<std::string> texts, names;
    for (const Change& change : changes) {
      CAPTURE(change.what);
      KernelRequest request = wgmma_request(stage, Schedule::wgmma);
      change.apply(request);
      CHECK(texts.insert(must_emit(pruned_spec(), request).text).second);
      CHECK(names.insert(name_of(pruned_spec(), request)).second);
    }
    KernelRequest copied = wgmma_request(stage, Schedule::wgmma);
    copied.gemm.gather = GatherMode::copy;
    CHECK(texts.insert(must_emit(pruned_spec(), copied).text).second == (stage == Stage::fc1));
  }
}

TEST_CASE("fault 37: row_step is the wgmma schedules' alone") {
  for (const Stage stage : kGemmStages) {
    KernelRequest request = request_of(stage);
    request.gemm.row_step = 32;
    CHECK(same_kernel(must_emit(pruned_spec(), request), must_emit(pruned_spec(), stage)));
  }
}

TEST_CASE(
    "fault 37: layouts and dtypes have wgmma kernels of their own; the order of gate and up is bound later") {
  for (const Schedule schedule : kHopperSchedules) {
    std::set<std::string> fc1, fc2;
    for (const LayerSpec& spec : layouts()) {
      fc1.insert(must_emit(spec, wgmma_request(Stage::fc1, schedule)).entry_name);
      fc2.insert(must_emit(spec, wgmma_request(Stage::fc2, schedule)).entry_name);
    }
    // Gated: nk, kn apart, kn interleaved. Plain: nk, kn. Each in two dtypes.
    CHECK(fc1.size() == (3 + 2) * 2);
    CHECK(fc2.size() == 2 * 2);
  }
}

TEST_CASE("a wgmma kernel spells one instruction for each number of rows that it multiplies, and no other") {
  LayerSpec spec = pruned_spec();
  spec.fc1_layout = WeightLayout::kn;
  for (const Schedule schedule : kHopperSchedules) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      spec.dtype = dtype;
      for (const std::int32_t row_step : {8, 16, 32}) {
        for (const std::int32_t block_m : {32, 64, 160}) {
          for (const Stage stage : kGemmStages) {
            KernelRequest request = wgmma_request(stage, schedule);
            request.gemm.block_m = block_m;
            request.gemm.row_step = row_step;
            std::vector<std::string> expected;
            for (std::int32_t n = row_step; n <= block_m; n += row_step) {
              expected.push_back(std::to_string(n) + ", varmoe::Element::" + to_string(dtype) +
                                 (stage == Stage::fc1 ? ", true" : ", false"));  // fc1 is kn here, fc2 nk
            }
            CHECK(instructions(must_emit(spec, request).text) == expected);
          }
        }
      }
    }
  }
}
