#include "cuda/event.hpp"

#include <utility>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {

Result<Event> Event::create(std::shared_ptr<Device> device, bool timing) {
  const ContextScope scope(*device);
  if (!scope.ok()) return scope.status().error();
  CUevent handle = nullptr;
  const unsigned flags = timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING;
  if (auto status = VARMOE_CUDA_CALL(device->driver(), cuEventCreate, &handle, flags); !status)
    return status.error();
  Event event;
  event.device_ = std::move(device);
  event.handle_ = handle;
  return event;
}

Event::Event(Event&& other) noexcept {
  *this = std::move(other);
}
Event& Event::operator=(Event&& other) noexcept {
  if (this != &other) {
    destroy();
    device_ = std::move(other.device_);
    handle_ = std::exchange(other.handle_, nullptr);
  }
  return *this;
}
Event::~Event() {
  destroy();
}

void Event::destroy() noexcept {
  if (handle_)
    quiet_call(device_->driver(), device_->driver().table().cuEventDestroy, static_cast<CUevent>(handle_));
  handle_ = nullptr;
  device_.reset();
}

Status Event::record(void* stream) const {
  const ContextScope scope(*device_);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device_->driver(), cuEventRecord, static_cast<CUevent>(handle_),
                          static_cast<CUstream>(stream));
}

Status Event::synchronize() const {
  return VARMOE_CUDA_CALL(device_->driver(), cuEventSynchronize, static_cast<CUevent>(handle_));
}

Status Event::make_wait(void* stream) const {
  const ContextScope scope(*device_);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device_->driver(), cuStreamWaitEvent, static_cast<CUstream>(stream),
                          static_cast<CUevent>(handle_), 0U);
}

Result<bool> Event::reached() const {
  const Driver& driver = device_->driver();
  if (!driver.usable()) return driver.unusable_error("cuEventQuery");
  const CUresult result = driver.table().cuEventQuery(static_cast<CUevent>(handle_));
  if (result == CUDA_ERROR_NOT_READY) return false;
  if (auto status = driver.check(static_cast<int>(result), "cuEventQuery"); !status) return status.error();
  return true;
}

Result<float> elapsed_ms(const Device& device, const Event& start, const Event& end) {
  float milliseconds = 0;
  if (auto status =
          VARMOE_CUDA_CALL(device.driver(), cuEventElapsedTime, &milliseconds,
                           static_cast<CUevent>(start.handle()), static_cast<CUevent>(end.handle()));
      !status) {
    return status.error();
  }
  return milliseconds;
}

}  // namespace varmoe::cuda
