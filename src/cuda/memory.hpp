#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/device.hpp"
#include "varmoe/error.hpp"

/// Memory of a device. Addresses are 64-bit integers. Every function may be called whatever context is
/// current.
namespace varmoe::cuda {

/// Device memory, freed with the object. Zero bytes are allowed (address 0).
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// out_of_memory names the size asked for and what was free. 256-byte aligned.
  static Result<DeviceBuffer> allocate(std::shared_ptr<Device> device, std::size_t bytes);
  DeviceBuffer(DeviceBuffer&&) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&&) noexcept;
  ~DeviceBuffer();

  std::uint64_t address() const noexcept { return address_; }
  void* data() const noexcept { return reinterpret_cast<void*>(address_); }
  std::size_t size() const noexcept { return bytes_; }
  explicit operator bool() const noexcept { return address_ != 0; }

 private:
  void free() noexcept;
  std::shared_ptr<Device> device_;
  std::uint64_t address_ = 0;
  std::size_t bytes_ = 0;
};

/// Page-locked host memory, for copies that do not block the host.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static Result<PinnedBuffer> allocate(std::shared_ptr<Device> device, std::size_t bytes);
  PinnedBuffer(PinnedBuffer&&) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&&) noexcept;
  ~PinnedBuffer();

  void* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return bytes_; }

 private:
  void free() noexcept;
  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Blocking copies; harmless to captures of other threads.
Status copy_to_device(const Device& device, std::uint64_t destination, const void* source, std::size_t bytes);
Status copy_to_host(const Device& device, void* destination, std::uint64_t source, std::size_t bytes);

/// Stream-ordered copies. Pageable host memory makes the host wait; use PinnedBuffer where that matters.
Status copy_to_device_async(const Device& device, std::uint64_t destination, const void* source,
                            std::size_t bytes, void* stream);
Status copy_to_host_async(const Device& device, void* destination, std::uint64_t source, std::size_t bytes,
                          void* stream);
Status copy_on_device_async(const Device& device, std::uint64_t destination, std::uint64_t source,
                            std::size_t bytes, void* stream);
/// Sets every byte.
Status fill_async(const Device& device, std::uint64_t destination, std::uint8_t value, std::size_t bytes,
                  void* stream);

/// Zeroes `rows` rows of `row_bytes` bytes, `stride` bytes apart. A context is current; no allocation on
/// success.
Status fill_rows_async(const Driver& driver, std::uint64_t destination, std::size_t stride,
                       std::size_t row_bytes, std::size_t rows, void* stream) noexcept;

struct MemoryInfo {
  std::size_t free_bytes = 0, total_bytes = 0;
};
Result<MemoryInfo> memory_info(const Device& device);

}  // namespace varmoe::cuda
