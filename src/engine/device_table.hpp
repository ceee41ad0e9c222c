#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "engine/engine_impl.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// A table that a bind writes to the device: the first time to memory that stays as long as the engine, then
/// in place, so that graphs captured before follow the new binding.
class DeviceTable {
 public:
  /// 0: not bound.
  std::uint64_t address() const noexcept { return address_.load(std::memory_order_acquire); }

  /// Not by two threads at a time.
  Status write(Engine::Impl& engine, const std::vector<std::byte>& table) {
    if (const std::uint64_t there = address_.load(std::memory_order_relaxed); there != 0) {
      if (table.size() != bytes_) return Error(ErrorCode::internal, "a device table changed its size");
      return cuda::copy_to_device(*engine.device, there, table.data(), table.size());
    }
    auto kept = engine.keep_on_device(table.data(), table.size());
    if (!kept) return std::move(kept).error();
    bytes_ = table.size();
    address_.store(*kept, std::memory_order_release);
    return {};
  }
  /// Of a CPU engine, whose layers have no table: bound.
  void mark_bound() noexcept { address_.store(1, std::memory_order_release); }

 private:
  std::atomic<std::uint64_t> address_{0};
  std::size_t bytes_ = 0;
};

}  // namespace varmoe::engine
