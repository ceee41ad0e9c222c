#include "cuda/launch.hpp"

#include <array>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {

Status launch(const Driver& driver, void* function, Dim3 grid, Dim3 block, std::uint32_t dynamic_smem,
              void* stream, void** params, const LaunchAttributes& attributes) noexcept {
  std::array<CUlaunchAttribute, 2> native;
  unsigned count = 0;
  if (attributes.programmatic_dependent_launch) {
    native[count] = {};
    native[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    native[count].value.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  if (attributes.cluster > 1) {
    native[count] = {};
    native[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    native[count].value.clusterDim.x = static_cast<unsigned>(attributes.cluster);
    native[count].value.clusterDim.y = 1;
    native[count].value.clusterDim.z = 1;
    ++count;
  }
  CUlaunchConfig config{};
  config.gridDimX = grid.x;
  config.gridDimY = grid.y;
  config.gridDimZ = grid.z;
  config.blockDimX = block.x;
  config.blockDimY = block.y;
  config.blockDimZ = block.z;
  config.sharedMemBytes = dynamic_smem;
  config.hStream = static_cast<CUstream>(stream);
  config.attrs = count ? native.data() : nullptr;
  config.numAttrs = count;
  void** const no_extra = nullptr;
  return VARMOE_CUDA_CALL(driver, cuLaunchKernelEx, &config, static_cast<CUfunction>(function), params,
                          no_extra);
}

}  // namespace varmoe::cuda
