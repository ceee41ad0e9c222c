#pragma once

#include <memory>

#include "cuda/device.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

class Event {
 public:
  /// `timing`: it can be asked for times, at some cost.
  static Result<Event> create(std::shared_ptr<Device> device, bool timing);
  Event(Event&&) noexcept;
  Event& operator=(Event&&) noexcept;
  ~Event();

  void* handle() const noexcept { return handle_; }
  Status record(void* stream) const;
  Status synchronize() const;
  /// Later work on `stream` waits for the last record.
  Status make_wait(void* stream) const;
  /// True when the last record has been reached.
  Result<bool> reached() const;

 private:
  Event() = default;
  void destroy() noexcept;
  std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
};

/// Milliseconds between two recorded and reached timing events of one device.
Result<float> elapsed_ms(const Device& device, const Event& start, const Event& end);

}  // namespace varmoe::cuda
