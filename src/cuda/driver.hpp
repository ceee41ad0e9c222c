#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "varmoe/error.hpp"

/// The CUDA driver API, loaded with dlopen and never linked: a machine without a driver starts every program.
/// CUDA types appear in this room's headers as void* (handles), std::uint64_t (device addresses) and int
/// (ordinals, result codes).
namespace varmoe::cuda {

struct DriverTable;  // the driver's functions; driver_table.hpp, private to the room

/// "13.0" for 13000.
std::string version_text(int cuda_version);

/// The loaded driver. Immutable after load; thread-safe. The library is never unloaded, since the driver owns
/// threads.
///
/// After fork the child must not use CUDA that its parent initialised: every call of this room then returns
/// `device_error` saying so, and destructors leave the parent's objects alone. A call after the driver has
/// shut down (teardown from a static destructor) does the same quietly.
class Driver {
 public:
  /// Oldest driver that has what varmoe needs (context-independent loading).
  static constexpr int kMinVersion = 12000;

  /// Loads and initialises the driver. no_device: no driver library, or it sees no GPU; driver_too_old: older
  /// than kMinVersion, with both versions; device_error: it is there but does not start. `path` is for tests.
  static Result<std::shared_ptr<Driver>> load(const std::string& path = "libcuda.so.1");
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  /// The CUDA version the driver supports, e.g. 13000.
  int version() const noexcept { return version_; }
  /// GPUs that this process sees; ≥ 1 after a successful load.
  int device_count() const noexcept { return device_count_; }

  /// False in a child forked after load.
  bool usable() const noexcept;
  /// The error that a call in such a child returns.
  Error unusable_error(const char* call) const;

  /// ok for 0, else an Error with the call, the driver's name of the code and its sentence. The code maps to
  /// no_device, driver_too_old, out_of_memory or device_error.
  Status check(int result, const char* call) const noexcept {
    if (result == 0) [[likely]]
      return {};
    return failure(result, call);
  }
  Error failure(int result, const char* call) const;

  const DriverTable& table() const noexcept { return *table_; }

 private:
  Driver();
  std::unique_ptr<DriverTable> table_;
  int version_ = 0;
  int device_count_ = 0;
  unsigned fork_generation_ = 0;
};

}  // namespace varmoe::cuda
