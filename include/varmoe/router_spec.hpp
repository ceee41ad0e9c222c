#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// What a router computes: which top_k of num_experts experts each token goes to, and with which weights. Formulas, rules for ties
/// and for numbers that are none, and which family uses what: docs/routing.md.
namespace varmoe {

/// Element type of the logits. Everything is computed in fp32.
enum class LogitType : std::uint8_t { fp32, bf16, fp16 };

/// Logits → scores.
enum class Scoring : std::uint8_t {
  softmax,  ///< s_e = exp(l_e) / Σ exp(l_i)
  sigmoid,  ///< s_e = 1 / (1 + exp(−l_e))
};

/// Which experts softmax's sum runs over. Of no consequence to sigmoid.
enum class ScoreOrder : std::uint8_t {
  before_top_k,  ///< all experts (softmax → top-k)
  after_top_k,   ///< the experts chosen alone (top-k → softmax: gpt-oss)
};

/// What a group of experts is ranked by.
enum class GroupScore : std::uint8_t {
  max,       ///< its best expert (DeepSeek-V2)
  top2_sum,  ///< the sum of its two best experts (DeepSeek-V3)
};

/// How experts outside of the chosen groups rank.
enum class OutsideGroups : std::uint8_t {
  never,    ///< never chosen (DeepSeek's own code, vLLM)
  as_zero,  ///< as a choice score of 0, so before an expert whose score and bias sum to less (Hugging Face's DeepSeek-V3)
};

inline constexpr std::int64_t kMaxExpertGroups = 32;
/// Largest hidden size that a router multiplies.
inline constexpr std::int64_t kMaxRouterHidden = std::int64_t{1} << 20;

struct RouterSpec {
  std::int64_t num_experts = 0;  ///< E; 1 … 1024
  std::int64_t top_k = 0;        ///< k; 1 … 32, at most E: the experts of a token are distinct
  LogitType logit_type = LogitType::fp32;
  Scoring scoring = Scoring::softmax;
  ScoreOrder order = ScoreOrder::before_top_k;
  bool renormalize = false;      ///< w = s / (Σ s of the chosen + epsilon); 0 where that divisor is 0
  float epsilon = 0;             ///< of renormalize; finite, ≥ 0
  float scaling_factor = 1;      ///< multiplies every weight at the end; finite
  /// Experts are chosen by s_e + correction_bias[e]; weights come from s_e alone. Not with softmax after top-k.
  bool correction_bias = false;
  std::int64_t num_groups = 1;   ///< equal groups of consecutive experts; divides E; at most 32
  std::int64_t top_groups = 1;   ///< groups that a token may choose from; num_groups: all
  GroupScore group_score = GroupScore::max;
  OutsideGroups outside_groups = OutsideGroups::never;
  /// The weight multiplies the expert's input instead of its output (Llama-4). The router computes the same either way; the layer says
  /// it too (LayerSpec::weight_on_input), and route_and_forward refuses two that disagree.
  bool weight_on_input = false;

  /// H of a router that computes its logits itself, x·Wᵣᵀ (+ logit bias), from x [T, H] and Wᵣ [E, H]: products and sums in fp32, so
  /// logit_type must be fp32. A multiple of 8. 0: it is given logits.
  std::int64_t hidden_size = 0;
  DType input_type = DType::bf16;           ///< of x; read where hidden_size is not 0, as the two below
  LogitType weight_type = LogitType::bf16;  ///< of Wᵣ
  bool logit_bias = false;                  ///< an fp32 [E] is added to the logits (gpt-oss)

  /// Every field in range and none against another; invalid_spec names field, value and what is allowed.
  VARMOE_API Status validate() const;

  bool operator==(const RouterSpec&) const = default;
};

/// Experts are chosen by score (plus bias) rather than by logit: with a correction bias, or groups ranked by a sum. Otherwise the order of
/// logits is that of scores, only finer: scores that round to the same number do not tie.
VARMOE_API bool chooses_by_score(const RouterSpec& spec) noexcept;

/// Canonical text of what keys a router's kernel; what the method ignores does not enter.
VARMOE_API std::string router_signature(const RouterSpec& spec);

VARMOE_API const char* to_string(LogitType) noexcept;
VARMOE_API const char* to_string(Scoring) noexcept;
VARMOE_API const char* to_string(ScoreOrder) noexcept;
VARMOE_API const char* to_string(GroupScore) noexcept;
VARMOE_API const char* to_string(OutsideGroups) noexcept;
VARMOE_API Result<LogitType> parse_logit_type(std::string_view);

/// What moe_align_block_size is specialised for.
struct AlignSpec {
  std::int64_t num_experts = 0;   ///< E; 1 … 1024
  std::int64_t block_size = 128;  ///< rows of a block; 1 … 65536

  VARMOE_API Status validate() const;

  bool operator==(const AlignSpec&) const = default;
};

/// Entries of sorted_token_ids that `rows` routed rows may need: min(rows + E·(block_size − 1), rows·block_size).
VARMOE_API std::int64_t sorted_ids_size(const AlignSpec& spec, std::int64_t rows) noexcept;

/// Entries of expert_ids for so many of sorted_token_ids: one a block, begun ones too.
VARMOE_API std::int64_t aligned_blocks(const AlignSpec& spec, std::int64_t sorted_size) noexcept;

}  // namespace varmoe
