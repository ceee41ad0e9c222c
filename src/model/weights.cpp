#include "varmoe/weights.hpp"

#include <fmt/format.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace varmoe {
namespace {

/// Of weights: both element types have two bytes. Gradients may have four.
constexpr std::int64_t kElementBytes = 2;
constexpr std::uintptr_t kAlignment = 16;
/// No matrix has rows this far apart. Kernels keep a stride as 32 bits of bytes, and products with counts
/// stay inside 64.
constexpr std::int64_t kMaxStride = std::int64_t{1} << 30;

Error bad_argument(std::string message) {
  return Error(ErrorCode::invalid_argument, std::move(message));
}

/// `base` moved by a number of elements of this size. Integer arithmetic: these may be device addresses.
const void* advance(const void* base, std::int64_t elements, std::int64_t element_bytes) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(base) +
                                       static_cast<std::uintptr_t>(elements * element_bytes));
}

Status check_element_bytes(std::int64_t element_bytes) {
  if (element_bytes == 2 || element_bytes == 4) return {};
  return bad_argument(
      fmt::format("element_bytes is {}; must be 2, or 4 of gradients in fp32", element_bytes));
}

/// What all functions that make Weights check first.
Status check_call(const LayerSpec& spec, std::int64_t element_bytes) {
  if (auto status = spec.validate(); !status) return status;
  return check_element_bytes(element_bytes);
}

bool interleaved(const LayerSpec& spec) {
  return spec.gated() && spec.gate_order == GateOrder::interleaved;
}

/// Points one expert's fc1 fields into a matrix whose stored rows are `stride` elements apart and whose
/// second half begins `half` rows (nk) or columns (kn) after the first.
void set_fc1(const LayerSpec& spec, const void* base, std::int64_t stride, std::int64_t half,
             std::int64_t element_bytes, ExpertWeights& expert) {
  expert.fc1_stride = stride;
  if (!spec.gated()) {
    expert.up = base;
    return;
  }
  const bool nk = spec.fc1_layout == WeightLayout::nk;
  if (spec.gate_order == GateOrder::interleaved) {
    // nk: gate and up rows alternate, so that each is a matrix of every other row. kn: columns alternate, one
    // matrix.
    expert.gate = base;
    if (nk) {
      expert.up = advance(base, stride, element_bytes);
      expert.fc1_stride = 2 * stride;
    }
    return;
  }
  const void* second = advance(base, nk ? half * stride : half, element_bytes);
  const bool gate_first = spec.gate_order == GateOrder::gate_first;
  expert.gate = gate_first ? base : second;
  expert.up = gate_first ? second : base;
}

std::int64_t fc1_columns(const LayerSpec& spec, std::int64_t width) {
  return (spec.gated() ? 2 : 1) * width;
}

/// Elements from one stored row of a contiguous matrix to the next.
std::int64_t fc1_contiguous_stride(const LayerSpec& spec, std::int64_t width) {
  return spec.fc1_layout == WeightLayout::nk ? spec.hidden_size : fc1_columns(spec, width);
}
std::int64_t fc2_contiguous_stride(const LayerSpec& spec, std::int64_t width) {
  return spec.fc2_layout == WeightLayout::nk ? width : spec.hidden_size;
}

Status require(const void* pointer, const char* name) {
  if (pointer == nullptr) return bad_argument(fmt::format("{} is null", name));
  return {};
}

Status require_kn(const LayerSpec& spec, const char* storage) {
  if (spec.fc1_layout == WeightLayout::kn && spec.fc2_layout == WeightLayout::kn) return {};
  return bad_argument(
      fmt::format("storage {} needs both weight layouts kn; fc1_layout is {}, fc2_layout is {}", storage,
                  to_string(spec.fc1_layout), to_string(spec.fc2_layout)));
}

/// "expert 3", "shared expert 0": as errors name them.
struct ExpertName {
  std::size_t number;
  bool shared = false;
  std::string text() const { return fmt::format("{}expert {}", shared ? "shared " : "", number); }
};

Status check_pointer(const void* pointer, const char* name, ExpertName expert) {
  if (pointer == nullptr) return bad_argument(fmt::format("{}: {} is null", expert.text(), name));
  if (reinterpret_cast<std::uintptr_t>(pointer) % kAlignment != 0) {
    return bad_argument(fmt::format("{}: {} is at {}, which is not {}-byte aligned", expert.text(), name,
                                    fmt::ptr(pointer), kAlignment));
  }
  return {};
}

Status check_stride(std::int64_t stride, std::int64_t least, const char* name, ExpertName expert) {
  if (stride >= least && stride <= kMaxStride && stride % kWidthMultiple == 0) return {};
  return bad_argument(fmt::format("{}: {} is {}; must be a multiple of {} from {} to {}", expert.text(), name,
                                  stride, kWidthMultiple, least, kMaxStride));
}

Status check_expert(const LayerSpec& spec, const ExpertWeights& expert, std::int64_t width, ExpertName e) {
  const bool one_matrix = interleaved(spec) && spec.fc1_layout == WeightLayout::kn;
  if (spec.gated()) {
    if (auto status = check_pointer(expert.gate, "gate", e); !status) return status;
  } else if (expert.gate != nullptr) {
    return bad_argument(fmt::format("{}: gate must be null: activation {} is not gated", e.text(),
                                    to_string(spec.activation)));
  }
  if (!one_matrix) {
    if (auto status = check_pointer(expert.up, "up", e); !status) return status;
  }
  if (auto status = check_pointer(expert.down, "down", e); !status) return status;
  std::int64_t least = spec.hidden_size;
  if (spec.fc1_layout == WeightLayout::kn) least = one_matrix ? 2 * width : width;
  if (auto status = check_stride(expert.fc1_stride, least, "fc1_stride", e); !status) return status;
  return check_stride(expert.fc2_stride, fc2_contiguous_stride(spec, width), "fc2_stride", e);
}

/// All that validate checks of them but the biases.
Status check_routed(const LayerSpec& spec, const std::vector<ExpertWeights>& experts) {
  if (experts.size() != spec.expert_widths.size()) {
    return bad_argument(
        fmt::format("weights of {} experts; the layer has {}", experts.size(), spec.num_experts()));
  }
  for (std::size_t e = 0; e < experts.size(); ++e) {
    if (auto status = check_expert(spec, experts[e], spec.expert_widths[e], {e}); !status) return status;
  }
  return {};
}

Status check_biases(const LayerSpec& spec, const std::vector<ExpertWeights>& experts, bool shared) {
  const bool biased = spec.bias && !shared;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const ExpertWeights& w = experts[e];
    const std::string expert = ExpertName{e, shared}.text();
    const struct {
      const char* name;
      const void* pointer;
      bool wanted;
    } biases[] = {{"gate_bias", w.gate_bias, biased && spec.gated()},
                  {"up_bias", w.up_bias, biased},
                  {"down_bias", w.down_bias, biased}};
    for (const auto& b : biases) {
      if ((b.pointer != nullptr) != b.wanted) {
        return bad_argument(fmt::format("{}: {} {}", expert, b.name,
                                        b.wanted ? "is null: the layer has biases (Weights::with_biases)"
                                        : biased ? "must be null: the activation is not gated"
                                        : shared ? "must be null: shared experts have no biases"
                                                 : "must be null: the layer has no biases"));
      }
      if (reinterpret_cast<std::uintptr_t>(b.pointer) % kElementBytes != 0) {
        return bad_argument(fmt::format("{}: {} is at {}, which is not {}-byte aligned", expert, b.name,
                                        fmt::ptr(b.pointer), kElementBytes));
      }
    }
    if (w.fc1_bias_stride != 1 && w.fc1_bias_stride != 2) {
      return bad_argument(
          fmt::format("{}: fc1_bias_stride is {}; must be 1 or 2", expert, w.fc1_bias_stride));
    }
  }
  return {};
}

Status check_shared(const LayerSpec& spec, const std::vector<ExpertWeights>& shared, const void* gate) {
  if (shared.size() != spec.shared_widths.size()) {
    return bad_argument(
        fmt::format("weights of {} shared experts; the layer has {} (set_shared_blocks, set_shared_pointers)",
                    shared.size(), spec.num_shared()));
  }
  for (std::size_t e = 0; e < shared.size(); ++e) {
    if (auto status = check_expert(spec, shared[e], spec.shared_widths[e], {e, true}); !status) return status;
  }
  if (!spec.shared_gate) {
    if (gate == nullptr) return {};
    return bad_argument("shared_gate must be null: the layer's shared experts have no gate");
  }
  if (gate == nullptr) return bad_argument("shared_gate is null; the layer gates its shared experts");
  if (reinterpret_cast<std::uintptr_t>(gate) % kAlignment != 0) {
    return bad_argument(
        fmt::format("shared_gate is at {}, which is not {}-byte aligned", fmt::ptr(gate), kAlignment));
  }
  return {};
}

/// Points one expert's bias fields into fc1's bias, whose second half begins `half` entries after the first.
void set_fc1_bias(const LayerSpec& spec, const void* base, std::int64_t half, std::int64_t element_bytes,
                  ExpertWeights& expert) {
  expert.fc1_bias_stride = interleaved(spec) ? 2 : 1;
  if (!spec.gated()) {
    expert.up_bias = base;
    return;
  }
  const void* second = advance(base, interleaved(spec) ? 1 : half, element_bytes);
  const bool up_first = spec.gate_order == GateOrder::up_first;
  expert.gate_bias = up_first ? second : base;
  expert.up_bias = up_first ? base : second;
}

Status require_biases(const LayerSpec& spec, const Weights& weights, std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status;
  if (!spec.bias) return bad_argument("biases were given; the layer has none (LayerSpec::bias is false)");
  return check_routed(spec, weights.experts);
}

Result<Weights> checked(const LayerSpec& spec, Weights weights) {
  if (auto status = check_routed(spec, weights.experts); !status) return status.error();
  return weights;
}

Status check_padded_width(const LayerSpec& spec, std::int64_t padded_width) {
  if (padded_width >= spec.max_width() && padded_width <= kMaxWidth && padded_width % kWidthMultiple == 0)
    return {};
  return bad_argument(
      fmt::format("padded_width is {}; must be a multiple of {} from {} (the widest expert) to {}",
                  padded_width, kWidthMultiple, spec.max_width(), kMaxWidth));
}

/// Experts of these widths one after another, each stored with `padded_width`, or with its own width when
/// there is none.
Result<Weights> one_after_another(const LayerSpec& spec, const std::vector<std::int64_t>& widths,
                                  const void* fc1, const void* fc2, std::optional<std::int64_t> padded_width,
                                  std::int64_t element_bytes) {
  if (auto status = require(fc1, "fc1"); !status) return status.error();
  if (auto status = require(fc2, "fc2"); !status) return status.error();
  Weights weights;
  std::int64_t before = 0;  // sum of the stored widths of the experts before this one
  for (const std::int64_t width : widths) {
    const std::int64_t stored = padded_width.value_or(width);
    ExpertWeights expert;
    set_fc1(spec, advance(fc1, fc1_columns(spec, before) * spec.hidden_size, element_bytes),
            fc1_contiguous_stride(spec, stored), stored, element_bytes, expert);
    expert.down = advance(fc2, before * spec.hidden_size, element_bytes);
    expert.fc2_stride = fc2_contiguous_stride(spec, stored);
    weights.experts.push_back(expert);
    before += stored;
  }
  return weights;
}

}  // namespace

Result<Weights> Weights::blocks(const LayerSpec& spec, const void* fc1, const void* fc2,
                                std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status.error();
  auto weights = one_after_another(spec, spec.expert_widths, fc1, fc2, std::nullopt, element_bytes);
  return weights ? checked(spec, *std::move(weights)) : std::move(weights);
}

Result<Weights> Weights::padded(const LayerSpec& spec, const void* fc1, const void* fc2,
                                std::int64_t padded_width, std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status.error();
  if (auto status = check_padded_width(spec, padded_width); !status) return status.error();
  auto weights = one_after_another(spec, spec.expert_widths, fc1, fc2, padded_width, element_bytes);
  return weights ? checked(spec, *std::move(weights)) : std::move(weights);
}

Result<Weights> Weights::packed(const LayerSpec& spec, const void* gate, const void* up, const void* down,
                                std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status.error();
  if (auto status = require_kn(spec, "packed"); !status) return status.error();
  if (interleaved(spec)) {
    return bad_argument("storage packed has gate and up apart; with gate_order interleaved use packed_joint");
  }
  if (spec.gated()) {
    if (auto status = require(gate, "gate"); !status) return status.error();
  } else if (gate != nullptr) {
    return bad_argument(
        fmt::format("gate must be null: activation {} is not gated", to_string(spec.activation)));
  }
  if (auto status = require(up, "up"); !status) return status.error();
  if (auto status = require(down, "down"); !status) return status.error();
  Weights weights;
  const std::int64_t total = spec.total_width();
  std::int64_t before = 0;
  for (const std::int64_t width : spec.expert_widths) {
    ExpertWeights expert;
    if (spec.gated()) expert.gate = advance(gate, before, element_bytes);
    expert.up = advance(up, before, element_bytes);
    expert.down = advance(down, before * spec.hidden_size, element_bytes);
    expert.fc1_stride = total;
    expert.fc2_stride = spec.hidden_size;
    weights.experts.push_back(expert);
    before += width;
  }
  return checked(spec, std::move(weights));
}

Result<Weights> Weights::packed_joint(const LayerSpec& spec, const void* fc1, const void* fc2,
                                      std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status.error();
  if (auto status = require_kn(spec, "packed_joint"); !status) return status.error();
  if (auto status = require(fc1, "fc1"); !status) return status.error();
  if (auto status = require(fc2, "fc2"); !status) return status.error();
  Weights weights;
  const std::int64_t stride = fc1_columns(spec, spec.total_width());
  std::int64_t before = 0;
  for (const std::int64_t width : spec.expert_widths) {
    ExpertWeights expert;
    set_fc1(spec, advance(fc1, fc1_columns(spec, before), element_bytes), stride, width, element_bytes,
            expert);
    expert.down = advance(fc2, before * spec.hidden_size, element_bytes);
    expert.fc2_stride = spec.hidden_size;
    weights.experts.push_back(expert);
    before += width;
  }
  return checked(spec, std::move(weights));
}

Result<Weights> Weights::pointers(const LayerSpec& spec, const std::vector<const void*>& fc1,
                                  const std::vector<const void*>& fc2, std::int64_t fc1_stride,
                                  std::int64_t fc2_stride, std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status.error();
  if (fc1.size() != spec.expert_widths.size() || fc2.size() != spec.expert_widths.size()) {
    return bad_argument(fmt::format("{} fc1 and {} fc2 pointers; the layer has {} experts", fc1.size(),
                                    fc2.size(), spec.num_experts()));
  }
  for (const auto& [stride, name] :
       {std::pair{fc1_stride, "fc1_stride"}, std::pair{fc2_stride, "fc2_stride"}}) {
    if (stride < 0 || stride > kMaxStride) {
      return bad_argument(
          fmt::format("{} is {}; must be 0 (contiguous) or up to {}", name, stride, kMaxStride));
    }
  }
  Weights weights;
  for (std::size_t e = 0; e < fc1.size(); ++e) {
    const std::int64_t width = spec.expert_widths[e];
    if (auto status = check_pointer(fc1[e], "fc1", {e}); !status) return status.error();
    if (fc1_stride != 0) {
      // Before set_fc1: the stride of one stored row, which interleaved nk weights double.
      const std::int64_t least = fc1_contiguous_stride(spec, width);
      if (auto status = check_stride(fc1_stride, least, "fc1_stride", {e}); !status) return status.error();
    }
    ExpertWeights expert;
    set_fc1(spec, fc1[e], fc1_stride != 0 ? fc1_stride : fc1_contiguous_stride(spec, width), width,
            element_bytes, expert);
    expert.down = fc2[e];
    expert.fc2_stride = fc2_stride != 0 ? fc2_stride : fc2_contiguous_stride(spec, width);
    weights.experts.push_back(expert);
  }
  return checked(spec, std::move(weights));
}

Result<Weights> Weights::with_biases(const LayerSpec& spec, const void* fc1_bias, const void* fc2_bias,
                                     std::int64_t padded_width, std::int64_t element_bytes) const {
  if (auto status = require_biases(spec, *this, element_bytes); !status) return status.error();
  if (auto status = require(fc1_bias, "fc1_bias"); !status) return status.error();
  if (auto status = require(fc2_bias, "fc2_bias"); !status) return status.error();
  if (padded_width != 0) {
    if (auto status = check_padded_width(spec, padded_width); !status) return status.error();
  }
  Weights weights = *this;
  std::int64_t before = 0;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const std::int64_t stored = padded_width != 0 ? padded_width : spec.expert_widths[e];
    set_fc1_bias(spec, advance(fc1_bias, fc1_columns(spec, before), element_bytes), stored, element_bytes,
                 weights.experts[e]);
    weights.experts[e].down_bias =
        advance(fc2_bias, static_cast<std::int64_t>(e) * spec.hidden_size, element_bytes);
    before += stored;
  }
  if (auto status = weights.validate(spec); !status) return status.error();
  return weights;
}

Result<Weights> Weights::with_biases(const LayerSpec& spec, const std::vector<const void*>& fc1_bias,
                                     const std::vector<const void*>& fc2_bias,
                                     std::int64_t element_bytes) const {
  if (auto status = require_biases(spec, *this, element_bytes); !status) return status.error();
  if (fc1_bias.size() != experts.size() || fc2_bias.size() != experts.size()) {
    return bad_argument(fmt::format("{} fc1_bias and {} fc2_bias pointers; the layer has {} experts",
                                    fc1_bias.size(), fc2_bias.size(), experts.size()));
  }
  Weights weights = *this;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    for (const auto& [pointer, name] :
         {std::pair{fc1_bias[e], "fc1_bias"}, std::pair{fc2_bias[e], "fc2_bias"}}) {
      if (pointer == nullptr) return bad_argument(fmt::format("expert {}: {} is null", e, name));
    }
    set_fc1_bias(spec, fc1_bias[e], spec.expert_widths[e], element_bytes, weights.experts[e]);
    weights.experts[e].down_bias = fc2_bias[e];
  }
  if (auto status = weights.validate(spec); !status) return status.error();
  return weights;
}

Status Weights::set_shared_blocks(const LayerSpec& spec, const void* fc1, const void* fc2, const void* gate,
                                  std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status;
  if (spec.shared_widths.empty()) return bad_argument("the layer has no shared experts");
  auto blocks = one_after_another(spec, spec.shared_widths, fc1, fc2, std::nullopt, element_bytes);
  if (!blocks) return bad_argument("shared experts: " + blocks.error().message());
  if (auto status = check_shared(spec, blocks->experts, gate); !status) return status;
  shared = std::move(blocks->experts);
  shared_gate = gate;
  return {};
}

Status Weights::set_shared_pointers(const LayerSpec& spec, const std::vector<const void*>& fc1,
                                    const std::vector<const void*>& fc2, const void* gate,
                                    std::int64_t element_bytes) {
  if (auto status = check_call(spec, element_bytes); !status) return status;
  if (fc1.size() != spec.shared_widths.size() || fc2.size() != spec.shared_widths.size()) {
    return bad_argument(fmt::format("{} fc1 and {} fc2 pointers; the layer has {} shared experts", fc1.size(),
                                    fc2.size(), spec.num_shared()));
  }
  std::vector<ExpertWeights> list;
  for (std::size_t e = 0; e < fc1.size(); ++e) {
    const std::int64_t width = spec.shared_widths[e];
    if (auto status = check_pointer(fc1[e], "fc1", {e, true}); !status) return status;
    ExpertWeights expert;
    set_fc1(spec, fc1[e], fc1_contiguous_stride(spec, width), width, element_bytes, expert);
    expert.down = fc2[e];
    expert.fc2_stride = fc2_contiguous_stride(spec, width);
    list.push_back(expert);
  }
  if (auto status = check_shared(spec, list, gate); !status) return status;
  shared = std::move(list);
  shared_gate = gate;
  return {};
}

Status Weights::validate(const LayerSpec& spec) const {
  if (auto status = check_routed(spec, experts); !status) return status;
  if (auto status = check_biases(spec, experts, false); !status) return status;
  if (auto status = check_shared(spec, shared, shared_gate); !status) return status;
  return check_biases(spec, shared, true);
}

std::int64_t packed_width(std::int64_t width) noexcept {
  return (width + kWidthMultiple - 1) / kWidthMultiple * kWidthMultiple;
}

namespace {

/// Copies `rows` rows of `columns` elements between contiguous matrices; what the target has more is zeroed.
void copy_rows(const std::byte* source, std::int64_t rows, std::int64_t columns, std::byte* target,
               std::int64_t target_rows, std::int64_t target_columns) {
  const auto bytes = [](std::int64_t elements) { return static_cast<std::size_t>(elements * kElementBytes); };
  for (std::int64_t row = 0; row < target_rows; ++row) {
    const std::int64_t copied = row < rows ? columns : 0;
    std::byte* to = target + bytes(row * target_columns);
    if (copied > 0) std::memcpy(to, source + bytes(row * columns), bytes(copied));
    std::memset(to + bytes(copied), 0, bytes(target_columns - copied));
  }
}

/// fc1 [H, 2w] → [H, 2p]: each half of each row grows at its end.
void pack_kn_halves(const std::byte* source, std::int64_t hidden, std::int64_t width, std::byte* target,
                    std::int64_t packed) {
  const auto bytes = [](std::int64_t elements) { return static_cast<std::size_t>(elements * kElementBytes); };
  for (std::int64_t half = 0; half < 2 * hidden; ++half) {
    std::memcpy(target + bytes(half * packed), source + bytes(half * width), bytes(width));
    std::memset(target + bytes(half * packed + width), 0, bytes(packed - width));
  }
}

/// Whether an expert of this width can be packed.
Status check_packing(const LayerSpec& spec, std::int64_t width) {
  if (width < 1 || width > kMaxWidth) {
    return bad_argument(fmt::format("width is {}; must be from 1 to {}", width, kMaxWidth));
  }
  const ActivationInfo& activation = activation_info(spec.activation);
  if (packed_width(width) != width && !activation.keeps_zero) {
    return Error(ErrorCode::unsupported,
                 fmt::format("width {} cannot be padded to {}: activation {} of zero is not zero", width,
                             packed_width(width), activation.name));
  }
  return {};
}

}  // namespace

Status pack_expert(const LayerSpec& spec, std::int64_t width, const void* fc1, const void* fc2,
                   void* packed_fc1, void* packed_fc2) {
  if (auto status = check_packing(spec, width); !status) return status;
  if (spec.hidden_size < 1 || spec.hidden_size > kMaxHidden) {
    return bad_argument(fmt::format("hidden_size is {}; must be from 1 to {}", spec.hidden_size, kMaxHidden));
  }
  for (const auto& [pointer, name] : {std::pair<const void*, const char*>{fc1, "fc1"},
                                      {fc2, "fc2"},
                                      {packed_fc1, "packed_fc1"},
                                      {packed_fc2, "packed_fc2"}}) {
    if (auto status = require(pointer, name); !status) return status;
  }
  const std::int64_t packed = packed_width(width);
  const auto* in1 = static_cast<const std::byte*>(fc1);
  const auto* in2 = static_cast<const std::byte*>(fc2);
  auto* out1 = static_cast<std::byte*>(packed_fc1);
  auto* out2 = static_cast<std::byte*>(packed_fc2);
  const std::int64_t hidden = spec.hidden_size;
  const bool halves = spec.gated() && spec.gate_order != GateOrder::interleaved;
  const std::int64_t columns = fc1_columns(spec, width), packed_columns = fc1_columns(spec, packed);

  if (spec.fc1_layout == WeightLayout::kn) {
    if (halves) {
      pack_kn_halves(in1, hidden, width, out1, packed);
    } else {
      copy_rows(in1, hidden, columns, out1, hidden, packed_columns);
    }
  } else if (halves) {
    copy_rows(in1, width, hidden, out1, packed, hidden);
    copy_rows(in1 + width * hidden * kElementBytes, width, hidden, out1 + packed * hidden * kElementBytes,
              packed, hidden);
  } else {
    copy_rows(in1, columns, hidden, out1, packed_columns, hidden);
  }

  if (spec.fc2_layout == WeightLayout::nk) {
    copy_rows(in2, hidden, width, out2, hidden, packed);
  } else {
    copy_rows(in2, width, hidden, out2, packed, hidden);
  }
  return {};
}

Status pack_fc1_bias(const LayerSpec& spec, std::int64_t width, const void* fc1_bias, void* packed_fc1_bias) {
  if (auto status = check_packing(spec, width); !status) return status;
  if (auto status = require(fc1_bias, "fc1_bias"); !status) return status;
  if (auto status = require(packed_fc1_bias, "packed_fc1_bias"); !status) return status;
  const auto* in = static_cast<const std::byte*>(fc1_bias);
  auto* out = static_cast<std::byte*>(packed_fc1_bias);
  const std::int64_t packed = packed_width(width);
  if (spec.gated() && spec.gate_order != GateOrder::interleaved) {
    pack_kn_halves(in, 1, width, out, packed);
  } else {
    copy_rows(in, 1, fc1_columns(spec, width), out, 1, fc1_columns(spec, packed));
  }
  return {};
}

}  // namespace varmoe
