#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "compile/compiler.hpp"
#include "cuda/device.hpp"
#include "tools/gpu/plain_kernels.hpp"
#include "varmoe/error.hpp"

/// Kernels that compute samples of a backward pass the plain way, and compare: what the tuner judges
/// candidates for its products by. As reference_kernels.hpp, they share no text with kernels_src/.
namespace varmoe::tools {

/// Shared with the kernels' text; addresses are 64-bit device addresses, strides count elements.
///
/// Of sampled tokens: dx and dtopk_weights. Of sampled columns of every expert (`columns` each, from its
/// first to its last): their rows of dW1 and columns of dW2, over all rows of the expert. z, g, dz and w·h
/// are rounded to the layer's dtype, as the kernels round them.
struct BackwardReferenceParams {
  std::uint64_t x = 0, dout = 0;   ///< [T, hidden]
  std::uint64_t experts = 0;       ///< ReferenceExpert[E + S]: weights
  std::uint64_t samples = 0;       ///< i32 tokens
  std::uint64_t ids = 0;           ///< i32 [T, k]
  std::uint64_t topk_weights = 0;  ///< float [T, k]
  std::uint64_t shared_gate = 0;   ///< w_g [hidden]; 0: shared experts have weight 1
  /// Routed rows in expert order: slots (token · slots + slot), their experts, and where each expert's begin
  /// (E + S + 1 of them); i32.
  std::uint64_t row_slots = 0, row_experts = 0, expert_begin = 0;
  std::uint64_t gate = 0, up = 0, g = 0;  ///< f64 [pairs, width_stride], scratch: gate and up of z or W1·x; g
  std::uint64_t dtopk = 0, dx = 0;        ///< f64 [pairs], of every slot; [samples, hidden]
  std::uint64_t column_gate = 0, column_up = 0, column_h = 0;  ///< f64 [columns, rows], scratch: dz and w·h
  std::uint64_t dw1 = 0, dw2 = 0;  ///< f64 [(E + S)·columns·(2 if gated), hidden], [(E + S)·columns, hidden]
  std::int64_t hidden = 0, width_stride = 0, rows = 0;
  std::int32_t top_k = 0, num_experts = 0, num_shared = 0, columns = 0;
  std::int32_t activation = 0, gated = 0, fp16 = 0, fc1_kn = 0, fc2_kn = 0, interleaved = 0,
               weight_on_input = 0;
  float alpha = 0, limit = 0;
};
/// Copies what the kernels made of the samples into f64 arrays of the reference's form.
struct BackwardPickParams {
  std::uint64_t gradients = 0;  ///< ReferenceExpert[E + S]
  std::uint64_t dx = 0, dtopk = 0, samples = 0;
  std::uint64_t dtopk_reference = 0;  ///< what shared experts' slots, which have no such gradient, are set to
  std::uint64_t picked_dx = 0, picked_dtopk = 0, picked_dw1 = 0, picked_dw2 = 0;
  std::int64_t hidden = 0;
  std::int32_t top_k = 0, slots = 0, columns = 0, experts = 0;
  std::int32_t gated = 0, fp16 = 0, fp32_gradients = 0, fc1_kn = 0, fc2_kn = 0, interleaved = 0;
};
/// For row r: columns of actual[r] against reference[r]. Every `group` rows have one root mean square.
struct BackwardCompareParams {
  std::uint64_t actual = 0, reference = 0;  ///< f64 [rows, columns]
  std::uint64_t results =
      0;  ///< per r: elements beyond the bar (not finite ones too), Σ(error²), Σ(reference²)
  std::int64_t columns = 0;
  double relative = 0,
         of_rms = 0;  ///< the bar: relative·|reference| + of_rms·rms(the group of the reference)
  std::int32_t group = 1, unused = 0;
};
/// sums[0] += elements that are not finite; sums[1] += a checksum of values and places.
struct FloatScanParams {
  std::uint64_t at = 0, count = 0, sums = 0;
};

class BackwardReference {
 public:
  /// Compiles them for `arch`; nothing is cached.
  static Result<BackwardReference> create(std::shared_ptr<cuda::Device> device, compile::Compiler& compiler,
                                          const std::string& arch);
  /// Each enqueues on `stream`. `max_width`: the widest expert.
  Status reference(const BackwardReferenceParams& params, std::int64_t samples, std::int64_t max_width,
                   void* stream) const;
  Status pick(const BackwardPickParams& params, std::int64_t samples, void* stream) const;
  Status compare(const BackwardCompareParams& params, std::int64_t rows, void* stream) const;
  /// Of floats.
  Status scan(const FloatScanParams& params, void* stream) const;

 private:
  enum Kernel { kZ, kG, kRows, kDx, kColumns, kGradients, kPickRows, kPickGradients, kCompare, kScan };
  explicit BackwardReference(PlainKernels kernels) : kernels_(std::move(kernels)) {}
  PlainKernels kernels_;
};

}  // namespace varmoe::tools
