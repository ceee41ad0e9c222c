#include "varmoe/router_spec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/text.hpp"
#include "varmoe/router_gradient.hpp"
#include "varmoe/router_statistics.hpp"

namespace varmoe {
namespace {

template <class Enum>
struct Named {
  Enum value;
  const char* name;
};
constexpr std::array<Named<LogitType>, 3> kLogitTypes = {
    {{LogitType::fp32, "fp32"}, {LogitType::bf16, "bf16"}, {LogitType::fp16, "fp16"}}};

constexpr std::int64_t kMaxBlockSize = 65536;

Error bad_spec(std::string message) {
  return Error(ErrorCode::invalid_spec, std::move(message));
}

/// Enumerators arrive as plain numbers through the C API.
Status check_enumerators(const RouterSpec& s) {
  const auto bad = [](const char* field, auto value) {
    return bad_spec(fmt::format("{} is {}, which is no enumerator", field, static_cast<int>(value)));
  };
  if (s.logit_type > LogitType::fp16) return bad("logit_type", s.logit_type);
  if (s.scoring > Scoring::sigmoid) return bad("scoring", s.scoring);
  if (s.order > ScoreOrder::after_top_k) return bad("order", s.order);
  if (s.group_score > GroupScore::top2_sum) return bad("group_score", s.group_score);
  if (s.outside_groups > OutsideGroups::as_zero) return bad("outside_groups", s.outside_groups);
  return {};
}

Status check_groups(const RouterSpec& s) {
  if (s.num_groups < 1 || s.num_groups > kMaxExpertGroups || s.num_experts % s.num_groups != 0)
    return bad_spec(fmt::format("num_groups is {}; must be from 1 to {} and divide num_experts, {}",
                                s.num_groups, kMaxExpertGroups, s.num_experts));
  if (s.top_groups < 1 || s.top_groups > s.num_groups)
    return bad_spec(
        fmt::format("top_groups is {}; must be from 1 to num_groups, {}", s.top_groups, s.num_groups));
  const std::int64_t size = s.num_experts / s.num_groups;
  if (s.num_groups > 1 && s.group_score == GroupScore::top2_sum && size < 2)
    return bad_spec(fmt::format("group_score is top2_sum and a group has {} expert; it takes two", size));
  if (s.top_k > s.top_groups * size)
    return bad_spec(fmt::format("top_k is {} and {} groups of {} hold {} experts; must be at most that",
                                s.top_k, s.top_groups, size, s.top_groups * size));
  return {};
}

Status check_product(const RouterSpec& s) {
  if (s.hidden_size == 0) return {};
  if (s.hidden_size < 8 || s.hidden_size > kMaxRouterHidden || s.hidden_size % 8 != 0)
    return bad_spec(
        fmt::format("hidden_size is {}; must be 0 (the router is given logits), or a multiple of 8 up to {}",
                    s.hidden_size, kMaxRouterHidden));
  if (s.input_type > DType::fp16)
    return bad_spec(fmt::format("input_type is {}, which is no enumerator", static_cast<int>(s.input_type)));
  if (s.weight_type > LogitType::fp16)
    return bad_spec(
        fmt::format("weight_type is {}, which is no enumerator", static_cast<int>(s.weight_type)));
  if (s.logit_type != LogitType::fp32)
    return bad_spec(fmt::format(
        "logit_type is {} and hidden_size {}; must be fp32, as which the router computes its logits",
        to_string(s.logit_type), s.hidden_size));
  return {};
}

/// Groups that leave all experts in are none.
bool grouped(const RouterSpec& s) {
  return s.num_groups > 1 && s.top_groups < s.num_groups;
}

/// -0 and +0 compute the same.
std::uint32_t float_bits(float value) {
  return std::bit_cast<std::uint32_t>(value == 0.0f ? 0.0f : value);
}

template <class Enum, std::size_t N>
const char* name_at(const std::array<const char*, N>& names, Enum value) {
  const auto i = static_cast<std::size_t>(value);
  return i < N ? names[i] : "invalid";
}

}  // namespace

Status RouterSpec::validate() const {
  if (auto status = check_enumerators(*this); !status) return status;
  if (num_experts < 1 || num_experts > kMaxExperts)
    return bad_spec(fmt::format("num_experts is {}; must be from 1 to {}", num_experts, kMaxExperts));
  if (top_k < 1 || top_k > std::min(kMaxTopK, num_experts))
    return bad_spec(fmt::format("top_k is {}; must be from 1 to {}: a router picks distinct experts of {}",
                                top_k, std::min(kMaxTopK, num_experts), num_experts));
  if (!std::isfinite(epsilon) || epsilon < 0)
    return bad_spec(fmt::format("epsilon is {}; must be finite and not below 0", epsilon));
  if (!std::isfinite(scaling_factor))
    return bad_spec(fmt::format("scaling_factor is {}; must be finite", scaling_factor));
  if (auto status = check_groups(*this); !status) return status;
  if (auto status = check_product(*this); !status) return status;
  if (scoring == Scoring::softmax && order == ScoreOrder::after_top_k && chooses_by_score(*this))
    return bad_spec(fmt::format(
        "order is after_top_k, so softmax has no scores to choose by, and {} asks for them; must be "
        "before_top_k",
        correction_bias ? "correction_bias" : "group_score top2_sum"));
  return {};
}

bool chooses_by_score(const RouterSpec& spec) noexcept {
  return spec.correction_bias || (grouped(spec) && spec.group_score == GroupScore::top2_sum);
}

std::string router_signature(const RouterSpec& s) {
  const bool softmax = s.scoring == Scoring::softmax;
  std::string groups = "-";
  if (grouped(s)) {
    groups = fmt::format("{}of{}:{}", s.top_groups, s.num_groups, to_string(s.group_score));
    // Choice scores below zero need a bias.
    if (s.correction_bias) groups += fmt::format(":{}", to_string(s.outside_groups));
  }
  std::string product;
  if (s.hidden_size != 0)
    product = fmt::format(" hidden={} x={} weight={} logit_bias={}", s.hidden_size, to_string(s.input_type),
                          to_string(s.weight_type), s.logit_bias ? 1 : 0);
  return fmt::format(
      "router experts={} top_k={} logits={} scoring={} order={} renormalize={} scale={:08x} bias={} "
      "groups={}{}",
      s.num_experts, s.top_k, to_string(s.logit_type), to_string(s.scoring),
      softmax ? to_string(s.order) : "-",
      s.renormalize ? fmt::format("{:08x}", float_bits(s.epsilon)) : std::string("-"),
      float_bits(s.scaling_factor), s.correction_bias ? 1 : 0, groups, product);
}

const char* to_string(LogitType value) noexcept {
  for (const auto& row : kLogitTypes)
    if (row.value == value) return row.name;
  return "invalid";
}
const char* to_string(Scoring value) noexcept {
  return name_at(std::array{"softmax", "sigmoid"}, value);
}
const char* to_string(ScoreOrder value) noexcept {
  return name_at(std::array{"before_top_k", "after_top_k"}, value);
}
const char* to_string(GroupScore value) noexcept {
  return name_at(std::array{"max", "top2_sum"}, value);
}
const char* to_string(OutsideGroups value) noexcept {
  return name_at(std::array{"never", "as_zero"}, value);
}

Result<LogitType> parse_logit_type(std::string_view text) {
  std::vector<std::string_view> names;
  for (const auto& row : kLogitTypes) {
    if (text == row.name) return row.value;
    names.emplace_back(row.name);
  }
  return Error(ErrorCode::invalid_spec, fmt::format("logit type \"{}\" is not known; must be one of {}",
                                                    printable(text, 64), join(names)));
}

Status RouterStatisticsSpec::validate() const {
  if (logit_type > LogitType::fp16)
    return bad_spec(fmt::format("logit_type is {}, which is no enumerator", static_cast<int>(logit_type)));
  if (scoring > Scoring::sigmoid)
    return bad_spec(fmt::format("scoring is {}, which is no enumerator", static_cast<int>(scoring)));
  if (num_experts < 1 || num_experts > kMaxExperts)
    return bad_spec(fmt::format("num_experts is {}; must be from 1 to {}", num_experts, kMaxExperts));
  if (top_k < 1 || top_k > kMaxTopK)
    return bad_spec(fmt::format("top_k is {}; must be from 1 to {}", top_k, kMaxTopK));
  return {};
}

Status RouterGradientSpec::validate() const {
  if (auto status = router.validate(); !status) return status;
  constexpr std::uint32_t known = (std::uint32_t{1} << kRouterLosses) - 1;
  if ((losses & ~known) != 0)
    return bad_spec(
        fmt::format("losses is {:#x}; must be a sum of bits 1 << RouterLoss, at most {:#x}", losses, known));
  if (dlogit_type != LogitType::fp32 && dlogit_type != router.logit_type)
    return bad_spec(fmt::format("dlogit_type is {}; must be fp32 (0) or the logits' type ({})",
                                static_cast<int>(dlogit_type), static_cast<int>(router.logit_type)));
  if (dweight_type > LogitType::fp16)
    return bad_spec(
        fmt::format("dweight_type is {}, which is no enumerator", static_cast<int>(dweight_type)));
  return {};
}

Status AlignSpec::validate() const {
  if (num_experts < 1 || num_experts > kMaxExperts)
    return bad_spec(fmt::format("num_experts is {}; must be from 1 to {}", num_experts, kMaxExperts));
  if (block_size < 1 || block_size > kMaxBlockSize)
    return bad_spec(fmt::format("block_size is {}; must be from 1 to {}", block_size, kMaxBlockSize));
  return {};
}

std::int64_t sorted_ids_size(const AlignSpec& spec, std::int64_t rows) noexcept {
  if (rows <= 0) return 0;
  return std::min(rows + spec.num_experts * (spec.block_size - 1), rows * spec.block_size);
}

std::int64_t aligned_blocks(const AlignSpec& spec, std::int64_t sorted_size) noexcept {
  return sorted_size <= 0 ? 0 : (sorted_size + spec.block_size - 1) / spec.block_size;
}

}  // namespace varmoe
