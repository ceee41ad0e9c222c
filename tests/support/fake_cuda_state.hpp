#pragma once

// Private to the fake driver.
#include <cuda.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "support/fake_cubin.hpp"
#include "support/fake_cuda.hpp"

namespace varmoe::fake_cuda {

struct Context {
  int device = -1;
  std::size_t retains = 0;
};

/// One captured operation.
using Operation = std::function<void()>;

struct Graph {
  std::vector<Operation> operations;
};

struct Stream {
  Context* context = nullptr;
  bool blocking = false;
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  unsigned long long thread = 0;
  Graph graph;
};

struct Event {
  Context* context = nullptr;
  bool timing = true;
  bool recorded = false;
  std::uint64_t ticks = 0;
};

struct Library;
struct Function {
  const test::FakeKernel* kernel = nullptr;
  Library* library = nullptr;
  Context* context = nullptr;
  bool resident = false;
  int max_dynamic_smem = 48 * 1024;
};
struct Library {
  test::ImageInfo image;
  std::vector<std::byte> bytes;
  std::map<std::pair<const test::FakeKernel*, Context*>, std::unique_ptr<Function>> functions;
};

struct Allocation {
  std::unique_ptr<std::byte[]> storage;
  std::size_t bytes = 0;
  Context* context = nullptr;  ///< null: pinned host memory
};

struct Failure {
  int result = 0;
  int skip = 0;
  int times = 0;
};

struct State {
  std::recursive_mutex mutex;  ///< recursive: kernel bodies call the control functions
  std::vector<FakeDevice> devices{FakeDevice{}};
  std::vector<std::unique_ptr<Context>>
      contexts;  ///< never destroyed: a released primary context keeps its handle here
  int version = 13000;
  bool initialised = false;
  bool down = false;
  std::map<std::string, Failure> failures;
  Failure any;
  bool any_happened = false;
  std::set<std::string> hidden;
  std::vector<std::string> log;
  std::vector<Launch> launches;
  std::vector<TensorMap> tensor_maps;
  std::vector<std::pair<std::string, std::function<void(const Launch&)>>> bodies;
  std::map<std::uint64_t, Allocation> allocations;
  std::map<Library*, std::unique_ptr<Library>> libraries;
  std::map<Stream*, std::unique_ptr<Stream>> streams;
  std::map<Event*, std::unique_ptr<Event>> events;
  std::map<Graph*, std::unique_ptr<Graph>> graphs;
  std::map<Graph*, std::unique_ptr<Graph>> execs;
  std::uint64_t ticks = 0;
};

State& state();
/// The context stack and capture mode of this thread.
std::vector<Context*>& context_stack();
CUstreamCaptureMode& thread_capture_mode();
inline Context* current() {
  return context_stack().empty() ? nullptr : context_stack().back();
}
Context* primary_context(int device);
unsigned long long this_thread();

/// What every entry point does first (FAKE_ENTER): count, then the failure that was asked for, if any.
CUresult enter(const char* function);

/// May a potentially unsafe call (allocation, loading, blocking copy) be made by this thread now? If not, the
/// captures in its way are invalidated, as the real driver does.
CUresult unsafe_call();
/// May work be put on this stream (null: legacy)? On success `capturing` is the stream when it is being
/// captured.
CUresult resolve_stream(CUstream handle, Context** context, Stream** capturing);
/// Blocking on a stream that is being captured breaks the capture.
CUresult wait_on(CUstream handle);
/// [address, address + bytes) lies in one allocation.
bool inside(std::uint64_t address, std::size_t bytes);
/// Runs now, or records when `capturing`.
void perform(Stream* capturing, Operation operation);

}  // namespace varmoe::fake_cuda

namespace varmoe::fake_cuda {
/// Holds the lock, and marks this thread as inside the fake.
class Entry {
 public:
  Entry();
  ~Entry();
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};
}  // namespace varmoe::fake_cuda

#define FAKE_ENTER(name)                                                                           \
  const ::varmoe::fake_cuda::Entry fake_entry;                                                     \
  if (const CUresult fake_result = ::varmoe::fake_cuda::enter(#name); fake_result != CUDA_SUCCESS) \
  return fake_result
