#include "cuda/tensor_map.hpp"

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {

static_assert(sizeof(CUtensorMap) == kTensorMapBytes);
static_assert(sizeof(cuuint64_t) == sizeof(std::uint64_t) && sizeof(cuuint32_t) == sizeof(std::uint32_t));

Status encode_tensor_map(const Driver& driver, const TensorBoxes& boxes, void* out) noexcept {
  static constexpr std::array<cuuint32_t, 5> kEveryElement = {1, 1, 1, 1, 1};
  // The driver's prototype takes 64-bit words of its own name; the values are the same.
  std::array<cuuint64_t, 5> size;
  std::array<cuuint64_t, 4> stride;
  for (std::size_t i = 0; i < size.size(); ++i) size[i] = boxes.size[i];
  for (std::size_t i = 0; i < stride.size(); ++i) stride[i] = boxes.stride[i];
  return VARMOE_CUDA_CALL(driver, cuTensorMapEncodeTiled, static_cast<CUtensorMap*>(out),
                          boxes.bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                          static_cast<cuuint32_t>(boxes.rank), reinterpret_cast<void*>(boxes.base),
                          size.data(), stride.data(), boxes.box.data(), kEveryElement.data(),
                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace varmoe::cuda
