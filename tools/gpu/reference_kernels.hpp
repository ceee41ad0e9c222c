#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "compile/compiler.hpp"
#include "cuda/device.hpp"
#include "tools/gpu/plain_kernels.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// Kernels that fill a layer with random numbers, compute it the plain way, and compare: what the tuner
/// judges candidates by. They share no text with kernels_src/: one thread or warp an output, sums in fp64.
namespace varmoe::tools {

/// Shared with the kernels' text; addresses are 64-bit device addresses, strides count elements.
struct FillParams {
  std::uint64_t at = 0, count = 0, seed = 0;
  float scale = 1;  ///< values are uniform in ±scale
  std::int32_t fp16 = 0;
};
struct ReferenceExpert {
  std::uint64_t gate = 0, up = 0, down = 0;
  std::int64_t width = 0, fc1_stride = 0, fc2_stride = 0;
  std::uint64_t gate_bias = 0, up_bias = 0, down_bias = 0;  ///< 0: none
  std::int64_t fc1_bias_stride = 1;
};
/// Of sampled tokens: h[sample·slots + slot, width] and out[sample, hidden], fp64. Shared experts are the
/// last of `experts`, and of a token's slots. h is rounded to the layer's dtype, as the kernels round it.
/// What no expert computes stays as it was.
struct ReferenceParams {
  std::uint64_t x = 0;             ///< [T, hidden]
  std::uint64_t experts = 0;       ///< ReferenceExpert[E + S]
  std::uint64_t samples = 0;       ///< i32 tokens
  std::uint64_t ids = 0;           ///< i32 [T, k]
  std::uint64_t topk_weights = 0;  ///< float [T, k]
  std::uint64_t h = 0, out = 0;
  std::uint64_t shared_gate = 0;  ///< w_g [hidden]; 0: shared experts have weight 1
  std::int64_t hidden = 0, h_stride = 0;
  std::int32_t top_k = 0, num_experts = 0, activation = 0, gated = 0, fp16 = 0;
  std::int32_t fc1_kn = 0, fc2_kn = 0, interleaved = 0;  ///< interleaved: gate and up columns of kn weights
  float alpha = 0, limit = 0;
  std::int32_t num_shared = 0, weight_on_input = 0;
};
/// For row r: columns of actual[row(r)] against reference[r].
struct CompareParams {
  std::uint64_t actual = 0;     ///< 16-bit elements
  std::uint64_t reference = 0;  ///< fp64
  std::uint64_t rows = 0;       ///< i32, per r: the row of `actual`, or an index into `row_of`
  std::uint64_t row_of = 0;     ///< i32; 0: none
  std::uint64_t columns = 0;    ///< i32, per r; 0 columns: nothing to compare
  std::uint64_t results =
      0;  ///< per r: elements beyond the bar (not finite ones too), Σ(error²), Σ(reference²)
  std::int64_t actual_stride = 0, reference_stride = 0;
  double relative = 0, of_rms = 0;  ///< the bar: relative·|reference| + of_rms·rms(row of the reference)
  std::int32_t fp16 = 0, unused = 0;
};
/// sums[0] += elements that are not finite; sums[1] += a checksum of values and places.
struct ScanParams {
  std::uint64_t at = 0, count = 0, sums = 0;
  std::int32_t fp16 = 0, unused = 0;
};

/// Fields of a reference's parameters that say what the layer is.
template <class Params>
void describe_layer(const LayerSpec& spec, Params& p) {
  const bool kn = spec.fc1_layout == WeightLayout::kn;
  p.hidden = spec.hidden_size;
  p.top_k = static_cast<std::int32_t>(spec.top_k);
  p.num_experts = static_cast<std::int32_t>(spec.num_experts());
  p.num_shared = static_cast<std::int32_t>(spec.num_shared());
  p.activation = static_cast<std::int32_t>(spec.activation);
  p.gated = spec.gated() ? 1 : 0;
  p.fp16 = spec.dtype == DType::fp16 ? 1 : 0;
  p.fc1_kn = kn ? 1 : 0;
  p.fc2_kn = spec.fc2_layout == WeightLayout::kn ? 1 : 0;
  p.interleaved = kn && spec.gated() && spec.gate_order == GateOrder::interleaved ? 1 : 0;
  p.weight_on_input = spec.weight_on_input ? 1 : 0;
  p.alpha = spec.activation_params.alpha;
  p.limit = spec.activation_params.limit;
}

class ReferenceKernels {
 public:
  /// Compiles them for `arch`; nothing is cached.
  static Result<ReferenceKernels> create(std::shared_ptr<cuda::Device> device, compile::Compiler& compiler,
                                         const std::string& arch);
  /// Each enqueues on `stream`.
  Status fill(const FillParams& params, void* stream) const;
  Status reference(const ReferenceParams& params, std::int64_t samples, std::int64_t max_width,
                   void* stream) const;
  Status compare(const CompareParams& params, std::int64_t rows, void* stream) const;
  Status scan(const ScanParams& params, void* stream) const;

 private:
  enum Kernel { kFill, kReferenceH, kReferenceOut, kCompare, kScan };
  explicit ReferenceKernels(PlainKernels kernels) : kernels_(std::move(kernels)) {}
  PlainKernels kernels_;
};

}  // namespace varmoe::tools
