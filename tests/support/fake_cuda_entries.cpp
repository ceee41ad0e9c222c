// The driver's entry points: start-up, devices, contexts, memory, libraries.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/driver_table.hpp"
#include "support/fake_cuda_state.hpp"

namespace varmoe::fake_cuda {
namespace {

struct Named {
  const char* name;
  void* address;
};

bool valid_device(CUdevice device) {
  return device >= 0 && device < static_cast<int>(state().devices.size());
}

const FakeDevice* device_of(const Context* context) {
  return context && valid_device(context->device)
             ? &state().devices[static_cast<std::size_t>(context->device)]
             : nullptr;
}

Function* function_of(CUfunction handle) {
  return reinterpret_cast<Function*>(handle);
}

void make_resident(Function* function) {
  function->resident = true;
}

std::size_t used_bytes(const Context* context) {
  std::size_t bytes = 0;
  for (const auto& [unused, allocation] : state().allocations)
    bytes += allocation.context == context ? allocation.bytes : 0;
  return bytes;
}

/// Allocations are aligned to 256 bytes, as the driver's are.
std::uint64_t add_allocation(std::size_t bytes, Context* context) {
  Allocation allocation;
  allocation.storage = std::make_unique<std::byte[]>(bytes + 256);
  const auto raw = reinterpret_cast<std::uint64_t>(allocation.storage.get());
  const std::uint64_t address = (raw + 255) / 256 * 256;
  std::memset(reinterpret_cast<void*>(address), 0xa5, bytes);  // never zero by luck
  allocation.bytes = bytes;
  allocation.context = context;
  state().allocations[address] = std::move(allocation);
  return address;
}

CUresult free_allocation(std::uint64_t address, bool pinned) {
  const auto found = state().allocations.find(address);
  if (found == state().allocations.end() || (found->second.context == nullptr) != pinned)
    return CUDA_ERROR_INVALID_VALUE;
  state().allocations.erase(found);
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace varmoe::fake_cuda

using namespace varmoe::fake_cuda;
using varmoe::test::FakeKernel;

extern "C" {

CUresult CUDAAPI cuFuncLoad(CUfunction function) {
  FAKE_ENTER(cuFuncLoad);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  make_resident(function_of(function));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetProcAddress(const char* symbol, void** address, int cuda_version, cuuint64_t,
                                  CUdriverProcAddressQueryResult* status) {
  FAKE_ENTER(cuGetProcAddress);
  static const Named table[] = {
#define FAKE_NAMED(name) {#name, reinterpret_cast<void*>(&::name)},
      VARMOE_CUDA_FUNCTIONS(FAKE_NAMED) FAKE_NAMED(cuFuncLoad)
#undef FAKE_NAMED
  };
  *address = nullptr;
  if (status) *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  if (state().hidden.count(symbol)) return CUDA_SUCCESS;
  if (std::strcmp(symbol, "cuFuncLoad") == 0 && (state().version < 12040 || cuda_version < 12040))
    return CUDA_SUCCESS;
  for (const Named& named : table) {
    if (std::strcmp(named.name, symbol) != 0) continue;
    *address = named.address;
    if (status) *status = CU_GET_PROC_ADDRESS_SUCCESS;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}

CUresult CUDAAPI cuInit(unsigned flags) {
  FAKE_ENTER(cuInit);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  if (state().devices.empty()) return CUDA_ERROR_NO_DEVICE;
  state().initialised = true;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDriverGetVersion(int* version) {
  FAKE_ENTER(cuDriverGetVersion);
  *version = state().version;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  switch (error) {
#define FAKE_ERROR(name) \
  case name:             \
    *text = #name;       \
    return CUDA_SUCCESS;
    FAKE_ERROR(CUDA_ERROR_INVALID_VALUE)
    FAKE_ERROR(CUDA_ERROR_OUT_OF_MEMORY)
    FAKE_ERROR(CUDA_ERROR_NOT_INITIALIZED)
    FAKE_ERROR(CUDA_ERROR_DEINITIALIZED)
    FAKE_ERROR(CUDA_ERROR_NO_DEVICE)
    FAKE_ERROR(CUDA_ERROR_INVALID_DEVICE)
    FAKE_ERROR(CUDA_ERROR_INVALID_IMAGE)
    FAKE_ERROR(CUDA_ERROR_INVALID_CONTEXT)
    FAKE_ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU)
    FAKE_ERROR(CUDA_ERROR_INVALID_PTX)
    FAKE_ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
    FAKE_ERROR(CUDA_ERROR_INVALID_HANDLE)
    FAKE_ERROR(CUDA_ERROR_NOT_FOUND)
    FAKE_ERROR(CUDA_ERROR_NOT_READY)
    FAKE_ERROR(CUDA_ERROR_ILLEGAL_ADDRESS)
    FAKE_ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)
    FAKE_ERROR(CUDA_ERROR_LAUNCH_FAILED)
    FAKE_ERROR(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
    FAKE_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    FAKE_ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    FAKE_ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
    FAKE_ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
    FAKE_ERROR(CUDA_ERROR_UNKNOWN)
#undef FAKE_ERROR
    default:
      *text = nullptr;
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
  static const char sentence[] = "the fake driver says so";
  *text = error == CUDA_SUCCESS ? "no error" : sentence;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetCount(int* count) {
  FAKE_ENTER(cuDeviceGetCount);
  if (!state().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  *count = static_cast<int>(state().devices.size());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  FAKE_ENTER(cuDeviceGet);
  if (!valid_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
  FAKE_ENTER(cuDeviceGetName);
  if (!valid_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(name, static_cast<std::size_t>(length), "%s",
                state().devices[static_cast<std::size_t>(device)].name.c_str());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
  FAKE_ENTER(cuDeviceGetPCIBusId);
  if (!valid_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(id, static_cast<std::size_t>(length), "0000:%02x:00.0", device + 1);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  FAKE_ENTER(cuDeviceTotalMem);
  if (!valid_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = state().devices[static_cast<std::size_t>(device)].memory_bytes;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  FAKE_ENTER(cuDeviceGetAttribute);
  if (!valid_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  const FakeDevice& d = state().devices[static_cast<std::size_t>(device)];
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = d.compute_major;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = d.compute_minor;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = d.sm_count;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = d.smem_per_block;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = d.smem_per_sm;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      *value = d.regs_per_sm;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      *value = d.threads_per_sm;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *value = d.l2_bytes;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  FAKE_ENTER(cuDevicePrimaryCtxRetain);
  if (!valid_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  Context* primary = primary_context(device);
  ++primary->retains;
  *context = reinterpret_cast<CUcontext>(primary);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
  FAKE_ENTER(cuDevicePrimaryCtxRelease);
  Context* primary = primary_context(device);
  if (primary->retains == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --primary->retains;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  FAKE_ENTER(cuCtxGetCurrent);
  *context = reinterpret_cast<CUcontext>(current());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
  FAKE_ENTER(cuCtxPushCurrent);
  if (!context) return CUDA_ERROR_INVALID_CONTEXT;
  context_stack().push_back(reinterpret_cast<Context*>(context));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
  FAKE_ENTER(cuCtxPopCurrent);
  if (context_stack().empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = reinterpret_cast<CUcontext>(current());
  context_stack().pop_back();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSynchronize(void) {
  FAKE_ENTER(cuCtxSynchronize);
  if (!device_of(current())) return CUDA_ERROR_INVALID_CONTEXT;
  return unsafe_call();
}

CUresult CUDAAPI cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  FAKE_ENTER(cuMemAlloc);
  const FakeDevice* device = device_of(current());
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  if (bytes > device->memory_bytes - used_bytes(current())) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = add_allocation(bytes, current());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFree(CUdeviceptr address) {
  FAKE_ENTER(cuMemFree);
  if (!device_of(current())) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  return free_allocation(address, false);
}

CUresult CUDAAPI cuMemAllocHost(void** pointer, size_t bytes) {
  FAKE_ENTER(cuMemAllocHost);
  if (!device_of(current())) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  *pointer = reinterpret_cast<void*>(add_allocation(bytes, nullptr));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFreeHost(void* pointer) {
  FAKE_ENTER(cuMemFreeHost);
  return free_allocation(reinterpret_cast<std::uint64_t>(pointer), true);
}

CUresult CUDAAPI cuMemGetInfo(size_t* free_bytes, size_t* total) {
  FAKE_ENTER(cuMemGetInfo);
  const FakeDevice* device = device_of(current());
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  *total = device->memory_bytes;
  *free_bytes = device->memory_bytes - used_bytes(current());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLibraryLoadData(CUlibrary* handle, const void* code, CUjit_option* jit_options,
                                   void** jit_values, unsigned jit_count, CUlibraryOption*, void**,
                                   unsigned) {
  FAKE_ENTER(cuLibraryLoadData);
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  const auto image = varmoe::test::read_image(code);
  const auto explain = [&](const char* text) {
    for (unsigned i = 0; i < jit_count; ++i) {
      if (jit_options[i] == CU_JIT_ERROR_LOG_BUFFER) std::strcpy(static_cast<char*>(jit_values[i]), text);
    }
  };
  if (!image) return CUDA_ERROR_INVALID_IMAGE;
  if (image->is_ptx && image->min_driver > state().version) {
    explain("Unsupported .version");
    return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
  }
  if (!image->is_ptx && image->min_driver > state().version) return CUDA_ERROR_INVALID_IMAGE;
  bool fits = current() == nullptr;
  if (const FakeDevice* d = device_of(current())) {
    const int major = image->arch / 10;
    const int minor = image->arch % 10;
    fits = image->is_ptx ? image->arch <= d->compute_major * 10 + d->compute_minor
                         : major == d->compute_major && minor <= d->compute_minor;
  }
  if (!fits) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  auto library = std::make_unique<Library>();
  library->image = *image;
  *handle = reinterpret_cast<CUlibrary>(library.get());
  Library* key = library.get();
  state().libraries[key] = std::move(library);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLibraryUnload(CUlibrary handle) {
  FAKE_ENTER(cuLibraryUnload);
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  return state().libraries.erase(reinterpret_cast<Library*>(handle)) ? CUDA_SUCCESS
                                                                     : CUDA_ERROR_INVALID_HANDLE;
}

// A CUkernel of the fake is the library's Function for no context.
CUresult CUDAAPI cuLibraryGetKernel(CUkernel* handle, CUlibrary library_handle, const char* name) {
  FAKE_ENTER(cuLibraryGetKernel);
  auto* library = reinterpret_cast<Library*>(library_handle);
  if (!state().libraries.count(library)) return CUDA_ERROR_INVALID_HANDLE;
  const FakeKernel* kernel = library->image.find(name);
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  auto& function = library->functions[{kernel, nullptr}];
  if (!function) function = std::make_unique<Function>(Function{kernel, library, nullptr, false, 0});
  *handle = reinterpret_cast<CUkernel>(function.get());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuKernelGetFunction(CUfunction* handle, CUkernel kernel_handle) {
  FAKE_ENTER(cuKernelGetFunction);
  const auto* kernel = reinterpret_cast<const Function*>(kernel_handle);
  if (!kernel) return CUDA_ERROR_INVALID_HANDLE;
  if (!device_of(current())) return CUDA_ERROR_INVALID_CONTEXT;
  auto& function = kernel->library->functions[{kernel->kernel, current()}];
  if (!function)
    function =
        std::make_unique<Function>(Function{kernel->kernel, kernel->library, current(), false, 48 * 1024});
  *handle = reinterpret_cast<CUfunction>(function.get());
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  FAKE_ENTER(cuFuncGetAttribute);
  Function* function = function_of(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  make_resident(function);
  const FakeKernel& kernel = *function->kernel;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = static_cast<int>(kernel.registers);
      break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      *value = static_cast<int>(kernel.frame_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(kernel.static_smem);
      break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = static_cast<int>(kernel.max_threads);
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = function->max_dynamic_smem;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  FAKE_ENTER(cuFuncSetAttribute);
  Function* function = function_of(handle);
  const FakeDevice* device = function ? device_of(function->context) : nullptr;
  if (!device) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
      value + static_cast<int>(function->kernel->static_smem) > device->smem_per_block) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  function->max_dynamic_smem = value;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int threads,
                                                             size_t smem) {
  FAKE_ENTER(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  const Function* function = function_of(handle);
  const FakeDevice* device = function ? device_of(function->context) : nullptr;
  if (!device) return CUDA_ERROR_INVALID_HANDLE;
  if (threads <= 0) return CUDA_ERROR_INVALID_VALUE;
  const int warps = (threads + 31) / 32;
  const int registers = (static_cast<int>(function->kernel->registers) + 7) / 8 * 8 * 32 * warps;
  const auto per_block = static_cast<int>(smem) + static_cast<int>(function->kernel->static_smem) + 1024;
  *blocks =
      threads > static_cast<int>(function->kernel->max_threads)
          ? 0
          : std::min({device->threads_per_sm / (warps * 32), device->regs_per_sm / std::max(registers, 1),
                      device->smem_per_sm / per_block, 32});
  return CUDA_SUCCESS;
}

}  // extern "C"
