#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "gpu/device_layer.hpp"

// Biases, weights on the input, and the local side of expert parallelism, in every main loop.

namespace {

using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::LayerSpec;
using varmoe::WeightLayout;

struct Form {
  const char* name;
  Activation activation;
  WeightLayout fc1, fc2;
  GateOrder order;
};
/// Where gate and up meet differs in each; the second is gpt-oss's, the third Llama-4's.
constexpr Form kForms[] = {
    {"nk", Activation::silu_mul, WeightLayout::nk, WeightLayout::nk, GateOrder::gate_first},
    {"kn interleaved", Activation::swiglu_oai, WeightLayout::kn, WeightLayout::kn, GateOrder::interleaved},
    {"kn", Activation::silu_mul, WeightLayout::kn, WeightLayout::kn, GateOrder::gate_first},
    {"kn up first", Activation::gelu_tanh_mul, WeightLayout::kn, WeightLayout::nk, GateOrder::up_first},
    {"nk up first", Activation::silu_mul, WeightLayout::nk, WeightLayout::kn, GateOrder::up_first},
    {"nk interleaved", Activation::swiglu_oai, WeightLayout::nk, WeightLayout::nk, GateOrder::interleaved},
    {"nk ungated", Activation::relu2, WeightLayout::nk, WeightLayout::nk, GateOrder::gate_first},
    {"kn ungated", Activation::identity, WeightLayout::kn, WeightLayout::kn, GateOrder::gate_first},
};

/// Widths that no tile divides, hidden no multiple of a stage or of a tile.
LayerSpec spec_of(const Form& form, DType dtype, bool bias, bool weight_on_input) {
  LayerSpec spec;
  spec.hidden_size = 456;
  for (const std::int64_t width : {72, 128, 200, 320, 8, 264})
    spec.expert_widths.insert(spec.expert_widths.end(), 2, width);
  spec.top_k = 3;
  spec.activation = form.activation;
  spec.dtype = dtype;
  spec.fc1_layout = form.fc1;
  spec.fc2_layout = form.fc2;
  spec.gate_order = form.order;
  spec.bias = bias;
  spec.weight_on_input = weight_on_input;
  return spec;
}

std::string group_of(const LayerSpec& spec) {
  return std::string(spec.bias && spec.weight_on_input ? "biases and weights on the input"
                     : spec.bias                       ? "biases"
                                                       : "weights on the input") +
         ", " + to_string(spec.dtype);
}

bool hopper() {
  return gpu::device()->attributes().compute_major == 9;
}

/// An engine with these tiles; empty: the cost model's.
varmoe::Engine engine_with(const std::string& fc1, const std::string& fc2) {
  varmoe::EngineOptions options;
  options.cache_dir = gpu::cache_dir();
  options.fc1_config = fc1;
  options.fc2_config = fc2;
  options.log = [](varmoe::LogLevel, std::string_view) {};
  return gpu::must(varmoe::Engine::create(options), "Engine::create");
}

/// Ids of a model of `global` experts, of which the layer has every third, in descending order; −1 elsewhere.
std::vector<std::int32_t> third_of(std::int64_t global, std::int64_t local) {
  std::vector<std::int32_t> map(static_cast<std::size_t>(global), -1);
  for (std::int64_t e = 0; e < local; ++e)
    map[static_cast<std::size_t>(3 * e + 1)] = static_cast<std::int32_t>(local - 1 - e);
  return map;
}

/// The case with ids of `global` experts instead, some of them nobody's, and some tokens without any.
void make_global(oracle::RandomCase& c, std::int64_t global) {
  const std::int64_t k = c.spec.top_k;
  for (std::size_t i = 0; i < c.ids64.size(); ++i) {
    const auto drawn = oracle::detail::mix(77, i);
    std::int64_t id = static_cast<std::int64_t>(drawn % static_cast<std::uint64_t>(global));
    const std::int64_t nobody[] = {-1, global, 2147483647, -2147483648LL};
    if (drawn >> 60 == 0) id = nobody[(drawn >> 50) % 4];
    if (static_cast<std::int64_t>(i) / k % 5 == 3) id = 0;  // third_of maps 0 to nobody
    c.ids64[i] = id;
    c.ids32[i] = static_cast<std::int32_t>(id);
  }
}

}  // namespace

TEST_CASE("small: biases and weights on the input in every layout and both dtypes") {
  std::uint64_t seed = 1;
  for (const Form& form : kForms) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      for (const int options : {1, 2, 3}) {
        CAPTURE(form.name);
        CAPTURE(to_string(dtype));
        CAPTURE(options);
        LayerSpec spec = spec_of(form, dtype, options % 2 == 1, options >= 2);
        spec.hidden_size = 136;
        spec.expert_widths = {72, 24, 40, 72, 8};
        oracle::CaseOptions o;
        o.tokens = 37;
        o.seed = seed++;
        o.routing = oracle::Routing::zipf;
        o.empty_every = 3;
        o.accumulate = seed % 3 == 0;
        const auto c = oracle::make_case(spec, o);
        gpu::DeviceLayer layer(c);
        gpu::RunOptions run;
        run.ids_64 = seed % 2 == 1;
        run.sample = 37;
        gpu::check_case(group_of(spec), layer, run);
      }
    }
  }
}

TEST_CASE("small: biases and weights on the input of the gpt-oss and Llama-4 kinds in each main loop") {
  std::vector<std::string> tiles = {
      "schedule=mma_sync,block_m=64,block_n=64,stages=3,warps_m=2,warps_n=2,cluster=1"};
  if (hopper()) {
    tiles.insert(tiles.end(),
                 {"schedule=wgmma,block_m=64,block_n=256,stages=4,warps_m=1,warps_n=8",
                  "schedule=wgmma_pingpong,block_m=48,block_n=128,stages=4,warps_m=2,warps_n=4,cluster=2"});
  }
  for (const std::string& tile : tiles) {
    const std::string config = tile + ",block_k=64,ctas_per_sm=1";
    auto engine = engine_with(config, config);
    for (const Form& form : {kForms[1], kForms[2]}) {
      CAPTURE(tile);
      CAPTURE(form.name);
      LayerSpec spec = spec_of(form, DType::bf16, form.order == GateOrder::interleaved,
                               form.order != GateOrder::interleaved);
      spec.hidden_size = 200;
      oracle::CaseOptions o;
      o.tokens = 90;
      o.routing = oracle::Routing::half_on_one;
      o.invalid_fraction = 0.1;
      const auto c = oracle::make_case(spec, o);
      gpu::DeviceLayer layer(c, {}, &engine);
      gpu::check_case(group_of(spec), layer);
    }
  }
}

TEST_CASE("small: biases in every storage") {
  for (const Form& form : {kForms[0], kForms[2], kForms[5], kForms[6]}) {
    for (const oracle::Storage storage : oracle::kStorages) {
      const LayerSpec spec = spec_of(form, DType::bf16, true, false);
      if (!oracle::storage_fits(spec, storage)) continue;
      CAPTURE(form.name);
      CAPTURE(oracle::to_string(storage));
      oracle::CaseOptions o;
      o.tokens = 21;
      o.storage = storage;
      const auto c = oracle::make_case(spec, o);
      gpu::DeviceLayer layer(c);
      gpu::check_case(group_of(spec), layer);
    }
  }
}

TEST_CASE("small: biases and weights on the input with runtime widths") {
  for (const Form& form : {kForms[0], kForms[1], kForms[6]}) {
    LayerSpec spec = spec_of(form, DType::bf16, true, true);
    spec.hidden_size = 256;
    spec.expert_widths.assign(40, 8);
    for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
      spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 40));
    oracle::CaseOptions o;
    o.tokens = 700;
    o.routing = oracle::Routing::zipf;
    const auto c = oracle::make_case(spec, o);
    gpu::DeviceLayer layer(c);
    for (const std::int64_t tokens : {1, 64, 700}) {
      CAPTURE(form.name);
      CAPTURE(tokens);
      gpu::RunOptions run;
      run.tokens = tokens;
      gpu::check_case("biases with runtime widths", layer, run);
    }
  }
}

TEST_CASE("small: weights on the input in chunks and with a token count") {
  LayerSpec spec = spec_of(kForms[2], DType::bf16, true, true);
  oracle::CaseOptions o;
  o.tokens = 900;
  const auto c = oracle::make_case(spec, o);
  varmoe::LayerOptions bounded;
  bounded.max_workspace_bytes = std::size_t{1} << 20;
  gpu::DeviceLayer layer(c, bounded);
  gpu::check_case("weights on the input in chunks", layer);
  gpu::RunOptions run;
  run.device_tokens = 500;
  gpu::check_case("weights on the input in chunks", layer, run);
}

TEST_CASE("biases and weights on the input at every token count and skew") {
  for (const Form& form : kForms) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      const bool bias = form.order != GateOrder::gate_first || form.fc1 == WeightLayout::nk;
      LayerSpec spec = spec_of(form, dtype, bias, !bias || form.order == GateOrder::up_first);
      for (const oracle::Routing routing : oracle::kRoutings) {
        oracle::CaseOptions o;
        o.tokens = 4096;
        o.seed = 5;
        o.routing = routing;
        o.invalid_fraction = 0.1;
        o.duplicate_fraction = 0.1;
        o.empty_every = 4;
        const auto c = oracle::make_case(spec, o);
        gpu::DeviceLayer layer(c);
        for (const std::int64_t tokens : {1, 8, 65, 513, 4096}) {
          CAPTURE(form.name);
          CAPTURE(oracle::to_string(routing));
          CAPTURE(tokens);
          gpu::RunOptions run;
          run.tokens = tokens;
          run.sample = 48;
          gpu::check_case(group_of(spec), layer, run);
        }
      }
    }
  }
}

TEST_CASE("biases and weights on the input in Hopper tiles of every kind") {
  if (!hopper()) return;
  for (const char* tile :
       {"schedule=wgmma,block_m=256,block_n=128,stages=4,warps_m=1,warps_n=8",
        "schedule=wgmma,block_m=16,block_n=256,stages=4,warps_m=1,warps_n=8",
        "schedule=wgmma_pingpong,block_m=160,block_n=128,stages=4,warps_m=2,warps_n=4",
        "schedule=wgmma_pingpong,block_m=48,block_n=128,stages=6,warps_m=2,warps_n=4,cluster=2",
        "schedule=wgmma,block_m=160,block_n=256,stages=3,warps_m=1,warps_n=8,cluster=2"}) {
    // A gated fc1 of kn weights apart takes no block_n of 128 in wgmma.
    for (const Form& form : {kForms[0], kForms[1], kForms[4], kForms[5], kForms[6], kForms[7]}) {
      for (const char* gather : {"fused", "copy"}) {
        const std::string config = std::string(tile) + ",block_k=64,ctas_per_sm=1";
        auto engine = engine_with(config + ",gather=" + gather, config);
        LayerSpec spec = spec_of(form, DType::bf16, true, true);
        oracle::CaseOptions o;
        o.tokens = 900;
        o.routing = oracle::Routing::zipf;
        const auto c = oracle::make_case(spec, o);
        CAPTURE(tile);
        CAPTURE(form.name);
        CAPTURE(gather);
        gpu::DeviceLayer layer(c, {}, &engine);
        gpu::RunOptions run;
        run.sample = 48;
        gpu::check_case(group_of(spec), layer, run);
      }
    }
  }
}

TEST_CASE("small: an expert map") {
  for (const std::int64_t tokens : {5, 300, 2000}) {  // one launch where there is one; one sort; two
    for (const bool weight_on_input : {false, true}) {
      LayerSpec spec = spec_of(kForms[0], DType::bf16, weight_on_input, weight_on_input);
      const auto map = third_of(40, spec.num_experts());
      oracle::CaseOptions o;
      o.tokens = tokens;
      o.accumulate = tokens == 300;
      auto c = oracle::make_case(spec, o);
      make_global(c, 40);
      gpu::DeviceLayer layer(c);
      for (const bool keep_absent : {false, true}) {
        for (const bool ids_64 : {false, true}) {
          CAPTURE(tokens);
          CAPTURE(weight_on_input);
          CAPTURE(keep_absent);
          gpu::RunOptions run;
          run.expert_map = &map;
          run.keep_absent = keep_absent;
          run.ids_64 = ids_64;
          gpu::check_case("expert map", layer, run);
        }
      }
    }
  }
}

TEST_CASE("small: another expert map needs no other kernels") {
  LayerSpec spec = spec_of(kForms[0], DType::bf16, false, false);
  oracle::CaseOptions o;
  o.tokens = 200;
  auto c = oracle::make_case(spec, o);
  make_global(c, 24);
  gpu::DeviceLayer layer(c);
  std::vector<std::int32_t> low(24, -1), high(24, -1);
  for (std::int32_t e = 0; e < 12; ++e) {
    low[static_cast<std::size_t>(e)] = e;
    high[static_cast<std::size_t>(12 + e)] = e;
  }
  gpu::RunOptions run;
  run.expert_map = &low;
  gpu::check_case("expert map", layer, run);
  const auto loaded = gpu::engine().counters().kernels_loaded;
  run.expert_map = &high;
  run.device_tokens = 150;
  gpu::check_case("expert map", layer, run);
  CHECK(gpu::engine().counters().kernels_loaded == loaded);
}
