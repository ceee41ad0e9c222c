#include <doctest/doctest.h>

#include "gpu/device_layer.hpp"

// Every activation, layout, gate order, storage and dtype, on layers small enough that the oracle sees every
// row.

namespace {

using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

constexpr Activation kActivations[] = {
    Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
    Activation::silu,     Activation::gelu_tanh,     Activation::gelu_erf,     Activation::relu,
    Activation::relu2,    Activation::identity,
};

void run(const varmoe::LayerSpec& spec, oracle::Storage storage, std::uint64_t seed, bool accumulate) {
  oracle::CaseOptions options;
  options.tokens = 37;
  options.seed = seed;
  options.storage = storage;
  options.accumulate = accumulate;
  options.x_stride = spec.hidden_size + 8 * static_cast<std::int64_t>(seed % 3);
  options.out_stride = spec.hidden_size + 16 * static_cast<std::int64_t>(seed % 2);
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  gpu::RunOptions run_options;
  run_options.ids_64 = seed % 2 == 1;
  run_options.sample = 37;
  gpu::check_case(
      spec.dtype == DType::bf16 ? "layouts and activations, bf16" : "layouts and activations, fp16", layer,
      run_options);
}

}  // namespace

TEST_CASE("small: every activation in both dtypes and layouts") {
  std::uint64_t seed = 1;
  for (const Activation activation : kActivations) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
        CAPTURE(varmoe::to_string(activation));
        CAPTURE(varmoe::to_string(dtype));
        CAPTURE(varmoe::to_string(layout));
        auto spec = varmoe::uniform_spec(136, 5, 72, 3, activation, dtype);
        spec.expert_widths[1] = 24;
        spec.expert_widths[4] = 8;
        spec.fc1_layout = spec.fc2_layout = layout;
        run(spec, oracle::Storage::blocks, seed, seed % 3 == 0);
        ++seed;
      }
    }
  }
}

TEST_CASE("small: every gate order, layout pair and storage") {
  std::uint64_t seed = 100;
  for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
    for (const WeightLayout fc1 : {WeightLayout::nk, WeightLayout::kn}) {
      for (const WeightLayout fc2 : {WeightLayout::nk, WeightLayout::kn}) {
        for (const oracle::Storage storage :
             {oracle::Storage::blocks, oracle::Storage::padded, oracle::Storage::packed,
              oracle::Storage::packed_joint, oracle::Storage::pointers, oracle::Storage::strided,
              oracle::Storage::by_hand}) {
          const bool packed = storage == oracle::Storage::packed || storage == oracle::Storage::packed_joint;
          if (packed && (fc1 != WeightLayout::kn || fc2 != WeightLayout::kn)) continue;
          if (order == GateOrder::interleaved &&
              (storage == oracle::Storage::by_hand || storage == oracle::Storage::packed))
            continue;
          CAPTURE(varmoe::to_string(order));
          CAPTURE(varmoe::to_string(fc1));
          CAPTURE(varmoe::to_string(fc2));
          CAPTURE(static_cast<int>(storage));
          auto spec = varmoe::uniform_spec(136, 5, 72, 2);
          spec.expert_widths[0] = 40;
          spec.fc1_layout = fc1;
          spec.fc2_layout = fc2;
          spec.gate_order = order;
          run(spec, storage, seed, false);
          ++seed;
        }
      }
    }
  }
}
