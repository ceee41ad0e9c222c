// Layer::up, the up-projection alone, on the CPU engine; tests/gpu has the GPU's.
#include <algorithm>
#include <vector>

#include "engine_fixture.hpp"
#include "oracle/random_case.hpp"
#include "oracle/up_check.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct UpFixture : EngineFixture {
  UpFixture() {
    options.device = kCpuDevice;
    options.cpu_threads = 2;
  }
};

LayerSpec shared_spec() {
  LayerSpec spec = test::pruned_spec();
  spec.shared_widths = {200, 24};
  spec.shared_gate = true;
  return spec;
}

/// Memory for an up of a case's tokens, poisoned.
struct UpMemory {
  oracle::Buffer16 h, workspace;
  std::vector<std::int32_t> offsets, slot_row;
  std::int64_t stride;
  UpArgs args;

  UpMemory(const oracle::RandomCase& c, const Layer& layer, std::int64_t h_stride = 0) {
    const LayerSpec& spec = c.spec;
    stride = h_stride != 0 ? h_stride : (spec.widest_of_all() + 63) / 64 * 64;
    const std::int64_t tokens = c.options.tokens, rows = tokens * spec.slots_per_token();
    h = oracle::Buffer16(std::max<std::int64_t>(rows, 1) * stride);
    std::fill(h.data(), h.data() + h.size(), oracle::kPoison);
    offsets.assign(static_cast<std::size_t>(spec.all_experts() + 1), oracle::kUntouched);
    slot_row.assign(static_cast<std::size_t>(rows), oracle::kUntouched);
    const auto bytes = layer.workspace_bytes(std::max<std::int64_t>(tokens, 1));
    REQUIRE(bytes.ok());
    workspace = oracle::Buffer16(static_cast<std::int64_t>(*bytes / 2 + 1));
    std::fill(workspace.data(), workspace.data() + workspace.size(), oracle::kPoison);
    args.tokens = tokens;
    args.x = c.x.data();
    args.x_stride = c.x_stride;
    args.topk_ids = c.ids32.data();
    args.h = h.data();
    args.h_stride = h_stride;
    args.expert_offsets = offsets.data();
    args.slot_row = slot_row.data();
    args.workspace = workspace.data();
    args.workspace_bytes = *bytes;
  }
  oracle::UpResult result() const {
    return {{h.data(), static_cast<std::size_t>(h.size())}, stride, offsets, slot_row};
  }
};

}  // namespace

TEST_CASE_FIXTURE(UpFixture, "up alone: rows by expert with their offsets and map, shared experts' too") {
  Engine engine = make_engine();
  for (const bool shared : {false, true}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const Activation activation : {Activation::silu_mul, Activation::relu2}) {
        LayerSpec spec = shared ? shared_spec() : test::pruned_spec();
        spec.fc1_layout = layout;
        spec.activation = activation;
        oracle::CaseOptions case_options;
        case_options.tokens = 41;
        case_options.invalid_fraction = 0.2;
        case_options.x_stride = spec.hidden_size + 8;
        const auto c = oracle::make_case(spec, case_options);
        Layer layer = make_layer(engine, spec);
        const auto weights = c.host_weights();
        REQUIRE(weights.ok());
        require_ok(layer.bind(*weights));
        UpMemory plain(c, layer);
        require_ok(layer.up(plain.args));
        CHECK(oracle::up_problem(c, plain.result(), 41) == "");

        UpMemory other(c, layer, (spec.widest_of_all() + 63) / 64 * 64 + 8);
        const std::int32_t live = 17;
        other.args.token_count = &live;
        other.args.topk_ids = c.ids64.data();
        other.args.id_type = IdType::int64;
        require_ok(layer.up(other.args));
        CHECK(oracle::up_problem(c, other.result(), 17) == "");
        const std::int32_t none = 0;
        UpMemory nothing(c, layer);
        nothing.args.token_count = &none;
        require_ok(layer.up(nothing.args));
        CHECK(oracle::up_problem(c, nothing.result(), 0) == "");
      }
    }
  }
}

TEST_CASE_FIXTURE(UpFixture,
                  "up alone refuses what it cannot mean by name, and does nothing without tokens") {
  Engine engine = make_engine();
  const LayerSpec spec = shared_spec();
  const auto c = oracle::make_case(spec, {.tokens = 9});
  Layer layer = make_layer(engine, spec);
  UpMemory memory(c, layer);
  const auto refusal = [&](const UpArgs& args, ErrorCode code) {
    const Status status = layer.up(args);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == code);
    return status.error().message();
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(refusal(memory.args, ErrorCode::not_bound), "up before bind"));
  const auto weights = c.host_weights();
  REQUIRE(weights.ok());
  require_ok(layer.bind(*weights));
  const auto with = [&](auto change) {
    UpArgs args = memory.args;
    change(args);
    return refusal(args, ErrorCode::invalid_argument);
  };
  CHECK(has(with([](UpArgs& a) { a.tokens = -1; }), "tokens = -1"));
  CHECK(has(with([](UpArgs& a) { a.x = nullptr; }), "x is null"));
  CHECK(has(with([](UpArgs& a) { a.h = nullptr; }), "h is null"));
  CHECK(has(with([](UpArgs& a) { a.expert_offsets = nullptr; }), "expert_offsets is null"));
  CHECK(has(with([](UpArgs& a) { a.slot_row = nullptr; }), "slot_row is null"));
  CHECK(has(with([](UpArgs& a) { a.topk_ids = nullptr; }), "topk_ids is null"));
  CHECK(has(with([](UpArgs& a) { a.workspace = nullptr; }), "workspace is null"));
  CHECK(has(with([](UpArgs& a) { a.h = static_cast<std::byte*>(a.h) + 8; }), "must be 16-byte aligned"));
  CHECK(has(with([&](UpArgs& a) { a.h_stride = spec.widest_of_all() / 64 * 64; }), "h_stride = "));
  CHECK(has(with([](UpArgs& a) { a.x_stride = 4; }), "x_stride = 4"));
  CHECK(has(with([](UpArgs& a) { a.h = const_cast<void*>(a.x); }), "h overlaps x"));
  CHECK(has(with([](UpArgs& a) { a.h = a.workspace; }), "workspace overlaps h"));
  CHECK(has(with([](UpArgs& a) { a.id_type = static_cast<IdType>(7); }), "id_type = 7"));
  UpArgs little = memory.args;
  little.workspace_bytes -= 1;
  CHECK(has(refusal(little, ErrorCode::workspace_too_small), "workspace_bytes = "));
  UpArgs none;
  require_ok(layer.up(none));

  LayerOptions bounded;
  bounded.max_workspace_bytes = *layer.workspace_bytes(8);
  auto small = engine.create_layer(spec, bounded);
  REQUIRE(small.ok());
  require_ok(small->bind(*weights));
  const Status status = small->up(memory.args);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::unsupported);
  CHECK(has(status.error().message(), "allows 8 at a time"));
}
