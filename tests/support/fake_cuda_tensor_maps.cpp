// The driver's entry point for tensor maps. It refuses what the real driver refuses (CUDA driver API,
// "cuTensorMapEncodeTiled"), as far as maps of two-byte elements without interleaving go.
#include <algorithm>
#include <cstring>

#include "support/fake_cuda_state.hpp"

namespace varmoe::fake_cuda {
namespace {

/// In place of the hardware's bits: which of the maps encoded so far this is.
struct EncodedMap {
  std::uint64_t magic = 0x70616d726f736e74;
  std::uint64_t number = 0;
  std::byte unused[112]{};
};
static_assert(sizeof(EncodedMap) == sizeof(CUtensorMap));

constexpr std::uint64_t kElementBytes = 2;

bool sound(const TensorMap& map) {
  const auto each = [](const auto& values, auto takes) {
    return std::all_of(values.begin(), values.end(), takes);
  };
  return map.base != 0 && map.base % 16 == 0 &&
         each(map.size, [](std::uint64_t n) { return n > 0 && n <= std::uint64_t{1} << 32; }) &&
         each(map.stride, [](std::uint64_t n) { return n % 16 == 0 && n < std::uint64_t{1} << 40; }) &&
         each(map.box, [](std::uint32_t n) { return n > 0 && n <= 256; }) &&
         each(map.element_stride, [](std::uint32_t n) { return n > 0 && n <= 8; }) &&
         map.box[0] * kElementBytes % 16 == 0 &&
         (map.swizzle != CU_TENSOR_MAP_SWIZZLE_128B || map.box[0] * kElementBytes <= 128);
}

}  // namespace

std::vector<TensorMap> tensor_maps() {
  const Entry entry;
  return state().tensor_maps;
}

std::optional<TensorMap> read_tensor_map(const void* map) {
  const Entry entry;
  EncodedMap encoded;
  std::memcpy(&encoded, map, sizeof encoded);
  const auto& all = state().tensor_maps;
  if (encoded.magic != EncodedMap{}.magic || encoded.number >= all.size()) return std::nullopt;
  return all[encoded.number];
}

}  // namespace varmoe::fake_cuda

using namespace varmoe::fake_cuda;

extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* size,
    const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* element_stride,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill) {
  FAKE_ENTER(cuTensorMapEncodeTiled);
  if (!current() || current()->device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (!map || reinterpret_cast<std::uintptr_t>(map) % 64 != 0 || rank < 2 || rank > 5)
    return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16)
    return CUDA_ERROR_INVALID_VALUE;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return CUDA_ERROR_INVALID_VALUE;
  TensorMap made;
  made.data_type = type;
  made.base = reinterpret_cast<std::uint64_t>(base);
  made.size.assign(size, size + rank);
  made.stride.assign(stride, stride + rank - 1);
  made.box.assign(box, box + rank);
  made.element_stride.assign(element_stride, element_stride + rank);
  made.interleave = interleave;
  made.swizzle = swizzle;
  made.promotion = promotion;
  made.fill = fill;
  if (!sound(made)) return CUDA_ERROR_INVALID_VALUE;
  EncodedMap encoded;
  encoded.number = state().tensor_maps.size();
  state().tensor_maps.push_back(std::move(made));
  std::memcpy(map, &encoded, sizeof encoded);
  return CUDA_SUCCESS;
}
