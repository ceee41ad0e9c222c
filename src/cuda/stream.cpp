#include "cuda/stream.hpp"

#include <utility>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {

Result<Stream> Stream::create(std::shared_ptr<Device> device, bool blocking) {
  const ContextScope scope(*device);
  if (!scope.ok()) return scope.status().error();
  CUstream handle = nullptr;
  const unsigned flags = blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING;
  if (auto status = VARMOE_CUDA_CALL(device->driver(), cuStreamCreate, &handle, flags); !status)
    return status.error();
  Stream stream;
  stream.device_ = std::move(device);
  stream.handle_ = handle;
  return stream;
}

Stream::Stream(Stream&& other) noexcept {
  *this = std::move(other);
}
Stream& Stream::operator=(Stream&& other) noexcept {
  if (this != &other) {
    destroy();
    device_ = std::move(other.device_);
    handle_ = std::exchange(other.handle_, nullptr);
  }
  return *this;
}
Stream::~Stream() {
  destroy();
}

void Stream::destroy() noexcept {
  if (handle_)
    quiet_call(device_->driver(), device_->driver().table().cuStreamDestroy, static_cast<CUstream>(handle_));
  handle_ = nullptr;
  device_.reset();
}

Status Stream::synchronize() const {
  return synchronize_stream(*device_, handle_);
}

Result<bool> Stream::idle() const {
  const Driver& driver = device_->driver();
  if (!driver.usable()) return driver.unusable_error("cuStreamQuery");
  const CUresult result = driver.table().cuStreamQuery(static_cast<CUstream>(handle_));
  if (result == CUDA_ERROR_NOT_READY) return false;
  if (auto status = driver.check(static_cast<int>(result), "cuStreamQuery"); !status) return status.error();
  return true;
}

Status synchronize_stream(const Device& device, void* stream) {
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuStreamSynchronize, static_cast<CUstream>(stream));
}

Result<CaptureStatus> capture_status(const Driver& driver, void* stream) noexcept {
  if (!driver.usable()) [[unlikely]]
    return driver.unusable_error("cuStreamIsCapturing");
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = driver.table().cuStreamIsCapturing(static_cast<CUstream>(stream), &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return CaptureStatus::blocked;
  if (auto checked = driver.check(static_cast<int>(result), "cuStreamIsCapturing"); !checked)
    return checked.error();
  switch (status) {
    case CU_STREAM_CAPTURE_STATUS_NONE:
      return CaptureStatus::none;
    case CU_STREAM_CAPTURE_STATUS_ACTIVE:
      return CaptureStatus::active;
    default:
      return CaptureStatus::invalidated;
  }
}

}  // namespace varmoe::cuda
