#include "cuda/memory.hpp"

#include <fmt/format.h>

#include <utility>

#include "cuda/driver_table.hpp"
#include "cuda/graph.hpp"

namespace varmoe::cuda {
namespace {

Error allocation_error(const Device& device, const Error& error, std::size_t bytes, const char* kind) {
  if (error.code() != ErrorCode::out_of_memory) return error;
  std::string message = fmt::format("{} bytes of {} could not be allocated on device {} ({})", bytes, kind,
                                    device.ordinal(), device.attributes().name);
  if (auto info = memory_info(device)) {
    message += fmt::format("; {} of {} bytes of its memory are free", info->free_bytes, info->total_bytes);
  }
  return {ErrorCode::out_of_memory, message + ": " + error.message()};
}

CUstream stream_of(void* stream) {
  return static_cast<CUstream>(stream);
}

}  // namespace

Result<DeviceBuffer> DeviceBuffer::allocate(std::shared_ptr<Device> device, std::size_t bytes) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  const ContextScope scope(*device);
  if (!scope.ok()) return scope.status().error();
  const RelaxedCaptureScope relaxed(device->driver());
  CUdeviceptr address = 0;
  if (auto status = VARMOE_CUDA_CALL(device->driver(), cuMemAlloc, &address, bytes); !status) {
    return allocation_error(*device, status.error(), bytes, "device memory");
  }
  buffer.device_ = std::move(device);
  buffer.address_ = address;
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept {
  *this = std::move(other);
}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this != &other) {
    free();
    device_ = std::move(other.device_);
    address_ = std::exchange(other.address_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}
DeviceBuffer::~DeviceBuffer() {
  free();
}

void DeviceBuffer::free() noexcept {
  if (!address_) return;
  {
    const ContextScope scope(*device_);
    const RelaxedCaptureScope relaxed(device_->driver());
    if (scope.ok()) quiet_call(device_->driver(), device_->driver().table().cuMemFree, CUdeviceptr{address_});
  }
  address_ = 0;
  bytes_ = 0;
  device_.reset();
}

Result<PinnedBuffer> PinnedBuffer::allocate(std::shared_ptr<Device> device, std::size_t bytes) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  const ContextScope scope(*device);
  if (!scope.ok()) return scope.status().error();
  const RelaxedCaptureScope relaxed(device->driver());
  if (auto status = VARMOE_CUDA_CALL(device->driver(), cuMemAllocHost, &buffer.data_, bytes); !status) {
    return allocation_error(*device, status.error(), bytes, "pinned host memory");
  }
  buffer.device_ = std::move(device);
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept {
  *this = std::move(other);
}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  if (this != &other) {
    free();
    device_ = std::move(other.device_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}
PinnedBuffer::~PinnedBuffer() {
  free();
}

void PinnedBuffer::free() noexcept {
  if (!data_) return;
  if (device_) {
    const ContextScope scope(*device_);
    const RelaxedCaptureScope relaxed(device_->driver());
    if (scope.ok()) quiet_call(device_->driver(), device_->driver().table().cuMemFreeHost, data_);
  }
  data_ = nullptr;
  bytes_ = 0;
  device_.reset();
}

// Blocking copies go through the legacy default stream: RelaxedCaptureScope keeps them from breaking a global
// capture of another thread.
Status copy_to_device(const Device& device, std::uint64_t destination, const void* source,
                      std::size_t bytes) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  const RelaxedCaptureScope relaxed(device.driver());
  if (Status copied =
          VARMOE_CUDA_CALL(device.driver(), cuMemcpyHtoD, CUdeviceptr{destination}, source, bytes);
      !copied)
    return copied;
  // Of pageable memory that returns when the bytes are staged; a stream that does not wait for the legacy one
  // could run ahead of the rest.
  return VARMOE_CUDA_CALL(device.driver(), cuStreamSynchronize, CUstream{nullptr});
}

Status copy_to_host(const Device& device, void* destination, std::uint64_t source, std::size_t bytes) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  const RelaxedCaptureScope relaxed(device.driver());
  return VARMOE_CUDA_CALL(device.driver(), cuMemcpyDtoH, destination, CUdeviceptr{source}, bytes);
}

Status copy_to_device_async(const Device& device, std::uint64_t destination, const void* source,
                            std::size_t bytes, void* stream) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuMemcpyHtoDAsync, CUdeviceptr{destination}, source, bytes,
                          stream_of(stream));
}

Status copy_to_host_async(const Device& device, void* destination, std::uint64_t source, std::size_t bytes,
                          void* stream) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuMemcpyDtoHAsync, destination, CUdeviceptr{source}, bytes,
                          stream_of(stream));
}

Status copy_on_device_async(const Device& device, std::uint64_t destination, std::uint64_t source,
                            std::size_t bytes, void* stream) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuMemcpyDtoDAsync, CUdeviceptr{destination}, CUdeviceptr{source},
                          bytes, stream_of(stream));
}

Status fill_async(const Device& device, std::uint64_t destination, std::uint8_t value, std::size_t bytes,
                  void* stream) {
  if (bytes == 0) return {};
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuMemsetD8Async, CUdeviceptr{destination}, value, bytes,
                          stream_of(stream));
}

Status fill_rows_async(const Driver& driver, std::uint64_t destination, std::size_t stride,
                       std::size_t row_bytes, std::size_t rows, void* stream) noexcept {
  return VARMOE_CUDA_CALL(driver, cuMemsetD2D8Async, CUdeviceptr{destination}, stride, std::uint8_t{0},
                          row_bytes, rows, stream_of(stream));
}

Result<MemoryInfo> memory_info(const Device& device) {
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status().error();
  MemoryInfo info;
  if (auto s = VARMOE_CUDA_CALL(device.driver(), cuMemGetInfo, &info.free_bytes, &info.total_bytes); !s)
    return s.error();
  return info;
}

}  // namespace varmoe::cuda
