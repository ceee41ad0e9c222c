#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "plan/training.hpp"
#include "tools/gpu/backward_reference.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "tools/gpu/routing.hpp"
#include "tools/gpu/trial.hpp"
#include "tools/gpu/trial_weights.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"

namespace varmoe::tools {

/// What a backward pass was found to be: shares of the compared elements beyond the bar.
struct BackwardVerdict {
  double dtopk = 0, dx = 0, dw1 = 0, dw2 = 0;
  std::string fault;  ///< why a result is wrong; empty: right
};

/// A layer that learns, with random weights on a device: as TrialLayer, for the kernels of a backward pass.
/// There is one copy of the weights: beside their gradients and the rows they do not stay in L2.
class TrialTraining : public Trial {
 public:
  /// `fills`, `references` and `stream` outlive it. out_of_memory where weights and gradients do not fit.
  static Result<std::unique_ptr<TrialTraining>> create(std::shared_ptr<cuda::Device> device,
                                                       const ReferenceKernels& fills,
                                                       const BackwardReference& references, void* stream,
                                                       const LayerSpec& spec, GradientType type);

  GradientType gradient_type() const noexcept { return type_; }

  /// Inputs, routings and references of `bucket` tokens.
  Status set_bucket(std::int64_t bucket);

  /// Enqueues a forward, which keeps z; a backward pass of everything.
  Status forward(const plan::TrainingKernels& kernels, RoutingKind routing);
  Status backward(const plan::TrainingKernels& kernels, RoutingKind routing);

  /// Runs both once or twice, outputs and workspace poisoned differently before each, and compares with the
  /// reference: every element of dx, dtopk_weights and the gradients is finite, the samples of each are
  /// within the bars, both runs have the same bits.
  Result<BackwardVerdict> check(const plan::TrainingKernels& kernels, RoutingKind routing, bool twice = true);

 private:
  struct Routed : RoutedIds {
    cuda::DeviceBuffer dtopk, dx, dw1, dw2;  ///< the reference
  };
  /// One thing that is compared.
  struct Comparison {
    std::uint64_t actual = 0, reference = 0;
    std::int64_t rows = 0, columns = 0, group = 1;
    double BackwardVerdict::*share = nullptr;
    const char* name = "";
  };

  TrialTraining(std::shared_ptr<cuda::Device> device, const ReferenceKernels& fills,
                const BackwardReference& references, void* stream, const LayerSpec& spec, GradientType type);
  Status make_weights();
  Status make_reference(RoutingKind kind);
  Status run_poisoned(const plan::TrainingKernels& kernels, RoutingKind routing, std::uint8_t value);
  /// Adds to sums[0] and sums[1].
  Status scan_outputs(std::uint64_t sums);
  std::array<Comparison, 4> comparisons(RoutingKind kind);
  std::int64_t places() const noexcept;
  Routed& of(RoutingKind kind) { return routed_[static_cast<std::size_t>(kind)]; }

  const BackwardReference& references_;
  const LayerSpec back_;
  const GradientType type_;
  TrialWeights weights_, gradients_;
  cuda::DeviceBuffer forward_table_, backward_table_, gradient_table_, gradient_experts_;
  plan::TrainingContext context_;
  cuda::DeviceBuffer dout_, dx_, dtopk_, saved_;
  cuda::DeviceBuffer picked_dx_, picked_dtopk_, picked_dw1_, picked_dw2_, sums_;
  std::array<Routed, 3> routed_;
};

}  // namespace varmoe::tools
