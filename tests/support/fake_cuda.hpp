#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

/// A CUDA driver that is none: a shared library with the driver's entry points, to be loaded with
/// cuda::Driver::load(VARMOE_FAKE_CUDA) and steered through these functions (link varmoe_fake_cuda). Device
/// memory is host memory; streams run at once; kernels run only where a test supplies them. It is stricter
/// than the real thing where that finds mistakes: contexts, capture rules, launch limits and address ranges
/// are checked. Thread-safe.
namespace varmoe::fake_cuda {

struct FakeDevice {
  std::string name = "Fake H200";
  int compute_major = 9, compute_minor = 0;
  int sm_count = 132;
  int smem_per_block = 232448;
  int smem_per_sm = 233472;
  int regs_per_sm = 65536;
  int threads_per_sm = 2048;
  int l2_bytes = 60 << 20;
  std::size_t memory_bytes = std::size_t{1} << 32;
};

/// A kernel launch, as recorded when it was enqueued, or when a graph that holds it was launched.
struct Launch {
  std::string name;  ///< entry name
  int device = 0;
  unsigned grid[3] = {}, block[3] = {};
  unsigned dynamic_smem = 0;
  void* stream = nullptr;
  bool programmatic = false;  ///< programmatic dependent launch
  unsigned cluster = 1;
  bool from_graph = false;
  /// Copies of the arguments, as far as the image tells their sizes.
  std::vector<std::vector<std::byte>> arguments;
};

/// A tensor map, as it was asked of the driver: cuTensorMapEncodeTiled's arguments, enumerators as numbers.
struct TensorMap {
  int data_type = 0;
  std::uint64_t base = 0;
  std::vector<std::uint64_t> size;            ///< elements of each dimension; as many as the rank
  std::vector<std::uint64_t> stride;          ///< bytes; one fewer
  std::vector<std::uint32_t> box;             ///< elements
  std::vector<std::uint32_t> element_stride;
  int interleave = 0, swizzle = 0, promotion = 0, fill = 0;
};

/// Back to the start: one device, CUDA 13.0, no failures, hooks or records, nothing hidden, and nothing
/// alive: what a test before has leaked or still holds is gone, and freeing it later does nothing.
void reset();
void set_devices(std::vector<FakeDevice> devices);  ///< empty: cuInit answers CUDA_ERROR_NO_DEVICE
void set_version(int cuda_version);

/// Call number skip + 1 of `function` ("cuMemAlloc") and the times − 1 after it return `result`, counted from
/// now; times < 0: all of them.
void fail(const std::string& function, int result, int skip = 0, int times = 1);
/// The next but `skip` call of any function fails; for injecting at call 1, 2, 3, …
void fail_any(int result, int skip);
/// True when the failure asked of fail_any has happened.
bool failed_any();
/// cuGetProcAddress does not find it.
void hide(const std::string& function);
/// From now on every call returns CUDA_ERROR_DEINITIALIZED, as after the driver's exit.
void shut_down();

/// Calls so far; of one function, or of all.
std::size_t calls(const std::string& function);
std::size_t total_calls();
/// Names of all functions called since the last clear_calls, in order.
std::vector<std::string> call_log();
void clear_calls();

std::vector<Launch> launches();
void clear_launches();
/// Runs in place of kernels whose entry name begins with `prefix`, when they execute (not when captured).
void on_launch(const std::string& prefix, std::function<void(const Launch&)> body);

/// Every tensor map encoded so far, in order.
std::vector<TensorMap> tensor_maps();
/// What the 128 bytes at `map` were encoded from; nothing when this driver did not encode them.
std::optional<TensorMap> read_tensor_map(const void* map);

/// Alive at this moment.
std::size_t live_allocations();
std::size_t live_bytes();  ///< device memory
std::size_t live_libraries();
std::size_t live_streams();
std::size_t live_events();
std::size_t live_graphs();  ///< graphs and executable graphs
std::size_t context_retains(int device);
/// CUcontext that is current on this thread, and how deep its stack is.
void* current_context();
std::size_t context_depth();
/// Makes a context of no device current on this thread, as if another library had; pop_foreign_context ends
/// it.
void* push_foreign_context();
void pop_foreign_context();
/// True while this thread is inside an entry point of the fake: lets a test that counts allocations leave the
/// fake's own out.
bool inside() noexcept;
/// Bytes of host memory behind a device address, or null when [address, address + bytes) is not wholly inside
/// one allocation.
void* host_pointer(std::uint64_t address, std::size_t bytes);

}  // namespace varmoe::fake_cuda
