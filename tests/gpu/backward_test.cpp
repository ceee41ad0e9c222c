#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "cuda/graph.hpp"
#include "gpu/device_training.hpp"
#include "model/named_sets.hpp"

// TrainingLayer on the GPU against the fp64 oracle. Every case runs twice, with other rubbish in its
// workspace, and must give the same bits; outputs begin as NaNs, and what is not output must stay.

using oracle::GradientBuffers;
using oracle::Storage;
using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

namespace {

varmoe::LayerSpec mixed_spec(Activation activation = Activation::silu_mul) {
  varmoe::LayerSpec spec;
  spec.hidden_size = 264;
  spec.expert_widths = {64, 8, 200, 136, 328, 64, 104};
  spec.top_k = 3;
  spec.activation = activation;
  return spec;
}

oracle::TrainingCase make(const varmoe::LayerSpec& spec, oracle::CaseOptions layer,
                          oracle::TrainingOptions options = {}) {
  return oracle::make_training_case(oracle::make_case(spec, layer), std::move(options));
}

/// The shard of this process, as VARMOE_GPU_SHARD=i/n names it.
struct Shard {
  int index = 0, count = 1;
  Shard() {
    if (const char* text = std::getenv("VARMOE_GPU_SHARD"))
      REQUIRE(std::sscanf(text, "%d/%d", &index, &count) == 2);
  }
};

}  // namespace

TEST_CASE("small: backward: a gated layer and an ungated one") {
  for (const auto activation : {Activation::silu_mul, Activation::relu2}) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      auto spec = mixed_spec(activation);
      spec.fc1_layout = spec.fc2_layout = layout;
      CAPTURE(tuning_signature(spec));
      gpu::check_training("backward, small", make(spec, {.tokens = 77, .seed = 1, .invalid_fraction = 0.1}));
    }
  }
}

TEST_CASE("small: backward: weights on the input") {
  for (const bool bias : {false, true}) {
    auto spec = mixed_spec();
    spec.weight_on_input = true;
    spec.bias = bias;
    CAPTURE(tuning_signature(spec));
    auto c = make(spec, {.tokens = 77, .seed = 4, .invalid_fraction = 0.1});
    oracle::zero_some_weights(c);
    gpu::check_training("backward, small", c);
  }
}

TEST_CASE("small: backward: a first use prepares") {
  auto spec = mixed_spec();
  spec.hidden_size = 72;
  const auto c = make(spec, {.tokens = 20, .seed = 2});
  gpu::DeviceTraining training(c, false);
  gpu::check_training("backward, small", c, training);
}

TEST_CASE("small: backward: a hot expert's rows in parts") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const bool accumulate : {false, true}) {
      varmoe::LayerSpec spec = varmoe::uniform_spec(72, 3, 40, 2);
      spec.fc1_layout = spec.fc2_layout = layout;
      CAPTURE(tuning_signature(spec));
      // 1202 rows of one expert are more than twice the least of a part.
      gpu::check_training("backward, parts",
                          make(spec, {.tokens = 601, .seed = 3, .routing = oracle::Routing::one_expert},
                               {.accumulate_weights = accumulate}));
    }
  }
}

TEST_CASE("backward: 100 random specs") {
  const Shard shard;
  oracle::TrainingLimits limits;
  limits.hidden = 2048;
  limits.width = 1536;
  limits.experts = 128;
  limits.tokens = 2000;
  limits.top_k = 8;
  limits.elements = 4e7;
  for (int i = shard.index; i < 100; i += shard.count) {
    CAPTURE(i);
    gpu::check_training("backward, random specs",
                        oracle::draw_training_case(9000 + static_cast<std::uint64_t>(i), limits));
  }
}

TEST_CASE("backward: named sets") {
  int sets = 0;
  for (const auto& set : varmoe::model::named_sets()) {
    if (set.spec.gated()) continue;  // the eight of 8 to 128 experts
    ++sets;
    CAPTURE(set.name);
    gpu::check_training("backward, named sets", make(set.spec, {.tokens = 512, .seed = 11}));
  }
  CHECK(sets == 8);
}

TEST_CASE("backward: wide and mixed widths") {
  for (const auto activation : {Activation::silu_mul, Activation::gelu_tanh}) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const auto dtype : {DType::bf16, DType::fp16}) {
        varmoe::LayerSpec spec;
        spec.hidden_size = 1032;
        spec.expert_widths = {64, 2944, 704, 128, 1408, 72, 2048, 1000};
        spec.top_k = 2;
        spec.activation = activation;
        spec.dtype = dtype;
        spec.fc1_layout = spec.fc2_layout = layout;
        CAPTURE(tuning_signature(spec));
        gpu::check_training("backward, wide and mixed widths", make(spec, {.tokens = 700, .seed = 12}));
      }
    }
  }
}

TEST_CASE("backward: more widths than can be compiled in") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 40, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 40));
  gpu::check_training("backward, runtime widths", make(spec, {.tokens = 300, .seed = 13}));
}

TEST_CASE("backward: skewed routing and experts without rows") {
  for (const auto routing :
       {oracle::Routing::zipf, oracle::Routing::one_expert, oracle::Routing::half_on_one}) {
    for (const bool accumulate : {false, true}) {
      varmoe::LayerSpec spec = varmoe::uniform_spec(512, 48, 192, 4);
      for (std::size_t e = 0; e < spec.expert_widths.size(); e += 3) spec.expert_widths[e] = 320;
      CAPTURE(oracle::to_string(routing));
      CAPTURE(accumulate);
      const auto c = make(spec, {.tokens = 1333, .seed = 14, .routing = routing, .empty_every = 3},
                          {.accumulate_weights = accumulate});
      CHECK(c.reference().rows[1] == 0);
      gpu::check_training("backward, skewed routing", c);
    }
  }
}

TEST_CASE("backward: few tokens and odd ones") {
  for (const std::int64_t tokens : {1, 2, 3, 7, 17, 65, 129}) {
    CAPTURE(tokens);
    gpu::check_training("backward, few tokens", make(mixed_spec(), {.tokens = tokens, .seed = 15}));
  }
}

TEST_CASE("backward: accumulation into 16-bit and fp32 gradients") {
  for (const auto dtype : {DType::bf16, DType::fp16}) {
    for (const bool fp32 : {false, true}) {
      for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
        auto spec = mixed_spec();
        spec.dtype = dtype;
        spec.bias = true;
        spec.fc1_layout = spec.fc2_layout = layout;
        CAPTURE(tuning_signature(spec));
        CAPTURE(fp32);
        gpu::check_training("backward, accumulation",
                            make(spec, {.tokens = 210, .seed = 16, .empty_every = 3},
                                 {.fp32 = fp32,
                                  .gradient_storage = Storage::strided,
                                  .accumulate_dx = true,
                                  .accumulate_weights = true}));
      }
    }
  }
}

TEST_CASE("backward: adding a gradient to itself in fp32 doubles it exactly") {
  auto c = make(mixed_spec(), {.tokens = 150, .seed = 17}, {.fp32 = true});
  c.before.gradients = gpu::DeviceTraining(c).run().gradients.clone();
  c.options.accumulate_weights = true;
  const auto once = c.before.gradients.read(), twice = gpu::DeviceTraining(c).run().gradients.read();
  for (std::size_t e = 0; e < once.experts.size(); ++e) {
    const auto check = [&](const std::vector<double>& one, const std::vector<double>& two) {
      for (std::size_t i = 0; i < one.size(); ++i)
        if (two[i] != 2 * one[i]) FAIL("expert ", e, " element ", i, ": ", one[i], " became ", two[i]);
    };
    check(once.experts[e].gate, twice.experts[e].gate);
    check(once.experts[e].up, twice.experts[e].up);
    check(once.experts[e].down, twice.experts[e].down);
  }
}

TEST_CASE("backward: every storage, layout and gate order") {
  for (const auto fc1 : {WeightLayout::nk, WeightLayout::kn}) {
    for (const auto fc2 : {WeightLayout::nk, WeightLayout::kn}) {
      for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        auto spec = mixed_spec();
        spec.fc1_layout = fc1;
        spec.fc2_layout = fc2;
        spec.gate_order = order;
        for (const auto storage : oracle::kStorages) {
          if (!oracle::storage_fits(spec, storage)) continue;
          CAPTURE(tuning_signature(spec));
          CAPTURE(oracle::to_string(storage));
          const bool fp32 = static_cast<int>(storage) % 2 == 1;
          gpu::check_training("backward, storages", make(spec, {.tokens = 60, .seed = 18, .storage = storage},
                                                         {.fp32 = fp32, .gradient_storage = storage}));
        }
      }
    }
  }
}

TEST_CASE("backward: every activation with z kept and made again") {
  for (int a = 0; a < 10; ++a) {
    for (const bool save : {true, false}) {
      auto spec = mixed_spec(static_cast<Activation>(a));
      spec.dtype = a % 2 == 0 ? DType::bf16 : DType::fp16;
      const bool clamped = spec.activation == Activation::swiglu_oai;
      if (clamped) spec.activation_params.limit = 1.0f;
      CAPTURE(tuning_signature(spec));
      CAPTURE(save);
      gpu::check_training("backward, activations", make(spec, {.tokens = 130, .seed = 19},
                                                        {.save_preactivation = save, .round_z = clamped}));
    }
  }
}

TEST_CASE("backward: biases and shared experts with a gate and without") {
  for (const bool save : {true, false}) {
    for (const auto activation : {Activation::silu_mul, Activation::swiglu_oai, Activation::relu2}) {
      for (int kind = 0; kind < 3; ++kind) {
        auto spec = mixed_spec(activation);
        if (kind == 0) {
          spec.bias = true;
        } else {
          spec.shared_widths = {128, 520};
          spec.shared_gate = kind == 2;
        }
        spec.gate_order = GateOrder::interleaved;
        CAPTURE(tuning_signature(spec));
        CAPTURE(save);
        gpu::check_training("backward, biases and shared experts",
                            make(spec, {.tokens = 190, .seed = 20, .invalid_fraction = 0.2},
                                 {.save_preactivation = save, .fp32 = kind == 2}));
      }
    }
  }
}

TEST_CASE("backward: weights on the input with biases and shared experts") {
  for (const bool save : {true, false}) {
    for (const auto activation : {Activation::silu_mul, Activation::swiglu_oai, Activation::gelu_tanh}) {
      for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
        for (int kind = 0; kind < 4; ++kind) {
          auto spec = mixed_spec(activation);
          spec.weight_on_input = true;
          spec.fc1_layout = spec.fc2_layout = layout;
          spec.gate_order = kind % 2 == 0 ? GateOrder::interleaved : GateOrder::up_first;
          spec.dtype = layout == WeightLayout::nk ? DType::bf16 : DType::fp16;
          spec.bias = kind == 1;
          if (kind >= 2) spec.shared_widths = {128, 520};
          spec.shared_gate = kind == 3;
          const bool clamped = activation == Activation::swiglu_oai;
          if (clamped) spec.activation_params.limit = 1.0f;
          CAPTURE(tuning_signature(spec));
          CAPTURE(save);
          auto c = make(spec, {.tokens = 190, .seed = 29, .invalid_fraction = 0.2, .empty_every = 3},
                        {.save_preactivation = save,
                         .fp32 = kind % 2 == 1,
                         .accumulate_weights = kind == 2,
                         .round_z = clamped});
          oracle::zero_some_weights(c);
          gpu::check_training("backward, weights on the input", c);
        }
      }
    }
  }
}

TEST_CASE("backward: weights on the input of wide, of many and of runtime widths") {
  for (int kind = 0; kind < 3; ++kind) {
    varmoe::LayerSpec spec = varmoe::uniform_spec(kind == 0 ? 1032 : 256, kind == 0 ? 4 : 40, 8, 3);
    for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
      const auto i = static_cast<std::int64_t>(e);
      spec.expert_widths[e] = kind == 0 ? 64 + 944 * (i % 3) : kind == 1 ? 192 : 8 * (1 + i * 7 % 40);
    }
    spec.weight_on_input = true;
    spec.bias = kind == 2;
    CAPTURE(tuning_signature(spec));
    // A hot expert's rows in parts, too.
    auto c = make(spec, {.tokens = 1500, .seed = 30, .routing = oracle::Routing::half_on_one});
    oracle::zero_some_weights(c);
    gpu::check_training("backward, weights on the input", c);
  }
}

TEST_CASE("backward: strides and token counts and expert maps and outputs that are not wanted") {
  for (const std::int64_t count : {-1, 0, 1, 64, 99, 500}) {
    CAPTURE(count);
    auto spec = mixed_spec();
    spec.shared_widths = {72};
    spec.shared_gate = true;
    gpu::check_training("backward, strides and counts",
                        make(spec, {.tokens = 100, .seed = 21, .x_stride = 264 + 40},
                             {.dout_stride = 264 + 8,
                              .dx_stride = 264 + 24,
                              .token_count = count,
                              .expert_map = {3, -1, 0, 6, 1, 1, 9, 2},
                              .ids_64 = count % 2 == 0}));
  }
  for (int without = 0; without < 4; ++without) {
    CAPTURE(without);
    gpu::check_training("backward, strides and counts",
                        make(mixed_spec(), {.tokens = 100, .seed = 22},
                             {.dx = without != 0 && without != 3,
                              .dtopk_weights = without != 1,
                              .weight_gradients = without != 2 && without != 3}));
  }
}

TEST_CASE("backward: no tokens make weight gradients zero or leave them") {
  for (const bool accumulate : {false, true}) {
    for (const bool fp32 : {false, true}) {
      auto spec = mixed_spec();
      spec.shared_widths = {72};
      spec.shared_gate = true;
      gpu::check_training(
          "backward, no tokens",
          make(spec, {.tokens = 0, .seed = 23},
               {.fp32 = fp32, .gradient_storage = Storage::pointers, .accumulate_weights = accumulate}));
    }
  }
}

namespace {

enum class Kind { plain, weights_on_input, and_biases };

void check_dh_in_every_tile(Kind kind) {
  // One warpgroup's columns are 64 or 128, a warp's 16 to 64; widths end within them, and within 64.
  for (const char* config :
       {"schedule=wgmma,block_m=64,block_n=128,warps_m=1,warps_n=8",
        "schedule=wgmma,block_m=128,block_n=256,warps_m=1,warps_n=8",
        "schedule=wgmma,block_m=128,block_n=128,warps_m=1,warps_n=8,cluster=2",
        "schedule=wgmma_pingpong,block_m=128,block_n=128,warps_m=2,warps_n=4",
        "schedule=wgmma_pingpong,block_m=192,block_n=64,warps_m=2,warps_n=4",
        "schedule=wgmma_pingpong,block_m=96,block_n=128,warps_m=2,warps_n=4,cluster=2,gather=copy",
        "schedule=mma_sync,block_m=64,block_n=128,block_k=64,stages=3,warps_m=2,warps_n=2,ctas_per_sm=1",
        "schedule=mma_sync,block_m=16,block_n=32,block_k=64,stages=3,warps_m=1,warps_n=2,ctas_per_sm=1",
        "schedule=mma_sync,block_m=32,block_n=64,block_k=64,stages=3,warps_m=1,warps_n=2,ctas_per_sm=1"}) {
    if (std::string(config).find("wgmma") != std::string::npos &&
        gpu::device()->attributes().compute_major != 9)
      continue;
    varmoe::EngineOptions options;
    options.cache_dir = gpu::cache_dir();
    options.log = [](varmoe::LogLevel, std::string_view) {};
    options.dh_config = config;
    for (const char* key : {"stages=4", "cluster=1", "block_k=64", "ctas_per_sm=1", "gather=fused"}) {
      const std::string name(key, std::string_view(key).find('=') + 1);
      if (options.dh_config.find(name) == std::string::npos) options.dh_config += "," + std::string(key);
    }
    auto engine = gpu::must(varmoe::Engine::create(options), "Engine::create");
    for (const bool alternating : {false, true}) {
      for (const auto activation : {Activation::silu_mul, Activation::gelu_tanh}) {
        if (alternating && activation == Activation::gelu_tanh) continue;
        auto spec = mixed_spec(activation);
        spec.expert_widths = {64, 8, 200, 136, 328, 72, 104};
        if (alternating) spec.gate_order = GateOrder::interleaved;
        if (alternating) spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
        spec.weight_on_input = kind != Kind::plain;
        spec.bias = kind == Kind::and_biases;
        if (!spec.bias) spec.shared_widths = {520};
        spec.shared_gate = !spec.bias;
        CAPTURE(config);
        CAPTURE(tuning_signature(spec));
        const auto c = make(spec, {.tokens = 500, .seed = 28, .invalid_fraction = 0.1});
        gpu::DeviceTraining training(c, true, 0, &engine);
        gpu::check_training("backward, dh's tiles", c, training);
      }
    }
  }
}

}  // namespace

TEST_CASE("backward: dh in every kind of tile") {
  check_dh_in_every_tile(Kind::plain);
}
TEST_CASE("backward: dh in every kind of tile: weights on the input") {
  check_dh_in_every_tile(Kind::weights_on_input);
}
TEST_CASE("backward: dh in every kind of tile: weights on the input and biases") {
  check_dh_in_every_tile(Kind::and_biases);
}

TEST_CASE("backward: a bound of SMs") {
  const auto c = make(mixed_spec(), {.tokens = 300, .seed = 24});
  gpu::DeviceTraining training(c, true, 16);
  gpu::check_training("backward, 16 SMs", c, training);
}

TEST_CASE("backward: a captured forward and backward replay on new data") {
  for (const bool save : {true, false}) {
    auto spec = mixed_spec();
    spec.shared_widths = {72};
    spec.shared_gate = true;
    const oracle::TrainingOptions options{.save_preactivation = save, .fp32 = !save};
    const auto first = make(spec, {.tokens = 90, .seed = 25}, options),
               other = make(spec, {.tokens = 90, .seed = 26}, options);
    gpu::DeviceTraining training(first);
    gpu::must(varmoe::cuda::begin_capture(*gpu::device(), training.stream()), "begin_capture");
    const varmoe::Status forward = training.forward(), backward = training.backward();
    const auto graph =
        gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), training.stream()), "end_capture");
    gpu::must(forward, "forward");
    gpu::must(backward, "backward");
    const auto exec = gpu::must(varmoe::cuda::GraphExec::instantiate(graph), "instantiate");
    for (const auto* c : {&first, &other, &first}) {
      training.upload_inputs(*c);
      training.reset_outputs(*c);
      gpu::must(exec.launch(training.stream()), "replay");
      const auto replayed = training.download();
      const auto result = c->compare(c->reference(), replayed, oracle::training_bar(spec.dtype));
      CHECK_MESSAGE(result.pass(), result.text());
      training.reset_outputs(*c, 0x01);
      gpu::must(training.forward(), "forward");
      gpu::must(training.backward(), "backward");
      CHECK_MESSAGE(training.download() == replayed, "a replay differs from plain calls");
    }
  }
}

TEST_CASE("backward: capturing an unprepared layer is not_prepared and leaves the capture intact") {
  auto spec = mixed_spec();
  spec.hidden_size = 88;  // no other test's kernels
  const auto c = make(spec, {.tokens = 30, .seed = 27});
  gpu::DeviceTraining training(c, false);
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), training.stream()), "begin_capture");
  const varmoe::Status forward = training.forward(), backward = training.backward();
  const auto graph =
      gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), training.stream()), "end_capture");
  REQUIRE(!forward.ok());
  REQUIRE(!backward.ok());
  CHECK(forward.error().code() == varmoe::ErrorCode::not_prepared);
  CHECK(backward.error().code() == varmoe::ErrorCode::not_prepared);
  CHECK(gpu::must(graph.node_count(), "node_count") == 0);
  gpu::check_training("backward, small", c, training);
}
