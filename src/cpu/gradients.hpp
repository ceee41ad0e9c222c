#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"
#include "varmoe/weights.hpp"

/// Where weight gradients lie, and how fp32 sums get there.
namespace varmoe::cpu {

/// Element (output j, input i) at (j·output_step + i·input_step) elements from `base`.
struct GradientMatrix {
  void* base = nullptr;  ///< null: the layer has no such matrix
  std::int64_t output_step = 0, input_step = 0;
};
struct GradientVector {
  void* base = nullptr;  ///< null: the layer has none
  std::int64_t step = 1;
};

struct ExpertGradients {
  GradientMatrix gate, up, down;  ///< outputs × inputs: width × H twice, H × width
  GradientVector gate_bias, up_bias, down_bias;
};

/// All experts' gradients, routed then shared, and the shared gate's, as bound.
class Gradients {
 public:
  Gradients() = default;
  /// `weights` have been validated.
  Gradients(const LayerSpec& spec, GradientType type, const Weights& weights);

  bool bound() const noexcept { return !experts_.empty(); }
  const ExpertGradients& expert(std::int64_t e) const noexcept {
    return experts_[static_cast<std::size_t>(e)];
  }
  const GradientVector& shared_gate() const noexcept { return shared_gate_; }

  /// Writes (or adds to what is there) count sums, rounded once. `first`: elements from `base`; `values` are
  /// overwritten.
  void put(const Kernels& kernels, void* base, std::int64_t first, std::int64_t step, float* values,
           std::int64_t count, bool accumulate) const noexcept;
  /// Writes or adds a tile of sums, output j's `count_inputs` at j·kTileOutputs, from element (first_output,
  /// first_input) on.
  void put_tile(const Kernels& kernels, const GradientMatrix& to, std::int64_t first_output, int outputs,
                std::int64_t first_input, int inputs, float* sums, bool accumulate) const noexcept;
  /// Writes zeros to everything, or to what belongs to fc1 (W1, b1), fc2 or the shared gate alone.
  struct Parts {
    bool fc1 = true, fc2 = true, shared_gate = true;
  };
  void clear(const LayerSpec& spec, const Parts& parts) const noexcept;
  void clear(const LayerSpec& spec) const noexcept { clear(spec, Parts{}); }

 private:
  std::vector<ExpertGradients> experts_;
  GradientVector shared_gate_;
  DType dtype_ = DType::bf16;
  bool fp32_ = false;
};

}  // namespace varmoe::cpu
