// TrainingLayer through a CPU engine: its life, and every argument that is refused.
#include "varmoe/training.hpp"

#include <cstring>
#include <utility>
#include <vector>

#include "engine_fixture.hpp"
#include "oracle/compare.hpp"
#include "oracle/training_case.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct TrainingFixture : EngineFixture {
  TrainingFixture() {
    options.device = kCpuDevice;
    options.cpu_threads = 2;
  }

  static TrainingLayer make_training_layer(Engine& engine, const LayerSpec& spec,
                                           const TrainingOptions& training = {}) {
    auto layer = engine.create_training_layer(spec, training);
    REQUIRE_MESSAGE(layer.ok(), (layer.ok() ? "" : layer.error().message()));
    return *std::move(layer);
  }
  /// What both passes are given, in memory of the arena; ids and numbers are zeros.
  template <class Args>
  Args common(const TrainingLayer& layer, std::int64_t tokens) {
    const auto rows = static_cast<std::size_t>(tokens),
               hidden = static_cast<std::size_t>(layer.spec().hidden_size),
               k = static_cast<std::size_t>(layer.spec().top_k);
    Args args;
    args.tokens = tokens;
    args.x = zeros(rows * hidden * 2);
    args.topk_ids = zeros(rows * k * 8);
    args.topk_weights = static_cast<const float*>(zeros(rows * k * 4));
    args.workspace_bytes = *layer.workspace_bytes(tokens);
    args.workspace = arena.take(args.workspace_bytes);
    return args;
  }
  ForwardArgs forward_args(const TrainingLayer& layer, std::int64_t tokens) {
    auto args = common<ForwardArgs>(layer, tokens);
    args.out = zeros(static_cast<std::size_t>(tokens * layer.spec().hidden_size) * 2);
    return args;
  }
  BackwardArgs backward_args(const TrainingLayer& layer, std::int64_t tokens) {
    auto args = common<BackwardArgs>(layer, tokens);
    const auto bytes = static_cast<std::size_t>(tokens * layer.spec().hidden_size) * 2;
    args.dout = zeros(bytes);
    args.dx = zeros(bytes);
    args.dtopk_weights =
        static_cast<float*>(zeros(static_cast<std::size_t>(tokens * layer.spec().top_k) * 4));
    args.saved_bytes = *layer.saved_bytes(tokens);
    args.saved = zeros(args.saved_bytes);
    return args;
  }
  void* zeros(std::size_t bytes) { return std::memset(arena.take(bytes), 0, bytes); }
  Weights zero_weights(const LayerSpec& spec) {
    std::size_t elements = 0;
    for (std::int64_t e = 0; e < spec.num_experts(); ++e)
      elements += static_cast<std::size_t>(spec.width_of(e) * spec.hidden_size);
    auto weights = Weights::blocks(spec, zeros(4 * elements), zeros(2 * elements));
    REQUIRE(weights.ok());
    return *std::move(weights);
  }
  test::Arena arena;
};

/// Code and sentence; "accepted" when it was.
std::string told(const Status& status, ErrorCode code) {
  if (status) return "accepted";
  CHECK(status.error().code() == code);
  return status.error().message();
}

}  // namespace

TEST_CASE_FIXTURE(TrainingFixture,
                  "training: prepare, bind, bind_gradients, forward and backward agree with the oracle") {
  for (const bool save : {true, false}) {
    LayerSpec spec = test::pruned_spec();
    spec.shared_widths = {64};
    spec.shared_gate = true;
    const auto c = oracle::make_training_case(
        oracle::make_case(spec, {.tokens = 37, .seed = 5}),
        {.save_preactivation = save, .fp32 = true, .gradient_storage = oracle::Storage::padded});
    Engine engine = make_engine();
    TrainingOptions training;
    training.save_preactivation = save;
    training.gradient_type = GradientType::fp32;
    TrainingLayer made = make_training_layer(engine, spec, training);
    TrainingLayer layer = std::move(made);  // lives on
    CHECK(layer.spec() == spec);
    CHECK(layer.options().save_preactivation == save);
    CHECK(layer.options().gradient_type == GradientType::fp32);
    const auto report = layer.prepare();
    require_ok(report);
    CHECK(report->kernels.empty());
    const auto weights = c.layer.host_weights();
    REQUIRE(weights.ok());
    oracle::TrainingOutput first = c.fresh(), out = c.fresh();
    require_ok(layer.bind(*weights));
    require_ok(layer.bind_gradients(first.gradients.weights()));
    require_ok(layer.bind_gradients(out.gradients.weights()));  // the last counts

    ForwardArgs forward = forward_args(layer, 37);
    std::memset(forward.workspace, 0xff, forward.workspace_bytes);
    forward.x = c.layer.x.data();
    forward.topk_ids = c.layer.ids32.data();
    forward.topk_weights = c.layer.topk_weights.data();
    BackwardArgs backward = backward_args(layer, 37);
    std::memset(backward.workspace, 0xff, backward.workspace_bytes);
    CHECK((backward.saved_bytes != 0) == save);
    require_ok(layer.forward(forward, const_cast<void*>(backward.saved), backward.saved_bytes));
    CHECK(engine.counters().forwards == 1);
    backward.x = forward.x;
    backward.topk_ids = forward.topk_ids;
    backward.topk_weights = forward.topk_weights;
    backward.dout = c.dout.data();
    backward.dx = out.dx.data();
    backward.dtopk_weights = out.dtopk.data();
    require_ok(layer.backward(backward));
    const auto comparison = c.compare(c.reference(), out, oracle::training_bar(spec.dtype));
    CHECK_MESSAGE(comparison.pass(), comparison.text());
    CHECK(first == c.before);
    const std::vector<std::int64_t> all = oracle::sample_tokens(37, 37);
    const auto rows =
        oracle::compare_rows(spec.dtype, c.layer.reference(), static_cast<const std::uint16_t*>(forward.out),
                             spec.hidden_size, spec.hidden_size, all);
    CHECK_MESSAGE(rows.pass, rows.text());
    // Without saved bytes a null `saved` will do.
    if (!save) {
      require_ok(layer.forward(forward, nullptr, 0));
      backward.saved = nullptr;
      require_ok(layer.backward(backward));
    }
  }
}

TEST_CASE_FIXTURE(
    TrainingFixture,
    "training: fp32 gradients described by Weights::blocks with element_bytes 4 fill the arrays") {
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const bool biased : {false, true}) {
      CAPTURE(biased);
      LayerSpec spec = test::pruned_spec();
      spec.fc1_layout = spec.fc2_layout = layout;
      spec.bias = biased;
      if (!biased) spec.shared_widths = {64, 128};
      CAPTURE(tuning_signature(spec));
      const auto c = oracle::make_training_case(oracle::make_case(spec, {.tokens = 37, .seed = 6}),
                                                {.fp32 = true, .gradient_storage = oracle::Storage::blocks});
      Engine engine = make_engine();
      TrainingOptions training;
      training.gradient_type = GradientType::fp32;
      TrainingLayer layer = make_training_layer(engine, spec, training);
      const auto weights = c.layer.host_weights();
      require_ok(weights);
      require_ok(layer.bind(*weights));

      // The oracle's arrays, in which it finds elements by its own arithmetic; shared experts lie behind the
      // routed ones.
      oracle::TrainingOutput out = c.fresh();
      float* const fc1 = reinterpret_cast<float*>(out.gradients.part(0).data());
      float* const fc2 = reinterpret_cast<float*>(out.gradients.part(2).data());
      auto gradients = Weights::blocks(spec, fc1, fc2, 4);
      require_ok(gradients);
      if (biased) {
        gradients =
            gradients->with_biases(spec, out.gradients.part(3).data(), out.gradients.part(4).data(), 0, 4);
        require_ok(gradients);
      } else {
        const std::int64_t routed = spec.total_width() * spec.hidden_size;
        require_ok(gradients->set_shared_blocks(spec, fc1 + 2 * routed, fc2 + routed, nullptr, 4));
      }
      require_ok(layer.bind_gradients(*gradients));

      ForwardArgs forward = forward_args(layer, 37);
      forward.x = c.layer.x.data();
      forward.topk_ids = c.layer.ids32.data();
      forward.topk_weights = c.layer.topk_weights.data();
      BackwardArgs backward = backward_args(layer, 37);
      require_ok(layer.forward(forward, const_cast<void*>(backward.saved), backward.saved_bytes));
      backward.x = forward.x;
      backward.topk_ids = forward.topk_ids;
      backward.topk_weights = forward.topk_weights;
      backward.dout = c.dout.data();
      backward.dx = out.dx.data();
      backward.dtopk_weights = out.dtopk.data();
      require_ok(layer.backward(backward));
      const auto comparison = c.compare(c.reference(), out, oracle::training_bar(spec.dtype));
      CHECK_MESSAGE(comparison.pass(), comparison.text());
    }
  }
}

TEST_CASE_FIXTURE(TrainingFixture, "training: sizes: zero for no tokens, named when out of range") {
  Engine engine = make_engine();
  const TrainingLayer layer = make_training_layer(engine, test::small_spec());  // k = 2
  CHECK(*layer.saved_bytes(0) == 0);
  CHECK(*layer.workspace_bytes(0) == 0);
  CHECK(*layer.saved_bytes(10) == 10 * 2 * 2 * 64 * 2);
  CHECK(*layer.workspace_bytes(11) > *layer.workspace_bytes(10));
  for (const std::int64_t tokens : {std::int64_t{-1}, std::int64_t{1073741824}}) {
    const auto saved = layer.saved_bytes(tokens), workspace = layer.workspace_bytes(tokens);
    REQUIRE_FALSE(saved.ok());
    REQUIRE_FALSE(workspace.ok());
    CHECK(saved.error().code() == ErrorCode::invalid_argument);
    CHECK(saved.error().message() ==
          "saved_bytes: tokens = " + std::to_string(tokens) + ": must be from 0 to 1073741823");
    CHECK(workspace.error().message() ==
          "workspace_bytes: tokens = " + std::to_string(tokens) + ": must be from 0 to 1073741823");
  }
}

TEST_CASE_FIXTURE(TrainingFixture, "training: layers that cannot be made are named") {
  Engine engine = make_engine();
  const auto refusal = [&](const LayerSpec& spec, const TrainingOptions& training, ErrorCode code) {
    const auto layer = engine.create_training_layer(spec, training);
    REQUIRE_FALSE(layer.ok());
    CHECK(layer.error().code() == code);
    return layer.error().message();
  };
  LayerSpec spec = test::small_spec();
  spec.top_k = 0;
  CHECK(refusal(spec, {}, ErrorCode::invalid_spec).find("top_k") != std::string::npos);
  spec = test::small_spec();
  TrainingOptions training;
  training.gradient_type = static_cast<GradientType>(7);
  CHECK(refusal(spec, training, ErrorCode::invalid_argument) ==
        "TrainingOptions::gradient_type = 7: must be layer_dtype (0) or fp32 (1)");
  training = {};
  training.max_sms = -2;
  CHECK(refusal(spec, training, ErrorCode::invalid_argument) ==
        "TrainingOptions::max_sms = -2: must be 0 (all) or more");
  Engine gone = std::move(engine);
  const auto on_moved = engine.create_training_layer(spec, {});
  REQUIRE_FALSE(on_moved.ok());
  CHECK(on_moved.error().code() == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(TrainingFixture, "training: what is not bound is told, and what is bound wrongly") {
  Engine engine = make_engine();
  LayerSpec spec = test::small_spec();
  TrainingLayer layer = make_training_layer(engine, spec);
  const ForwardArgs forward = forward_args(layer, 4);
  BackwardArgs backward = backward_args(layer, 4);
  void* saved = const_cast<void*>(backward.saved);
  CHECK(told(layer.forward(forward, saved, backward.saved_bytes), ErrorCode::not_bound)
            .starts_with("forward before bind"));
  CHECK(told(layer.backward(backward), ErrorCode::not_bound).starts_with("backward before bind:"));
  require_ok(layer.bind(zero_weights(spec)));
  require_ok(layer.forward(forward, saved, backward.saved_bytes));
  CHECK(told(layer.backward(backward), ErrorCode::not_bound).find("before bind_gradients") !=
        std::string::npos);
  backward.weight_gradients = false;
  require_ok(layer.backward(backward));
  require_ok(layer.bind_gradients(zero_weights(spec)));
  backward.weight_gradients = true;
  require_ok(layer.backward(backward));

  Weights few = zero_weights(spec);
  few.experts.pop_back();
  CHECK_FALSE(layer.bind(few).ok());
  CHECK(told(layer.bind_gradients(few), ErrorCode::invalid_argument).starts_with("gradients: "));
  PrepareOptions none;
  none.tokens = {-3};
  CHECK_FALSE(layer.prepare(none).ok());

  // Biases of fp32 need their own alignment; of 16 bits they may lie at any element.
  spec.bias = true;
  TrainingOptions training;
  for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
    training.gradient_type = type;
    TrainingLayer biased = make_training_layer(engine, spec, training);
    const auto odd =
        zero_weights(test::small_spec())
            .with_biases(spec, static_cast<std::byte*>(zeros(8 * 128 * 2 + 16)) + 2, zeros(8 * 128 * 2));
    REQUIRE(odd.ok());
    const Status status = biased.bind_gradients(*odd);
    if (type == GradientType::layer_dtype) {
      CHECK(status.ok());
    } else {
      const std::string text = told(status, ErrorCode::invalid_argument);
      CHECK(text.starts_with("gradients: expert 0: gate_bias = "));
      CHECK(text.ends_with("must be 4-byte aligned"));
    }
  }
}

TEST_CASE_FIXTURE(TrainingFixture, "training: arguments of a forward that are wrong are named") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  TrainingLayer layer = make_training_layer(engine, spec);
  require_ok(layer.bind(zero_weights(spec)));
  const ForwardArgs sound = forward_args(layer, 4);
  const std::size_t kept = *layer.saved_bytes(4);
  void* const saved = zeros(kept + 256);
  const auto refusal = [&](auto change, ErrorCode code = ErrorCode::invalid_argument) {
    ForwardArgs args = sound;
    change(args);
    return told(layer.forward(args, saved, kept), code);
  };
  CHECK(layer.forward({}, nullptr, 0).ok());  // no tokens: nothing is asked of the pointers
  CHECK(refusal([](ForwardArgs&) {}) == "accepted");
  CHECK(refusal([](ForwardArgs& a) { a.tokens = -1; }) == "ForwardArgs: tokens = -1: must be 0 or more");
  CHECK(refusal([](ForwardArgs& a) { a.tokens = 1073741824; }) ==
        "ForwardArgs: tokens = 1073741824: training takes up to 1073741823 at a time");
  CHECK(refusal([](ForwardArgs& a) { a.x = nullptr; }) == "ForwardArgs: x is null");
  const std::string needed = std::to_string(sound.workspace_bytes);
  CHECK(refusal([](ForwardArgs& a) { --a.workspace_bytes; }, ErrorCode::workspace_too_small) ==
        "ForwardArgs: workspace_bytes = " + std::to_string(sound.workspace_bytes - 1) + ": 4 tokens need " +
            needed + " (TrainingLayer::workspace_bytes)");
  CHECK(refusal([](ForwardArgs& a) { a.absent_tokens = AbsentTokens::untouched; }, ErrorCode::unsupported) ==
        "ForwardArgs: absent_tokens = untouched: a training layer writes zeros");
  for (const auto& [name, where] : {std::pair{"x", const_cast<void*>(sound.x)}, std::pair{"out", sound.out},
                                    std::pair{"the workspace", sound.workspace}})
    CHECK(told(layer.forward(sound, where, kept), ErrorCode::invalid_argument) ==
          std::string("saved overlaps ") + name);
  CHECK(told(layer.forward(sound, saved, kept - 1), ErrorCode::workspace_too_small) ==
        "saved_bytes = " + std::to_string(kept - 1) + ": 4 tokens need " + std::to_string(kept) +
            " (TrainingLayer::saved_bytes)");
  CHECK(told(layer.forward(sound, nullptr, kept), ErrorCode::invalid_argument)
            .ends_with("must be 256-byte aligned"));
  CHECK(told(layer.forward(sound, static_cast<std::byte*>(saved) + 16, kept), ErrorCode::invalid_argument)
            .starts_with("saved = "));
}

TEST_CASE_FIXTURE(TrainingFixture, "training: arguments of a backward that are wrong are named") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  TrainingLayer layer = make_training_layer(engine, spec);
  require_ok(layer.bind(zero_weights(spec)));
  require_ok(layer.bind_gradients(zero_weights(spec)));
  const BackwardArgs sound = backward_args(layer, 4);
  const auto refusal = [&](auto change, ErrorCode code = ErrorCode::invalid_argument) {
    BackwardArgs args = sound;
    change(args);
    return told(layer.backward(args), code);
  };
  const auto moved = [](const void* p, std::size_t bytes) {
    return static_cast<void*>(static_cast<std::byte*>(const_cast<void*>(p)) + bytes);
  };
  CHECK(refusal([](BackwardArgs&) {}) == "accepted");
  CHECK(layer.backward({}).ok());
  CHECK(refusal([](BackwardArgs& a) { a.tokens = -1; }) ==
        "BackwardArgs: tokens = -1: must be from 0 to 1073741823");
  CHECK(refusal([](BackwardArgs& a) { a.tokens = 1073741824; }) ==
        "BackwardArgs: tokens = 1073741824: must be from 0 to 1073741823");
  CHECK(refusal([](BackwardArgs& a) { a.id_type = static_cast<IdType>(9); }) ==
        "BackwardArgs: id_type = 9: must be int32 (0) or int64 (1)");
  CHECK(refusal([](BackwardArgs& a) { a.x = nullptr; }) == "BackwardArgs: x is null");
  CHECK(refusal([](BackwardArgs& a) { a.topk_ids = nullptr; }) == "BackwardArgs: topk_ids is null");
  CHECK(refusal([](BackwardArgs& a) { a.topk_weights = nullptr; }) == "BackwardArgs: topk_weights is null");
  CHECK(refusal([](BackwardArgs& a) { a.dout = nullptr; }) == "BackwardArgs: dout is null");
  CHECK(refusal([](BackwardArgs& a) { a.saved = nullptr; }) == "BackwardArgs: saved is null");
  CHECK(refusal([](BackwardArgs& a) { a.workspace = nullptr; }) == "BackwardArgs: workspace is null");
  // What may be null.
  CHECK(refusal([](BackwardArgs& a) { a.dx = nullptr; }) == "accepted");
  CHECK(refusal([](BackwardArgs& a) { a.dtopk_weights = nullptr; }) == "accepted");

  const auto misaligned = [&](auto change, const char* name, int alignment) {
    const std::string text = refusal(change);
    CHECK(text.starts_with(std::string("BackwardArgs: ") + name + " = "));
    CHECK(text.ends_with("must be " + std::to_string(alignment) + "-byte aligned"));
  };
  misaligned([&](BackwardArgs& a) { a.x = moved(a.x, 8); }, "x", 16);
  misaligned([&](BackwardArgs& a) { a.topk_ids = moved(a.topk_ids, 2); }, "topk_ids", 4);
  misaligned([&](BackwardArgs& a) { a.id_type = IdType::int64, a.topk_ids = moved(a.topk_ids, 4); },
             "topk_ids", 8);
  misaligned([&](BackwardArgs& a) { a.topk_weights = static_cast<float*>(moved(a.topk_weights, 2)); },
             "topk_weights", 4);
  misaligned([&](BackwardArgs& a) { a.token_count = static_cast<std::int32_t*>(moved(a.x, 2)); },
             "token_count", 4);
  misaligned([&](BackwardArgs& a) { a.expert_map = static_cast<std::int32_t*>(moved(a.x, 2)); }, "expert_map",
             4);
  misaligned([&](BackwardArgs& a) { a.dout = moved(a.dout, 8); }, "dout", 16);
  misaligned([&](BackwardArgs& a) { a.saved = moved(a.saved, 128); }, "saved", 256);
  misaligned([&](BackwardArgs& a) { a.dx = moved(a.dx, 8); }, "dx", 16);
  misaligned([&](BackwardArgs& a) { a.dtopk_weights = static_cast<float*>(moved(a.dtopk_weights, 2)); },
             "dtopk_weights", 4);
  misaligned([&](BackwardArgs& a) { a.workspace = moved(a.workspace, 128); }, "workspace", 256);

  static const std::int32_t map[1] = {};
  CHECK(refusal([&](BackwardArgs& a) { a.expert_map = map; }) ==
        "BackwardArgs: num_global_experts = 0: must be from 1 to 2147483647 with an expert_map");
  CHECK(refusal([](BackwardArgs& a) { a.x_stride = 120; }) ==
        "BackwardArgs: x_stride = 120: must be 0 (the hidden size), or a multiple of 8 from 128 to "
        "1099511627776");
  CHECK(
      refusal([](BackwardArgs& a) { a.dout_stride = 132; }).starts_with("BackwardArgs: dout_stride = 132: "));
  CHECK(refusal([](BackwardArgs& a) { a.dx_stride = -8; }).starts_with("BackwardArgs: dx_stride = -8: "));

  CHECK(refusal([](BackwardArgs& a) { a.dx = const_cast<void*>(a.x); }) == "BackwardArgs: dx overlaps x");
  CHECK(refusal([&](BackwardArgs& a) { a.dx = moved(a.dout, 3 * 256); }) == "BackwardArgs: dx overlaps dout");
  CHECK(refusal([](BackwardArgs& a) { a.dx = const_cast<void*>(a.saved); }) ==
        "BackwardArgs: dx overlaps saved");
  CHECK(refusal([](BackwardArgs& a) { a.dtopk_weights = const_cast<float*>(a.topk_weights); }) ==
        "BackwardArgs: dtopk_weights overlaps topk_weights");
  CHECK(refusal([](BackwardArgs& a) { a.dtopk_weights = static_cast<float*>(a.dx); }) ==
        "BackwardArgs: dx overlaps dtopk_weights");
  CHECK(refusal([](BackwardArgs& a) { a.workspace = const_cast<void*>(a.saved); }) ==
        "BackwardArgs: workspace overlaps saved");
  CHECK(refusal([](BackwardArgs& a) { a.dx = a.workspace; }) == "BackwardArgs: dx overlaps workspace");
  CHECK(refusal([](BackwardArgs& a) { a.dtopk_weights = static_cast<float*>(a.workspace); }) ==
        "BackwardArgs: dtopk_weights overlaps workspace");

  CHECK(refusal([](BackwardArgs& a) { --a.saved_bytes; }, ErrorCode::workspace_too_small) ==
        "BackwardArgs: saved_bytes = " + std::to_string(sound.saved_bytes - 1) + ": 4 tokens need " +
            std::to_string(sound.saved_bytes) + " (TrainingLayer::saved_bytes)");
  CHECK(refusal([](BackwardArgs& a) { --a.workspace_bytes; }, ErrorCode::workspace_too_small) ==
        "BackwardArgs: workspace_bytes = " + std::to_string(sound.workspace_bytes - 1) + ": 4 tokens need " +
            std::to_string(sound.workspace_bytes) + " (TrainingLayer::workspace_bytes)");
}

TEST_CASE_FIXTURE(TrainingFixture,
                  "training: no tokens make weight gradients zero, by TrainingLayer::backward alone") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  TrainingLayer layer = make_training_layer(engine, spec);
  require_ok(layer.bind(zero_weights(spec)));
  oracle::GradientBuffers gradients(spec, oracle::Storage::strided, false);
  gradients.fill(3);
  const auto before = gradients.clone();
  require_ok(layer.bind_gradients(gradients.weights()));
  BackwardArgs none;
  none.accumulate_weight_gradients = true;
  require_ok(layer.backward(none));
  CHECK(gradients == before);
  none.accumulate_weight_gradients = false;
  require_ok(layer.backward(none));
  CHECK(gradients.gaps_are_poison());
  const auto found = gradients.read();
  for (const auto& expert : found.experts) {
    CHECK(expert.gate == std::vector<double>(64 * 128));
    CHECK(expert.up == std::vector<double>(64 * 128));
    CHECK(expert.down == std::vector<double>(64 * 128));
  }
}

TEST_CASE_FIXTURE(TrainingFixture,
                  "training: a layer that was moved from, and one in a forked child, say so") {
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  TrainingLayer first = make_training_layer(engine, spec);
  TrainingLayer layer = std::move(first);
  CHECK(first.spec() == LayerSpec{});
  CHECK(first.options().save_preactivation);
  const auto moved = [](const auto& result, const char* call) {
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().message() == std::string(call) + " on a TrainingLayer that was moved from");
  };
  moved(first.prepare(), "prepare");
  moved(first.bind({}), "bind");
  moved(first.bind_gradients({}), "bind_gradients");
  moved(first.saved_bytes(1), "saved_bytes");
  moved(first.workspace_bytes(1), "workspace_bytes");
  moved(first.forward({}, nullptr, 0), "forward");
  moved(first.backward({}), "backward");

  const Weights weights = zero_weights(spec);
  require_ok(layer.bind(weights));
  require_ok(layer.bind_gradients(weights));
  BackwardArgs args = backward_args(layer, 4);
  require_ok(layer.backward(args));
  const test::ChildStatus status = test::run_child([&] {
    const auto documented = [](const auto& result) {
      return !result.ok() && result.error().code() == ErrorCode::unsupported &&
             result.error().message().find("fork") != std::string::npos;
    };
    if (!documented(layer.forward({}, nullptr, 0))) return 1;
    if (!documented(layer.backward(args))) return 2;
    if (!documented(layer.prepare())) return 3;
    if (!documented(layer.bind(weights))) return 4;
    if (!documented(layer.bind_gradients(weights))) return 5;
    if (!documented(engine.create_training_layer(spec, {}))) return 6;
    { const TrainingLayer gone = std::move(layer); }
    { const Engine gone = std::move(engine); }
    return 0;
  });
  CHECK(status.exit_code() == 0);
  CHECK(layer.backward(args).ok());
}
