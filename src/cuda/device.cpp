#include "cuda/device.hpp"

#include <fmt/format.h>

#include <array>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {
namespace {

Status read_attributes(const Driver& driver, CUdevice device, DeviceAttributes& out) {
  struct Wanted {
    CUdevice_attribute attribute;
    int* value;
  };
  int l2 = 0;
  const std::array<Wanted, 9> wanted = {{
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &out.compute_major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &out.compute_minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &out.sm_count},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &out.smem_per_block},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, &out.smem_per_sm},
      {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, &out.regs_per_sm},
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, &out.threads_per_sm},
      {CU_DEVICE_ATTRIBUTE_WARP_SIZE, &out.warp_size},
      {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &l2},
  }};
  for (const Wanted& w : wanted) {
    if (auto status = VARMOE_CUDA_CALL(driver, cuDeviceGetAttribute, w.value, w.attribute, device); !status)
      return status;
  }
  out.l2_bytes = l2;
  std::array<char, 256> text{};
  if (auto s =
          VARMOE_CUDA_CALL(driver, cuDeviceGetName, text.data(), static_cast<int>(text.size()) - 1, device);
      !s)
    return s;
  out.name = text.data();
  text.fill(0);
  if (auto s = VARMOE_CUDA_CALL(driver, cuDeviceGetPCIBusId, text.data(), static_cast<int>(text.size()) - 1,
                                device);
      !s)
    return s;
  out.pci_bus_id = text.data();
  std::size_t bytes = 0;
  if (auto s = VARMOE_CUDA_CALL(driver, cuDeviceTotalMem, &bytes, device); !s) return s;
  out.total_memory = static_cast<std::int64_t>(bytes);
  return {};
}

}  // namespace

Result<std::shared_ptr<Device>> Device::open(std::shared_ptr<Driver> driver, int ordinal) {
  if (ordinal < 0 || ordinal >= driver->device_count()) {
    return Error(ErrorCode::no_device,
                 fmt::format("there is no CUDA device {}: this process sees {}, numbered from 0", ordinal,
                             driver->device_count()));
  }
  std::shared_ptr<Device> device(new Device);
  device->ordinal_ = ordinal;
  CUdevice handle = 0;
  if (auto status = VARMOE_CUDA_CALL(*driver, cuDeviceGet, &handle, ordinal); !status) return status.error();
  device->handle_ = handle;
  if (auto status = read_attributes(*driver, handle, device->attributes_); !status) return status.error();
  CUcontext context = nullptr;
  if (auto status = VARMOE_CUDA_CALL(*driver, cuDevicePrimaryCtxRetain, &context, handle); !status)
    return status.error();
  device->driver_ = std::move(driver);  // from here on the destructor releases the context
  device->context_ = context;
  return device;
}

Device::~Device() {
  if (context_) quiet_call(*driver_, driver_->table().cuDevicePrimaryCtxRelease, handle_);
}

Status Device::synchronize() const {
  const ContextScope scope(*this);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(*driver_, cuCtxSynchronize);
}

namespace {
constexpr int kUnusable = -1;  // not a CUresult
}

ContextScope::ContextScope(const Device& device) noexcept : device_(&device) {
  const Driver& driver = device.driver();
  if (!driver.usable()) [[unlikely]] {
    result_ = kUnusable;
    return;
  }
  CUcontext current = nullptr;
  result_ = static_cast<int>(driver.table().cuCtxGetCurrent(&current));
  if (result_ != 0 || current == device.context()) return;
  result_ = static_cast<int>(driver.table().cuCtxPushCurrent(static_cast<CUcontext>(device.context())));
  pushed_ = result_ == 0;
}

ContextScope::~ContextScope() {
  if (!pushed_) return;
  CUcontext popped = nullptr;
  quiet_call(device_->driver(), device_->driver().table().cuCtxPopCurrent, &popped);
}

Status ContextScope::status() const noexcept {
  if (result_ == kUnusable) return device_->driver().unusable_error("cuCtxPushCurrent");
  return device_->driver().check(result_, "cuCtxPushCurrent");
}

}  // namespace varmoe::cuda
