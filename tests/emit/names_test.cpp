#include <functional>
#include <map>
#include <random>
#include <regex>
#include <set>

#include "emit/emit_case.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

LayerSpec with(LayerSpec spec, const std::function<void(LayerSpec&)>& change) {
  change(spec);
  return spec;
}
KernelRequest with(KernelRequest request, const std::function<void(KernelRequest&)>& change) {
  change(request);
  return request;
}

LayerSpec oai_spec() {
  return with(pruned_spec(), [](LayerSpec& s) { s.activation = Activation::swiglu_oai; });
}

/// One way to change a layer, and the stages whose kernels it must change.
struct SpecChange {
  const char* what;
  std::function<void(LayerSpec&)> change;
  std::set<Stage> changes;
};

const std::set<Stage> kSorts = {Stage::sort_single, Stage::sort_count, Stage::sort_scatter};
const std::set<Stage> kGemms = {Stage::fc1, Stage::fc2};

std::set<Stage> and_also(std::set<Stage> stages, std::initializer_list<Stage> more) {
  stages.insert(more);
  return stages;
}

}  // namespace

TEST_CASE("an entry name carries the stage, the config and 16 hex digits, and the text defines it") {
  const std::map<Stage, std::string> expected = {
      {Stage::sort_single, "varmoe_sort_single_t256_"},   {Stage::sort_count, "varmoe_sort_count_t256_"},
      {Stage::sort_scatter, "varmoe_sort_scatter_t256_"}, {Stage::gather, "varmoe_gather_t256_"},
      {Stage::fc1, "varmoe_fc1_m128n128k64s3w2x2c1r8_"},  {Stage::fc2, "varmoe_fc2_m128n128k64s3w2x2c1r8_"},
      {Stage::combine, "varmoe_combine_t256_"},
  };
  for (const Stage stage : kStages) {
    const EmittedKernel kernel = must_emit(pruned_spec(), stage);
    CAPTURE(kernel.entry_name);
    CHECK(kernel.stage == stage);
    CHECK(std::regex_match(kernel.entry_name, std::regex(expected.at(stage) + "[0-9a-f]{16}")));
    const auto first = kernel.text.find(kernel.entry_name);
    REQUIRE(first != std::string::npos);
    CHECK(kernel.text.find(kernel.entry_name, first + 1) == std::string::npos);
    CHECK(contains(kernel.text, "extern \"C\" __global__ void __launch_bounds__("));
  }
}

TEST_CASE("a copied gather and runtime widths show in the name, where they are the stage's") {
  const auto name = [](Stage stage, GatherMode gather, bool runtime) {
    KernelRequest request = request_of(stage);
    request.gemm.gather = gather;
    request.runtime_width = runtime;
    const std::string full = must_emit(pruned_spec(), request).entry_name;
    return full.substr(0, full.size() - 17);  // "_" and the digest
  };
  CHECK(name(Stage::fc1, GatherMode::copy, false) == "varmoe_fc1_m128n128k64s3w2x2c1r8_copied");
  CHECK(name(Stage::fc1, GatherMode::copy, true) == "varmoe_fc1_m128n128k64s3w2x2c1r8_copied_anywidth");
  CHECK(name(Stage::fc1, GatherMode::fused, true) == "varmoe_fc1_m128n128k64s3w2x2c1r8_anywidth");
  CHECK(name(Stage::fc2, GatherMode::copy, true) == "varmoe_fc2_m128n128k64s3w2x2c1r8_anywidth");
}

TEST_CASE("emitting twice gives the same bytes") {
  for (const Stage stage : kStages)
    CHECK(same_kernel(must_emit(pruned_spec(), stage), must_emit(pruned_spec(), stage)));
}

TEST_CASE("fault 37: however experts are arranged and counted, equal class sets emit equal bytes") {
  std::mt19937 random(37);
  const LayerSpec spec = pruned_spec();
  for (int turn = 0; turn < 20; ++turn) {
    LayerSpec permuted = spec;
    std::shuffle(permuted.expert_widths.begin(), permuted.expert_widths.end(), random);
    for (const Stage stage : kStages) CHECK(same_kernel(must_emit(spec, stage), must_emit(permuted, stage)));
  }
  const LayerSpec recounted =
      with(spec, [](LayerSpec& s) { s.expert_widths = {512, 512, 512, 512, 256, 128}; });
  for (const Stage stage : kStages) CHECK(same_kernel(must_emit(spec, stage), must_emit(recounted, stage)));
}

TEST_CASE("fault 37: each field of a layer changes the kernels that depend on it and no others") {
  const std::vector<SpecChange> changes = {
      {"hidden_size", [](LayerSpec& s) { s.hidden_size = 1032; },
       and_also(kGemms, {Stage::gather, Stage::combine})},
      {"top_k", [](LayerSpec& s) { s.top_k = 3; },
       and_also(kSorts, {Stage::gather, Stage::fc1, Stage::combine})},
      {"one expert more of a known width", [](LayerSpec& s) { s.expert_widths.push_back(128); },
       and_also(kSorts, {Stage::fc1})},
      {"one width", [](LayerSpec& s) { s.expert_widths = {264, 128, 512, 264, 512, 128}; }, kGemms},
      {"one class fewer", [](LayerSpec& s) { s.expert_widths = {256, 256, 512, 256, 512, 256}; }, kGemms},
      {"digits moved from one width to the next",
       [](LayerSpec& s) { s.expert_widths = {2560, 128, 512, 2560, 512, 128}; }, kGemms},
      {"dtype", [](LayerSpec& s) { s.dtype = DType::fp16; }, and_also(kGemms, {Stage::combine})},
      {"activation", [](LayerSpec& s) { s.activation = Activation::silu_mul; }, {Stage::fc1}},
      {"alpha", [](LayerSpec& s) { s.activation_params.alpha = 1.703f; }, {Stage::fc1}},
      {"limit", [](LayerSpec& s) { s.activation_params.limit = 7.5f; }, {Stage::fc1}},
      {"alpha and limit exchanged",
       [](LayerSpec& s) {
         s.activation_params = {7.0f, 1.702f};
       },
       {Stage::fc1}},
      {"fc1_layout", [](LayerSpec& s) { s.fc1_layout = WeightLayout::kn; }, {Stage::fc1}},
      {"fc2_layout", [](LayerSpec& s) { s.fc2_layout = WeightLayout::kn; }, {Stage::fc2}},
      {"interleaved kn",
       [](LayerSpec& s) {
         s.fc1_layout = WeightLayout::kn;
         s.gate_order = GateOrder::interleaved;
       },
       {Stage::fc1}},
      // Which half is the gate is in the device table's pointers.
      {"up_first", [](LayerSpec& s) { s.gate_order = GateOrder::up_first; }, {}},
      {"batch_invariant", [](LayerSpec& s) { s.batch_invariant = true; }, {}},
  };
  const LayerSpec base = oai_spec();
  for (const SpecChange& c : changes) {
    CAPTURE(c.what);
    const LayerSpec changed = with(base, c.change);
    REQUIRE_FALSE(changed == base);
    for (const Stage stage : kStages) {
      CAPTURE(emit::to_string(stage));
      const EmittedKernel a = must_emit(base, stage), b = must_emit(changed, stage);
      CHECK((a.text != b.text) == (c.changes.count(stage) == 1));
      CHECK((a.entry_name != b.entry_name) == (c.changes.count(stage) == 1));
    }
  }
  // Beside kn weights that lie apart, interleaved ones are another kernel.
  const LayerSpec apart = with(base, [](LayerSpec& s) { s.fc1_layout = WeightLayout::kn; });
  const LayerSpec adjacent = with(apart, [](LayerSpec& s) { s.gate_order = GateOrder::interleaved; });
  CHECK(must_emit(apart, Stage::fc1).text != must_emit(adjacent, Stage::fc1).text);
}

TEST_CASE("fault 37: what a layer ignores does not enter its kernels") {
  const LayerSpec silu = pruned_spec();
  const LayerSpec other = with(silu, [](LayerSpec& s) { s.activation_params = {0.5f, 3.0f}; });
  CHECK(same_kernel(must_emit(silu, Stage::fc1), must_emit(other, Stage::fc1)));
  const LayerSpec relu = with(silu, [](LayerSpec& s) { s.activation = Activation::relu2; });
  const LayerSpec woven = with(relu, [](LayerSpec& s) { s.gate_order = GateOrder::interleaved; });
  CHECK(same_kernel(must_emit(relu, Stage::fc1), must_emit(woven, Stage::fc1)));
}

TEST_CASE("fault 37: every activation has a kernel of its own") {
  std::set<std::string> texts;
  for (int i = 0; i <= static_cast<int>(Activation::identity); ++i) {
    const LayerSpec spec =
        with(pruned_spec(), [&](LayerSpec& s) { s.activation = static_cast<Activation>(i); });
    texts.insert(must_emit(spec, Stage::fc1).text);
  }
  CHECK(texts.size() == 10);
}

TEST_CASE("fault 37: each field of a config changes its kernel's text and name") {
  const std::vector<std::pair<const char*, std::function<void(KernelRequest&)>>> changes = {
      {"block_m", [](KernelRequest& r) { r.gemm.block_m = 64; }},
      {"block_n", [](KernelRequest& r) { r.gemm.block_n = 64; }},
      {"block_k", [](KernelRequest& r) { r.gemm.block_k = 32; }},
      {"stages", [](KernelRequest& r) { r.gemm.stages = 4; }},
      {"warps_m", [](KernelRequest& r) { r.gemm.warps_m = 4; }},
      {"warps_n", [](KernelRequest& r) { r.gemm.warps_n = 4; }},
      {"ctas_per_sm", [](KernelRequest& r) { r.gemm.ctas_per_sm = 2; }},
      {"raster", [](KernelRequest& r) { r.gemm.raster = 4; }},
      {"runtime_width", [](KernelRequest& r) { r.runtime_width = true; }},
  };
  for (const Stage stage : {Stage::fc1, Stage::fc2}) {
    std::set<std::string> texts = {must_emit(pruned_spec(), stage).text}, names = {};
    for (const auto& [what, change] : changes) {
      CAPTURE(what);
      const EmittedKernel kernel = must_emit(pruned_spec(), with(request_of(stage), change));
      CHECK(texts.insert(kernel.text).second);
      CHECK(names.insert(kernel.entry_name.substr(0, kernel.entry_name.size() - 17)).second);
    }
    // The gather is fc1's alone, block_threads no GEMM's.
    KernelRequest copied = request_of(stage);
    copied.gemm.gather = GatherMode::copy;
    CHECK(texts.insert(must_emit(pruned_spec(), copied).text).second == (stage == Stage::fc1));
    KernelRequest threads = request_of(stage);
    threads.block_threads = 512;
    CHECK_FALSE(texts.insert(must_emit(pruned_spec(), threads).text).second);
  }
  for (const Stage stage : kStages) {
    if (is_gemm(stage)) continue;
    KernelRequest wider = request_of(stage), odd = request_of(stage);
    wider.block_threads = 512;
    odd.gemm.block_m = 64;
    odd.runtime_width = true;
    CHECK(must_emit(pruned_spec(), wider).text != must_emit(pruned_spec(), stage).text);
    CHECK(same_kernel(must_emit(pruned_spec(), odd), must_emit(pruned_spec(), stage)));
  }
}

TEST_CASE("runtime-width kernels know no widths: layers that differ in them alone share all kernels") {
  LayerSpec one = pruned_spec(), two = pruned_spec();
  two.expert_widths = {8, 16, 24, 32, 40, 48};
  for (const Stage stage : {Stage::fc1, Stage::fc2}) {
    KernelRequest request = request_of(stage);
    request.runtime_width = true;
    const EmittedKernel kernel = must_emit(one, request);
    CHECK(same_kernel(kernel, must_emit(two, request)));
    CHECK(contains(kernel.text, "static constexpr int kClasses = 0;"));
    CHECK_FALSE(contains(kernel.text, "width("));
  }
}

TEST_CASE("fault 37: names of many kernels never collide") {
  std::set<std::string> names, texts;
  std::size_t kernels = 0;
  for (std::int64_t hidden = 64; hidden < 64 + 8 * 40; hidden += 8) {
    for (const std::int64_t k : {1, 2, 8}) {
      const LayerSpec spec = uniform_spec(hidden, 16, 64, k);
      names.insert(must_emit(spec, Stage::fc1).entry_name);
      texts.insert(must_emit(spec, Stage::fc1).text);
      ++kernels;
    }
  }
  CHECK(names.size() == kernels);
  CHECK(texts.size() == kernels);
}
