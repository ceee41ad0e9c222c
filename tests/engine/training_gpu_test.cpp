// TrainingLayer on a GPU engine whose driver is a fake: what is prepared and launched, in which order, and
// what is refused.
#include <algorithm>
#include <string>
#include <vector>

#include "cuda/graph.hpp"
#include "engine_fixture.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/store.hpp"
#include "varmoe/training.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct GpuTraining : EngineFixture {
  TrainingLayer make(Engine& engine, const LayerSpec& spec, const TrainingOptions& training = {}) {
    auto layer = engine.create_training_layer(spec, training);
    REQUIRE_MESSAGE(layer.ok(), (layer.ok() ? "" : layer.error().message()));
    require_ok(layer->bind(test::fake_weights(spec)));
    require_ok(layer->bind_gradients(test::fake_weights(spec)));
    return *std::move(layer);
  }
  template <class Args>
  Args common(const TrainingLayer& layer, std::int64_t tokens, void* stream) {
    Args args;
    const auto rows = static_cast<std::size_t>(tokens),
               hidden = static_cast<std::size_t>(layer.spec().hidden_size);
    args.tokens = tokens;
    args.x = arena.take(rows * hidden * 2);
    args.topk_ids = arena.take(rows * 8 * 8);
    args.topk_weights = static_cast<const float*>(arena.take(rows * 8 * 4));
    args.workspace_bytes = *layer.workspace_bytes(tokens);
    args.workspace = arena.take(args.workspace_bytes);
    args.stream = stream;
    return args;
  }
  Status forward(TrainingLayer& layer, std::int64_t tokens, void* stream = nullptr) {
    auto args = common<ForwardArgs>(layer, tokens, stream);
    args.out = arena.take(static_cast<std::size_t>(tokens * layer.spec().hidden_size) * 2);
    const std::size_t bytes = *layer.saved_bytes(tokens);
    return layer.forward(args, bytes != 0 ? arena.take(bytes) : nullptr, bytes);
  }
  BackwardArgs backward_args(TrainingLayer& layer, std::int64_t tokens, void* stream = nullptr) {
    auto args = common<BackwardArgs>(layer, tokens, stream);
    const auto bytes = static_cast<std::size_t>(tokens * layer.spec().hidden_size) * 2;
    args.dout = arena.take(bytes);
    args.dx = arena.take(bytes);
    args.dtopk_weights = static_cast<float*>(arena.take(static_cast<std::size_t>(tokens) * 8 * 4));
    args.saved_bytes = *layer.saved_bytes(tokens);
    args.saved = args.saved_bytes != 0 ? arena.take(args.saved_bytes) : nullptr;
    return args;
  }
  /// The stages launched since the last call, by entry name.
  static std::vector<std::string> stages() {
    std::vector<std::string> found;
    for (const std::string& name : test::launched_kernels()) {
      std::string stage = name.substr(std::string("varmoe_").size());
      for (const char* known :
           {"sort", "gather", "fc1_gradient", "fc2_gradient", "fc1_bias_gradient", "fc2_bias_gradient", "fc1",
            "fc2", "combine", "topk_weight_gradient", "gradient_schedule", "shared_gate_gradient"})
        if (stage.rfind(std::string(known) + "_", 0) == 0) {
          stage = known;
          break;
        }
      found.push_back(stage);
    }
    fake_cuda::clear_launches();
    return found;
  }

  test::Arena arena{std::size_t{256} << 20};
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE_FIXTURE(GpuTraining, "a prepared layer launches forward, then the backward pass in its order") {
  Engine engine = make_engine();
  TrainingLayer layer = make(engine, test::small_spec());
  PrepareOptions prepare;
  prepare.tokens = {64};
  auto report = layer.prepare(prepare);
  require_ok(report);
  for (const char* stage : {"fc1", "fc2", "dh", "dx", "topk_weight_gradient", "gradient_schedule",
                            "fc1_gradient", "fc2_gradient"})
    CHECK_MESSAGE(std::any_of(report->kernels.begin(), report->kernels.end(),
                              [&](const KernelReport& k) { return k.stage == stage; }),
                  stage);
  const int compiles = fake_nvrtc::compiles();
  fake_cuda::clear_launches();
  require_ok(forward(layer, 64));
  CHECK(stages() == Names{"sort", "fc1", "fc2", "combine"});
  require_ok(layer.backward(backward_args(layer, 64)));
  CHECK(stages() == Names{"sort", "fc1", "topk_weight_gradient", "gradient_schedule", "fc2_gradient",
                          "fc1_gradient", "fc2", "combine"});

  SUBCASE("what is not wanted is not launched") {
    auto args = backward_args(layer, 64);
    args.weight_gradients = false;
    require_ok(layer.backward(args));
    CHECK(stages() == Names{"sort", "fc1", "topk_weight_gradient", "fc2", "combine"});
    args.weight_gradients = true;
    args.dx = nullptr;
    require_ok(layer.backward(args));
    CHECK(stages() ==
          Names{"sort", "fc1", "topk_weight_gradient", "gradient_schedule", "fc2_gradient", "fc1_gradient"});
    args.dtopk_weights = nullptr;
    require_ok(layer.backward(args));
    CHECK(stages() == Names{"sort", "fc1", "gradient_schedule", "fc2_gradient", "fc1_gradient"});
    args.weight_gradients = false;
    require_ok(layer.backward(args));
    CHECK(stages().empty());
  }
  SUBCASE("no tokens: gradients are cleared without a kernel, or left") {
    BackwardArgs args;
    require_ok(layer.backward(BackwardArgs{.weight_gradients = true, .accumulate_weight_gradients = true}));
    CHECK(stages().empty());
  }
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(GpuTraining, "prepare takes a backward pass from its tuning record, and says so") {
  fake_cuda::FakeDevice h200;
  h200.name = "NVIDIA H200";
  fake_cuda::set_devices({h200});
  const LayerSpec spec = test::small_spec();
  const auto profile = model::find_profile("h200");
  REQUIRE(profile.ok());
  TuningRecord record;
  record.key = make_backward_tuning_key(spec, tuningdb::tuning_device(*profile), 64, GradientType::fp32);
  record.backward = model::predict_products(spec, 64, *profile);
  record.backward.dh.raster = record.backward.dx.raster = 13;
  record.backward.fc1_gradient = {Schedule::wgmma, 128, 64, 2, GatherMode::fused};
  record.us = 100;
  record.verified = true;
  record.epochs = tuningdb::current_epochs(record.backward);
  record.config_space = model::kConfigSpaceVersion;
  record.date = "2026-11-21T12:00:00Z";
  test::TempDir records;
  require_ok(tuningdb::TuningStore(records.path(), Log()).save({&record, 1}));
  options.tuning_db = {records.path()};
  Engine engine = make_engine();
  TrainingOptions training;
  training.gradient_type = GradientType::fp32;
  TrainingLayer layer = make(engine, spec, training);
  PrepareOptions prepare;
  prepare.tokens = {64, 1024};
  const auto report = layer.prepare(prepare);
  require_ok(report);
  int tuned = 0;
  for (const KernelReport& kernel : report->kernels) {
    const bool of_record = kernel.token_buckets.front() == 64;
    const auto has = [&](const std::string& config) {
      CAPTURE(kernel.stage);
      CHECK(kernel.config == config);
      CHECK(kernel.config_source == ConfigSource::tuned);
      ++tuned;
    };
    if (kernel.stage == "dh" && of_record) has(to_string(record.backward.dh));
    if (kernel.stage == "dx" && of_record) has(to_string(record.backward.dx));
    if (kernel.stage == "fc1_gradient" && of_record) has(to_string(record.backward.fc1_gradient));
    if (kernel.stage == "fc1" || kernel.stage == "fc2")
      CHECK(kernel.config_source == ConfigSource::predicted);
  }
  CHECK(tuned == 3);
  CHECK(said("prepared training of ") == 1);
  CHECK(said("; backward configs by tokens: 64 tuned (exact, ") == 1);
  CHECK(said("; 1024 predicted") == 1);
  CHECK(said("forward configs by tokens: 64-1024 predicted; backward") == 1);
  // The miss of 1024 tokens names the command that tunes both passes.
  CHECK(said("--tokens 1024 --training --fp32-gradients") == 1);
}

TEST_CASE_FIXTURE(GpuTraining,
                  "weights on the input cost no launch, and with biases a second dz in the workspace") {
  Engine engine = make_engine();
  LayerSpec spec = test::small_spec();
  const auto bytes = [&] { return *engine.create_training_layer(spec, {})->workspace_bytes(64); };
  const auto launched = [&] {
    TrainingLayer layer = make(engine, spec);
    require_ok(forward(layer, 64));
    require_ok(layer.backward(backward_args(layer, 64)));
    return stages();
  };
  const std::size_t plain = bytes();
  spec.weight_on_input = true;
  // A weight for each row's sum in the forward.
  CHECK(bytes() < plain + 4096);
  CHECK(launched() == Names{"sort", "fc1", "fc2", "combine", "sort", "fc1", "topk_weight_gradient",
                            "gradient_schedule", "fc2_gradient", "fc1_gradient", "fc2", "combine"});
  spec.weight_on_input = false;
  spec.bias = true;
  const std::size_t biased = bytes();
  spec.weight_on_input = true;
  const std::int64_t rows = 64 * spec.top_k, columns = 2 * ((spec.max_width() + 63) / 64 * 64);
  CHECK(bytes() >= biased + static_cast<std::size_t>(rows * columns * 2));
}

TEST_CASE_FIXTURE(GpuTraining, "recomputing runs fc1 again, on kernels of its own") {
  Engine engine = make_engine();
  TrainingOptions training;
  training.save_preactivation = false;
  TrainingLayer layer = make(engine, test::small_spec(), training);
  CHECK(*layer.saved_bytes(64) == 0);
  require_ok(forward(layer, 64));
  CHECK(stages() == Names{"sort", "fc1", "fc2", "combine"});
  require_ok(layer.backward(backward_args(layer, 64)));
  CHECK(stages() == Names{"sort", "fc1", "sort", "fc1", "topk_weight_gradient", "gradient_schedule",
                          "fc2_gradient", "fc1_gradient", "fc2", "combine"});
  CHECK(said("prepared for 64 tokens at first use") == 1);
}

TEST_CASE_FIXTURE(GpuTraining,
                  "biases have sums of their own, and overrides of the environment choose tiles") {
  environment.dw1_config = "schedule=mma_sync,block_m=64,block_n=64,stages=3";
  environment.dx_config = "block_m=64";
  Engine engine = make_engine();
  LayerSpec spec = test::small_spec();
  spec.bias = true;
  auto layer = engine.create_training_layer(spec, {});
  require_ok(layer);
  PrepareOptions prepare;
  prepare.tokens = {64};
  const auto report = layer->prepare(prepare);
  require_ok(report);
  int biases = 0, changed = 0;
  for (const KernelReport& kernel : report->kernels) {
    biases += kernel.stage == "fc1_bias_gradient" || kernel.stage == "fc2_bias_gradient";
    if (kernel.stage == "fc1_gradient")
      CHECK(kernel.config.find("block_m=64,block_n=64") != std::string::npos);
    changed += kernel.stage == "dx" && kernel.config_source == ConfigSource::override_;
  }
  CHECK(biases == 2);
  CHECK(changed == 1);
  environment.dw1_config = "block_m=63";
  Engine other = make_engine();
  auto refused = other.create_training_layer(spec, {});
  require_ok(refused);
  const auto failed = refused->prepare(prepare);
  REQUIRE_FALSE(failed.ok());
  CHECK(failed.error().message().find("VARMOE_DW1_CONFIG") != std::string::npos);
  // The API goes before the environment.
  options.dw1_config = "schedule=mma_sync,block_m=128,block_n=64,stages=2";
  Engine third = make_engine();
  auto by_api = third.create_training_layer(spec, {});
  require_ok(by_api);
  require_ok(by_api->prepare(prepare));
  options.dw1_config = "block=64";
  auto wrong = try_engine();
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.error().code() == ErrorCode::invalid_config);
  CHECK(wrong.error().message().find("EngineOptions::dw1_config") != std::string::npos);
  options.dw1_config.clear();
  environment.dw1_config = "block=64";
  wrong = try_engine();
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.error().code() == ErrorCode::invalid_environment);
}

TEST_CASE_FIXTURE(GpuTraining, "calls before bind, and captures before prepare, are told so") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  auto unbound = engine.create_training_layer(spec, {});
  require_ok(unbound);
  CHECK(forward(*unbound, 8).error().code() == ErrorCode::not_bound);
  require_ok(unbound->bind(test::fake_weights(spec)));
  CHECK(unbound->backward(backward_args(*unbound, 8)).error().code() == ErrorCode::not_bound);
  TrainingLayer layer = make(engine, spec);
  const auto device = EngineAccess::impl(engine).device;
  auto stream = cuda::Stream::create(device);
  require_ok(stream);
  require_ok(cuda::begin_capture(*device, stream->handle()));
  const Status status = layer.backward(backward_args(layer, 8, stream->handle()));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::not_prepared);
  auto graph = cuda::Graph::end_capture(device, stream->handle());
  require_ok(graph);
  CHECK(*graph->node_count() == 0);
}
