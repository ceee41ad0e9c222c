#include "cuda/driver.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <pthread.h>

#include <atomic>
#include <mutex>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {
namespace {

// Counts forks between this process and the one that loaded the library; a Driver made before the last fork
// is unusable.
std::atomic<unsigned> fork_generation{0};

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    // If registration fails for want of memory, a forked child is merely not recognised.
    static_cast<void>(
        pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); }));
  });
}

ErrorCode code_of(CUresult result) noexcept {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return ErrorCode::out_of_memory;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_STUB_LIBRARY:
      return ErrorCode::no_device;
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return ErrorCode::driver_too_old;
    default:
      return ErrorCode::device_error;
  }
}

}  // namespace

std::string version_text(int cuda_version) {
  return fmt::format("{}.{}", cuda_version / 1000, cuda_version % 1000 / 10);
}

Driver::Driver() : table_(std::make_unique<DriverTable>()) {}
Driver::~Driver() = default;

bool Driver::usable() const noexcept {
  return fork_generation_ == fork_generation.load(std::memory_order_relaxed);
}

Error Driver::unusable_error(const char* call) const {
  return {ErrorCode::device_error, fmt::format("{}: CUDA was initialised before this process was forked, and "
                                               "CUDA does not survive a fork; create the "
                                               "engine in the child, or start the child with spawn or exec",
                                               call)};
}

Error Driver::failure(int result, const char* call) const {
  const auto code = static_cast<CUresult>(result);
  const char* name = nullptr;
  const char* sentence = nullptr;
  if (table_->cuGetErrorName) static_cast<void>(table_->cuGetErrorName(code, &name));
  if (table_->cuGetErrorString) static_cast<void>(table_->cuGetErrorString(code, &sentence));
  std::string message = fmt::format("{} failed: {} ({})", call, name ? name : "unknown error", result);
  if (sentence && *sentence) message += fmt::format(": {}", sentence);
  const ErrorCode kind = code_of(code);
  if (kind == ErrorCode::driver_too_old)
    message += fmt::format("; the driver supports CUDA {}", version_text(version_));
  return {kind, std::move(message)};
}

Result<std::shared_ptr<Driver>> Driver::load(const std::string& path) {
  watch_forks();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* why = dlerror();
    return Error(ErrorCode::no_device, fmt::format("no CUDA driver: {} cannot be loaded ({}); install the "
                                                   "NVIDIA driver, or in a container start it with "
                                                   "GPU access",
                                                   path, why ? why : "unknown reason"));
  }
  std::shared_ptr<Driver> driver(new Driver);
  driver->fork_generation_ = fork_generation.load(std::memory_order_relaxed);
  DriverTable& table = *driver->table_;

  // The version first: it is there in every driver, and says why the rest is not.
  const auto get_version =
      reinterpret_cast<decltype(&::cuDriverGetVersion)>(dlsym(library, "cuDriverGetVersion"));
  int version = 0;
  if (!get_version || get_version(&version) != CUDA_SUCCESS || version <= 0) {
    return Error(ErrorCode::no_device,
                 fmt::format("{} is no working CUDA driver: cuDriverGetVersion is missing or fails", path));
  }
  driver->version_ = version;
  if (version < kMinVersion) {
    return Error(ErrorCode::driver_too_old,
                 fmt::format("the CUDA driver supports CUDA {}, varmoe needs {} or newer",
                             version_text(version), version_text(kMinVersion)));
  }
  const auto get_address = reinterpret_cast<CUresult(CUDAAPI*)(const char*, void**, int, cuuint64_t,
                                                               CUdriverProcAddressQueryResult*)>(
      dlsym(library, "cuGetProcAddress_v2"));
  if (!get_address) {
    return Error(ErrorCode::device_error, fmt::format("{} supports CUDA {} but lacks cuGetProcAddress_v2",
                                                      path, version_text(version)));
  }
  const auto find = [&](const char* name, int cuda_version) {
    void* address = nullptr;
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SUCCESS;
    const CUresult result =
        get_address(name, &address, cuda_version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found);
    return result == CUDA_SUCCESS && found == CU_GET_PROC_ADDRESS_SUCCESS ? address : nullptr;
  };
#define VARMOE_CUDA_FIND(name)                                                                         \
  table.name = reinterpret_cast<decltype(table.name)>(find(#name, kMinVersion));                       \
  if (!table.name) {                                                                                   \
    return Error(ErrorCode::device_error,                                                              \
                 fmt::format("{} supports CUDA {} but lacks {}", path, version_text(version), #name)); \
  }
  VARMOE_CUDA_FUNCTIONS(VARMOE_CUDA_FIND)
#undef VARMOE_CUDA_FIND
  if (version >= 12040)
    table.cuFuncLoad = reinterpret_cast<decltype(table.cuFuncLoad)>(find("cuFuncLoad", 12040));
  if (version >= 12030) {
#define VARMOE_CUDA_FIND_OPTIONAL(name) \
  table.name = reinterpret_cast<decltype(table.name)>(find(#name, 12030));
    VARMOE_CUDA_FIND_OPTIONAL(cuGraphNodeGetType)
    VARMOE_CUDA_FIND_OPTIONAL(cuGraphKernelNodeGetParams)
    VARMOE_CUDA_FIND_OPTIONAL(cuGraphNodeSetEnabled)
    VARMOE_CUDA_FIND_OPTIONAL(cuFuncGetName)
    VARMOE_CUDA_FIND_OPTIONAL(cuKernelGetName)
#undef VARMOE_CUDA_FIND_OPTIONAL
  }

  if (const CUresult result = table.cuInit(0); result != CUDA_SUCCESS) {
    Error error = driver->failure(static_cast<int>(result), "cuInit");
    if (result == CUDA_ERROR_NO_DEVICE) {
      error = Error(ErrorCode::no_device,
                    "the CUDA driver sees no GPU (" + error.message() +
                        "); is CUDA_VISIBLE_DEVICES empty, or the container without GPU access?");
    } else if (result == CUDA_ERROR_NOT_INITIALIZED) {
      // What a driver that the parent initialised answers in a forked child.
      error = Error(
          ErrorCode::device_error,
          error.message() + "; if a parent process used CUDA before fork, start this one with spawn or exec");
    }
    return error;
  }
  if (auto status = VARMOE_CUDA_CALL(*driver, cuDeviceGetCount, &driver->device_count_); !status)
    return status.error();
  if (driver->device_count_ < 1) return Error(ErrorCode::no_device, "the CUDA driver sees no GPU");
  return driver;
}

}  // namespace varmoe::cuda
