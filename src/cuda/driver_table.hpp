#pragma once

// Private to the room: the only header that includes cuda.h.
#include <cuda.h>

#include "cuda/driver.hpp"

// Every function of the driver that varmoe calls. Prototypes are those of CUDA 12.0 (Driver::kMinVersion),
// which is also the version asked of cuGetProcAddress: a newer driver then hands out the entry point of that
// prototype.
#define VARMOE_CUDA_FUNCTIONS(X)                 \
  X(cuInit)                                      \
  X(cuDriverGetVersion)                          \
  X(cuGetErrorName)                              \
  X(cuGetErrorString)                            \
  X(cuDeviceGetCount)                            \
  X(cuDeviceGet)                                 \
  X(cuDeviceGetName)                             \
  X(cuDeviceGetAttribute)                        \
  X(cuDeviceTotalMem)                            \
  X(cuDeviceGetPCIBusId)                         \
  X(cuDevicePrimaryCtxRetain)                    \
  X(cuDevicePrimaryCtxRelease)                   \
  X(cuCtxGetCurrent)                             \
  X(cuCtxPushCurrent)                            \
  X(cuCtxPopCurrent)                             \
  X(cuCtxSynchronize)                            \
  X(cuLibraryLoadData)                           \
  X(cuLibraryUnload)                             \
  X(cuLibraryGetKernel)                          \
  X(cuKernelGetFunction)                         \
  X(cuFuncGetAttribute)                          \
  X(cuFuncSetAttribute)                          \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor) \
  X(cuLaunchKernelEx)                            \
  X(cuTensorMapEncodeTiled)                      \
  X(cuMemAlloc)                                  \
  X(cuMemFree)                                   \
  X(cuMemAllocHost)                              \
  X(cuMemFreeHost)                               \
  X(cuMemGetInfo)                                \
  X(cuMemcpyHtoD)                                \
  X(cuMemcpyDtoH)                                \
  X(cuMemcpyHtoDAsync)                           \
  X(cuMemcpyDtoHAsync)                           \
  X(cuMemcpyDtoDAsync)                           \
  X(cuMemsetD8Async)                             \
  X(cuMemsetD2D8Async)                           \
  X(cuStreamCreate)                              \
  X(cuStreamDestroy)                             \
  X(cuStreamSynchronize)                         \
  X(cuStreamQuery)                               \
  X(cuStreamWaitEvent)                           \
  X(cuStreamIsCapturing)                         \
  X(cuStreamBeginCapture)                        \
  X(cuStreamEndCapture)                          \
  X(cuThreadExchangeStreamCaptureMode)           \
  X(cuEventCreate)                               \
  X(cuEventDestroy)                              \
  X(cuEventRecord)                               \
  X(cuEventSynchronize)                          \
  X(cuEventQuery)                                \
  X(cuEventElapsedTime)                          \
  X(cuGraphDestroy)                              \
  X(cuGraphGetNodes)                             \
  X(cuGraphInstantiateWithFlags)                 \
  X(cuGraphLaunch)                               \
  X(cuGraphExecDestroy)

namespace varmoe::cuda {

struct DriverTable {
#define VARMOE_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  VARMOE_CUDA_FUNCTIONS(VARMOE_CUDA_MEMBER)
#undef VARMOE_CUDA_MEMBER
  /// CUDA 12.4 and newer: loads a function now. Null in older drivers.
  CUresult(CUDAAPI* cuFuncLoad)(CUfunction) = nullptr;
  /// For looking into graphs (Graph::kernels, GraphExec::enable), which only the benchmark does. CUDA 12.3
  /// and newer; null in older drivers.
  decltype(&::cuGraphNodeGetType) cuGraphNodeGetType = nullptr;
  decltype(&::cuGraphKernelNodeGetParams) cuGraphKernelNodeGetParams = nullptr;
  decltype(&::cuGraphNodeSetEnabled) cuGraphNodeSetEnabled = nullptr;
  CUresult(CUDAAPI* cuFuncGetName)(const char**, CUfunction) = nullptr;
  CUresult(CUDAAPI* cuKernelGetName)(const char**, CUkernel) = nullptr;
};

/// A call, unless this is a forked child.
template <class F, class... A>
Status call(const Driver& driver, const char* name, F function, A... arguments) {
  if (!driver.usable()) [[unlikely]]
    return driver.unusable_error(name);
  return driver.check(static_cast<int>(function(arguments...)), name);
}

/// A call whose failure has nobody to report to (destructors): nothing in a forked child, every result
/// ignored, since after the driver's own teardown all of them are CUDA_ERROR_DEINITIALIZED.
template <class F, class... A>
void quiet_call(const Driver& driver, F function, A... arguments) noexcept {
  if (driver.usable()) static_cast<void>(function(arguments...));
}

}  // namespace varmoe::cuda

// VARMOE_CUDA_CALL(driver, cuMemFree, address): the name in the error is the name in the source.
#define VARMOE_CUDA_CALL(driver, name, ...) \
  ::varmoe::cuda::call((driver), #name, (driver).table().name __VA_OPT__(, ) __VA_ARGS__)
