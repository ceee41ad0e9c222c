#include "plan/weight_maps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "abi.cuh"
#include "cuda/tensor_map.hpp"

namespace varmoe::plan {
namespace {

constexpr std::uint64_t kElementBytes = 2;

std::uint64_t address(const void* p) {
  return reinterpret_cast<std::uint64_t>(p);
}

/// rows × columns elements with columns contiguous, in boxes of 64 by 64.
cuda::TensorBoxes matrix(std::uint64_t base, std::uint64_t rows, std::uint64_t columns,
                         std::uint64_t stride_bytes) {
  cuda::TensorBoxes t;
  t.base = base;
  t.rank = 2;
  t.size = {columns, rows};
  t.stride = {stride_bytes};
  t.box = {64, 64};
  return t;
}

/// Gate and up of one expert, the lower address first (abi::ExpertEntry::up_first).
Result<cuda::TensorBoxes> gate_and_up(const LayerSpec& spec, const ExpertWeights& w, std::uint64_t width,
                                      std::int64_t expert) {
  const std::uint64_t gate = address(w.gate), up = address(w.up);
  const std::uint64_t base = std::min(gate, up), apart = std::max(gate, up) - base;
  const std::uint64_t row = static_cast<std::uint64_t>(w.fc1_stride) * kElementBytes;
  if (apart >= cuda::kMaxTensorStride || apart == 0) {
    const bool shared = expert >= spec.num_experts();
    return Error(ErrorCode::unsupported,
                 fmt::format("{} {}: gate and up lie {} bytes apart; one tensor map spans up to 2^40, and "
                             "they must differ",
                             shared ? "shared expert" : "expert",
                             shared ? expert - spec.num_experts() : expert, apart));
  }
  cuda::TensorBoxes t;
  t.base = base;
  const auto hidden = static_cast<std::uint64_t>(spec.hidden_size);
  if (spec.fc1_layout == WeightLayout::nk) {
    // Eight gate rows, eight up rows, the next eight gate rows, …
    t.rank = 4;
    t.size = {hidden, 8, 2, width / 8};
    t.stride = {row, apart, 8 * row};
    t.box = {64, 8, 2, 4};
  } else {
    // 64 gate columns and 64 up columns of 64 rows of K.
    t.rank = 3;
    t.size = {width, hidden, 2};
    t.stride = {row, apart};
    t.box = {64, 64, 2};
  }
  return t;
}

Result<cuda::TensorBoxes> fc1_boxes(const LayerSpec& spec, const ExpertWeights& w, std::uint64_t width,
                                    std::int64_t expert) {
  const bool kn = spec.fc1_layout == WeightLayout::kn;
  const bool adjacent = spec.gated() && kn && spec.gate_order == GateOrder::interleaved;
  if (spec.gated() && !adjacent) return gate_and_up(spec, w, width, expert);
  const std::uint64_t row = static_cast<std::uint64_t>(w.fc1_stride) * kElementBytes;
  const auto hidden = static_cast<std::uint64_t>(spec.hidden_size);
  if (adjacent) return matrix(address(w.gate), hidden, 2 * width, row);
  return kn ? matrix(address(w.up), hidden, width, row) : matrix(address(w.up), width, hidden, row);
}

cuda::TensorBoxes fc2_boxes(const LayerSpec& spec, const ExpertWeights& w, std::uint64_t width) {
  const std::uint64_t row = static_cast<std::uint64_t>(w.fc2_stride) * kElementBytes;
  const auto hidden = static_cast<std::uint64_t>(spec.hidden_size);
  return spec.fc2_layout == WeightLayout::kn ? matrix(address(w.down), width, hidden, row)
                                             : matrix(address(w.down), hidden, width, row);
}

}  // namespace

Status encode_weight_maps(const cuda::Driver& driver, const LayerSpec& spec, const Weights& weights,
                          std::byte* fc1, std::byte* fc2) {
  const auto encode = [&](cuda::TensorBoxes boxes, std::byte* out) -> Status {
    boxes.bf16 = spec.dtype == DType::bf16;
    abi::TensorMap map{};
    if (auto ok = cuda::encode_tensor_map(driver, boxes, &map); !ok) return ok;
    std::memcpy(out, &map, sizeof map);
    return {};
  };
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const ExpertWeights& w = weights_of(weights, e);
    const auto width = static_cast<std::uint64_t>(spec.width_of(e));
    auto boxes = fc1_boxes(spec, w, width, e);
    if (!boxes) return std::move(boxes).error();
    const std::size_t at = static_cast<std::size_t>(e) * sizeof(abi::TensorMap);
    if (auto ok = encode(*boxes, fc1 + at); !ok) return ok;
    if (auto ok = encode(fc2_boxes(spec, w, width), fc2 + at); !ok) return ok;
  }
  return {};
}

}  // namespace varmoe::plan
