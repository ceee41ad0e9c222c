#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "plan/plan.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "tools/gpu/routing.hpp"
#include "tools/gpu/trial.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::tools {

/// What a run of a layer was found to be.
struct Verdict {
  double err1 = 0;    ///< share of the sampled elements of h beyond the bar
  double err2 = 0;    ///< share of the sampled elements of out beyond the bar
  std::string fault;  ///< why the result is wrong; empty: right
};

/// A layer with random weights on a device, to run kernels on: the weights in several copies, inputs and
/// routings of one token bucket, and what right results are. Everything is made on the device.
class TrialLayer : public Trial {
 public:
  /// `kernels` and `stream` outlive it. out_of_memory where one copy of the weights does not fit.
  static Result<std::unique_ptr<TrialLayer>> create(std::shared_ptr<cuda::Device> device,
                                                    const ReferenceKernels& kernels, void* stream,
                                                    const LayerSpec& spec, std::int64_t l2_bytes);

  /// Copies of the weights that forwards of this bucket should use in turn.
  std::size_t copies() const noexcept { return used_copies_; }

  /// Inputs, routings and references of `bucket` tokens, and as many copies of the weights as they ask for
  /// and memory holds.
  Status set_bucket(std::int64_t bucket);

  /// Enqueues a forward of all tokens on a copy of the weights.
  Status forward(const plan::KernelSet& kernels, RoutingKind routing, std::size_t copy);

  /// Runs once or twice, `out` and workspace poisoned differently before each, and compares with the
  /// reference: every element is finite, sampled rows are within the bars, both runs have the same bits.
  Result<Verdict> check(const plan::KernelSet& kernels, RoutingKind routing, bool twice = true);

 private:
  struct Copy {
    TrialWeights weights;
    cuda::DeviceBuffer table;
    plan::RunContext context;
  };
  struct Routed : RoutedIds {
    cuda::DeviceBuffer h, out;
    cuda::DeviceBuffer h_columns;  ///< i32 per pair of sample and slot: its expert's width; 0: no expert
    std::int64_t h_elements = 0;
  };

  TrialLayer(std::shared_ptr<cuda::Device> device, const ReferenceKernels& kernels, void* stream,
             const LayerSpec& spec, std::int64_t l2_bytes);
  Status try_bucket(std::int64_t bucket);
  Status add_copy();
  Status make_reference(RoutingKind kind);
  Status run_poisoned(const plan::KernelSet& kernels, RoutingKind routing, std::uint8_t value);
  std::int64_t pairs() const noexcept { return samples() * slots(); }
  Routed& of(RoutingKind kind) { return routed_[static_cast<std::size_t>(kind)]; }

  std::int64_t l2_bytes_;
  std::vector<Copy> copies_;
  std::size_t used_copies_ = 1;
  cuda::DeviceBuffer pair_slots_, out_columns_;
  std::array<Routed, 3> routed_;
};

}  // namespace varmoe::tools
