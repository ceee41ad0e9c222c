#pragma once

#include <cstdint>
#include <memory>

#include "cuda/device.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

class Stream {
 public:
  /// A stream that does not synchronise with the legacy default stream unless `blocking`.
  static Result<Stream> create(std::shared_ptr<Device> device, bool blocking = false);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  void* handle() const noexcept { return handle_; }
  /// Waits for what was enqueued.
  Status synchronize() const;
  /// True when everything enqueued has finished.
  Result<bool> idle() const;

 private:
  Stream() = default;
  void destroy() noexcept;
  std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
};

/// Waits for what was enqueued on any stream of the device (null: the legacy default stream).
Status synchronize_stream(const Device& device, void* stream);

/// Whether a stream is being captured into a graph.
enum class CaptureStatus : std::uint8_t {
  none,
  active,
  invalidated,  ///< a capture that has failed and has not been ended
  /// Only of the legacy default stream: another stream that synchronises with it is being captured, so that
  /// anything enqueued here would break that capture.
  blocked,
};

/// Does not disturb a capture. The device's context must be current when `stream` is null (see ContextScope).
Result<CaptureStatus> capture_status(const Driver& driver, void* stream) noexcept;

}  // namespace varmoe::cuda
