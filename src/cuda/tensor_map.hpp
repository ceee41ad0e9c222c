#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/driver.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

inline constexpr std::size_t kTensorMapBytes = 128;
/// Strides of a tensor map stay below this.
inline constexpr std::uint64_t kMaxTensorStride = std::uint64_t{1} << 40;

/// A tensor of two-byte elements in device memory and the box that one bulk copy moves to 128-byte swizzled
/// shared memory. Elements outside the tensor arrive as zero. Dimensions go from the contiguous one outwards.
struct TensorBoxes {
  std::uint64_t base = 0;               ///< device address, 16-byte aligned
  std::uint32_t rank = 0;               ///< 2 … 5
  std::array<std::uint64_t, 5> size{};  ///< elements
  std::array<std::uint64_t, 4>
      stride{};                        ///< bytes, of dimensions 1 …; multiples of 16 below kMaxTensorStride
  std::array<std::uint32_t, 5> box{};  ///< elements, 256 at most; box[0] · 2 is 128 at most
  bool bf16 = true;                    ///< else fp16
};

/// Encodes a CUtensorMap into kTensorMapBytes at `out` (64-byte aligned). Host work alone, fine while a
/// stream is captured; but a context must be current, or the driver answers CUDA_ERROR_INVALID_CONTEXT.
Status encode_tensor_map(const Driver& driver, const TensorBoxes& boxes, void* out) noexcept;

}  // namespace varmoe::cuda
