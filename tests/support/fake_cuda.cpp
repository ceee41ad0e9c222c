#include "support/fake_cuda.hpp"

#include <atomic>
#include <utility>

#include "support/fake_cuda_state.hpp"

namespace varmoe::fake_cuda {
namespace {
thread_local int entry_depth = 0;
thread_local Context foreign_context;
}  // namespace

State& state() {
  static State* const the_state =
      new State;  // never destroyed: destructors of the library under test may come later
  return *the_state;
}

std::vector<Context*>& context_stack() {
  thread_local std::vector<Context*> stack;
  return stack;
}

CUstreamCaptureMode& thread_capture_mode() {
  thread_local CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  return mode;
}

unsigned long long this_thread() {
  static std::atomic<unsigned long long> next{1};
  thread_local const unsigned long long id = next.fetch_add(1);
  return id;
}

Entry::Entry() {
  ++entry_depth;
  lock_ = std::unique_lock(state().mutex);
}
Entry::~Entry() {
  --entry_depth;
}

bool inside() noexcept {
  return entry_depth > 0;
}

Context* primary_context(int device) {
  for (auto& context : state().contexts) {
    if (context->device == device) return context.get();
  }
  state().contexts.push_back(std::make_unique<Context>(Context{device, 0}));
  return state().contexts.back().get();
}

CUresult enter(const char* function) {
  State& s = state();
  s.log.emplace_back(function);
  if (s.down) return CUDA_ERROR_DEINITIALIZED;
  if (s.any.times > 0) {
    if (s.any.skip > 0) {
      --s.any.skip;
    } else {
      s.any.times = 0;
      s.any_happened = true;
      return static_cast<CUresult>(s.any.result);
    }
  }
  const auto found = s.failures.find(function);
  if (found == s.failures.end()) return CUDA_SUCCESS;
  Failure& failure = found->second;
  if (failure.skip > 0) {
    --failure.skip;
    return CUDA_SUCCESS;
  }
  if (failure.times == 0) return CUDA_SUCCESS;
  if (failure.times > 0) --failure.times;
  return static_cast<CUresult>(failure.result);
}

void reset() {
  const Entry entry;
  State& s = state();
  s.devices = {FakeDevice{}};
  s.version = 13000;
  s.down = false;
  s.failures.clear();
  s.any = {};
  s.any_happened = false;
  s.hidden.clear();
  s.log.clear();
  s.launches.clear();
  s.tensor_maps.clear();
  s.bodies.clear();
  s.execs.clear();
  s.graphs.clear();
  s.events.clear();
  s.streams.clear();
  s.libraries.clear();
  s.allocations.clear();
  for (auto& context : s.contexts) context->retains = 0;
}

void set_devices(std::vector<FakeDevice> devices) {
  const Entry entry;
  state().devices = std::move(devices);
}
void set_version(int cuda_version) {
  const Entry entry;
  state().version = cuda_version;
}
void fail(const std::string& function, int result, int skip, int times) {
  const Entry entry;
  state().failures[function] = {result, skip, times};
}
void fail_any(int result, int skip) {
  const Entry entry;
  state().any = {result, skip, 1};
  state().any_happened = false;
}
bool failed_any() {
  const Entry entry;
  return state().any_happened;
}
void hide(const std::string& function) {
  const Entry entry;
  state().hidden.insert(function);
}
void shut_down() {
  const Entry entry;
  state().down = true;
}

std::size_t calls(const std::string& function) {
  const Entry entry;
  std::size_t n = 0;
  for (const std::string& name : state().log) n += name == function ? 1 : 0;
  return n;
}
std::size_t total_calls() {
  const Entry entry;
  return state().log.size();
}
std::vector<std::string> call_log() {
  const Entry entry;
  return state().log;
}
void clear_calls() {
  const Entry entry;
  state().log.clear();
}
std::vector<Launch> launches() {
  const Entry entry;
  return state().launches;
}
void clear_launches() {
  const Entry entry;
  state().launches.clear();
}
void on_launch(const std::string& prefix, std::function<void(const Launch&)> body) {
  const Entry entry;
  state().bodies.emplace_back(prefix, std::move(body));
}

std::size_t live_allocations() {
  const Entry entry;
  return state().allocations.size();
}
std::size_t live_bytes() {
  const Entry entry;
  std::size_t bytes = 0;
  for (const auto& [unused, allocation] : state().allocations)
    bytes += allocation.context ? allocation.bytes : 0;
  return bytes;
}
std::size_t live_libraries() {
  const Entry entry;
  return state().libraries.size();
}
std::size_t live_streams() {
  const Entry entry;
  return state().streams.size();
}
std::size_t live_events() {
  const Entry entry;
  return state().events.size();
}
std::size_t live_graphs() {
  const Entry entry;
  return state().graphs.size() + state().execs.size();
}
std::size_t context_retains(int device) {
  const Entry entry;
  return primary_context(device)->retains;
}
void* current_context() {
  return current();
}
std::size_t context_depth() {
  return context_stack().size();
}
void* push_foreign_context() {
  context_stack().push_back(&foreign_context);
  return &foreign_context;
}
void pop_foreign_context() {
  context_stack().pop_back();
}

bool inside(std::uint64_t address, std::size_t bytes) {
  const auto& all = state().allocations;
  auto after = all.upper_bound(address);
  if (after == all.begin()) return false;
  --after;
  const std::uint64_t offset = address - after->first;
  return offset <= after->second.bytes && bytes <= after->second.bytes - offset;
}

void* host_pointer(std::uint64_t address, std::size_t bytes) {
  const Entry entry;
  return inside(address, bytes) ? reinterpret_cast<void*>(address) : nullptr;
}

}  // namespace varmoe::fake_cuda
