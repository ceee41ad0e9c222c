#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router_spec.hpp"

/// What a trainer adds to its loss or watches of a router, from its logits and the experts chosen: create → prepare → compute.
///
/// For T tokens, logits l [T, E], T·k slots, and c_e the slots that name expert e:
///
/// - f_e = c_e / (T·k): the expert's share of the slots.
/// - P_e = mean over tokens of s_e / Σ s_i: its mean score; s as RouterSpec's scoring says, over all experts.
/// - z = mean over tokens of (log Σ exp l_i)². Router z-loss: ST-MoE (Zoph et al., arXiv 2202.08906).
/// - load_balance = E · Σ f_e·P_e. Switch Transformer (Fedus et al., arXiv 2101.03961) for k = 1; with shares of T·k slots as DeepSeekMoE has it (Dai et al.,
///   arXiv 2401.06066). Hugging Face's load_balancing_loss_func is k times this.
/// - group_balance = Σ_g n_g/P_g · Σ_{e in g} f_e·P_e: load_balance within each group g of n_g experts of one width, P_g = Σ_{e in g} P_e; a group counts by
///   its share of the slots. For experts of several widths, which are not to be used alike.
/// - compute = E · Σ w_e/w̄ · f_e·P_e, w̄ the mean width: load_balance with each expert's term as heavy as its width w_e, so that it falls where narrow experts are
///   preferred.
///
/// load_balance is 1 where loads or scores are even, group_balance where they are even within each group, whatever the groups get. Equal widths make all three one number.
///
/// Slots with an id of −1 or ≥ E count for no expert, yet for T·k. NaN logits have a score of 0 and add nothing to the sum of exponentials; a token without a logit above −∞
/// adds 0 to z and P. T = 0 gives zeros. Sums have one order: the same inputs give the same bits.
namespace varmoe {

struct RouterStatisticsSpec {
  std::int64_t num_experts = 0;  ///< E; 1 … 1024
  std::int64_t top_k = 0;        ///< k; 1 … 32
  LogitType logit_type = LogitType::fp32;
  Scoring scoring = Scoring::softmax;

  VARMOE_API Status validate() const;

  bool operator==(const RouterStatisticsSpec&) const = default;
};

/// Where each number lies in RouterStatisticsArgs::losses.
enum class RouterLoss : std::uint8_t { z, load_balance, group_balance, compute };
inline constexpr std::size_t kRouterLosses = 4;

/// Device pointers on a GPU engine, host pointers on the CPU engine. Outputs that are null are not computed;
/// they must not overlap inputs.
struct RouterStatisticsArgs {
  std::int64_t tokens = 0;         ///< T; T·k at most 2³¹ − 1
  const void* logits = nullptr;    ///< [T, E], spec.logit_type, aligned to its element
  std::int64_t logit_stride = 0;   ///< elements between rows; 0: E
  const void* topk_ids = nullptr;  ///< [T, k] contiguous
  IdType id_type = IdType::int32;
  const std::int32_t* expert_widths = nullptr;  ///< [E], each at least 1; null: all equal
  std::int32_t* tokens_per_expert = nullptr;    ///< [E]: c_e
  float* mean_scores = nullptr;                 ///< [E]: P_e
  float* losses = nullptr;                      ///< [kRouterLosses]
  /// Optional device-side token count n ≤ T: stands for T, and rows at and beyond n are not read.
  const std::int32_t* token_count = nullptr;
  void* workspace = nullptr;        ///< 16-byte aligned; may be null where workspace_bytes(tokens) is 0
  std::size_t workspace_bytes = 0;  ///< ≥ RouterStatistics::workspace_bytes(tokens)
  void* stream = nullptr;
};

/// Router statistics on an engine. Thread-safe; may outlive the Engine object.
class VARMOE_API RouterStatistics {
 public:
  RouterStatistics(RouterStatistics&&) noexcept;
  RouterStatistics& operator=(RouterStatistics&&) noexcept;
  ~RouterStatistics();

  const RouterStatisticsSpec& spec() const noexcept;

  /// As Router::prepare; its kernels serve every number of tokens.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});
  /// For up to `tokens` tokens. 0 on the CPU.
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  /// As Router::route; two launches.
  Status compute(const RouterStatisticsArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit RouterStatistics(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
