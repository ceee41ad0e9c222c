// The driver's entry points: copies, streams, events, capture, graphs, launches.
#include <algorithm>
#include <cstring>

#include "support/fake_cuda_state.hpp"

namespace varmoe::fake_cuda {
namespace {

Stream* stream_of(CUstream handle) {
  return reinterpret_cast<Stream*>(handle);
}
CUstream handle_of(Stream* stream) {
  return reinterpret_cast<CUstream>(stream);
}
bool is_legacy(CUstream handle) {
  return handle == nullptr || handle == CU_STREAM_LEGACY;
}

/// A stream of the context that synchronises with the legacy stream and is being captured.
Stream* blocking_capture(const Context* context) {
  for (auto& [stream, unused] : state().streams) {
    if (stream->context == context && stream->blocking && stream->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE)
      return stream;
  }
  return nullptr;
}

CUresult copy(CUstream handle, std::uint64_t destination, std::uint64_t source, std::size_t bytes) {
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(handle, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  perform(capturing, [destination, source, bytes] {
    std::memmove(reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), bytes);
  });
  return CUDA_SUCCESS;
}

void execute(Launch launch) {
  for (auto& [prefix, body] : state().bodies) {
    if (launch.name.rfind(prefix, 0) == 0) body(launch);
  }
  state().launches.push_back(std::move(launch));
}

}  // namespace

CUresult unsafe_call() {
  if (thread_capture_mode() == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  bool refused = false;
  for (auto& [stream, unused] : state().streams) {
    if (stream->capture != CU_STREAM_CAPTURE_STATUS_ACTIVE) continue;
    const bool own = stream->thread == this_thread();
    const bool in_the_way = (stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                             (own || thread_capture_mode() == CU_STREAM_CAPTURE_MODE_GLOBAL)) ||
                            (stream->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && own);
    if (!in_the_way) continue;
    stream->capture = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult resolve_stream(CUstream handle, Context** context, Stream** capturing) {
  *capturing = nullptr;
  if (is_legacy(handle)) {
    *context = current();
    if (!*context || (*context)->device < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (Stream* broken = blocking_capture(*context)) {
      broken->capture = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return CUDA_SUCCESS;
  }
  Stream* stream = stream_of(handle);
  if (!state().streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
  *context = stream->context;
  if (stream->capture == CU_STREAM_CAPTURE_STATUS_INVALIDATED) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) *capturing = stream;
  return CUDA_SUCCESS;
}

CUresult wait_on(CUstream handle) {
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(handle, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  if (!capturing) return CUDA_SUCCESS;
  capturing->capture = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void perform(Stream* capturing, Operation operation) {
  if (capturing) {
    capturing->graph.operations.push_back(std::move(operation));
  } else {
    operation();
  }
}

}  // namespace varmoe::fake_cuda

using namespace varmoe::fake_cuda;

extern "C" {

CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr destination, const void* source, size_t bytes) {
  FAKE_ENTER(cuMemcpyHtoD);
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  if (!inside(destination, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(reinterpret_cast<void*>(destination), source, bytes);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemcpyDtoH(void* destination, CUdeviceptr source, size_t bytes) {
  FAKE_ENTER(cuMemcpyDtoH);
  if (const CUresult result = unsafe_call(); result != CUDA_SUCCESS) return result;
  if (!inside(source, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(destination, reinterpret_cast<const void*>(source), bytes);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr destination, const void* source, size_t bytes,
                                   CUstream stream) {
  FAKE_ENTER(cuMemcpyHtoDAsync);
  if (!inside(destination, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return copy(stream, destination, reinterpret_cast<std::uint64_t>(source), bytes);
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  FAKE_ENTER(cuMemcpyDtoHAsync);
  if (!inside(source, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return copy(stream, reinterpret_cast<std::uint64_t>(destination), source, bytes);
}

CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes,
                                   CUstream stream) {
  FAKE_ENTER(cuMemcpyDtoDAsync);
  if (!inside(source, bytes) || !inside(destination, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return copy(stream, destination, source, bytes);
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t bytes,
                                 CUstream stream) {
  FAKE_ENTER(cuMemsetD8Async);
  if (!inside(destination, bytes)) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(stream, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  perform(capturing,
          [destination, value, bytes] { std::memset(reinterpret_cast<void*>(destination), value, bytes); });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemsetD2D8Async(CUdeviceptr destination, size_t pitch, unsigned char value, size_t width,
                                   size_t height, CUstream stream) {
  FAKE_ENTER(cuMemsetD2D8Async);
  if (height == 0 || width > pitch || !inside(destination, (height - 1) * pitch + width))
    return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(stream, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  perform(capturing, [=] {
    for (size_t row = 0; row < height; ++row)
      std::memset(reinterpret_cast<void*>(destination + row * pitch), value, width);
  });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamCreate(CUstream* handle, unsigned flags) {
  FAKE_ENTER(cuStreamCreate);
  if (!current() || current()->device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  auto stream = std::make_unique<Stream>();
  stream->context = current();
  stream->blocking = (flags & CU_STREAM_NON_BLOCKING) == 0;
  Stream* key = stream.get();
  state().streams[key] = std::move(stream);
  *handle = handle_of(key);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamDestroy(CUstream handle) {
  FAKE_ENTER(cuStreamDestroy);
  return state().streams.erase(stream_of(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
  FAKE_ENTER(cuStreamSynchronize);
  return wait_on(handle);
}

CUresult CUDAAPI cuStreamQuery(CUstream handle) {
  FAKE_ENTER(cuStreamQuery);
  return wait_on(handle);
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  FAKE_ENTER(cuStreamWaitEvent);
  if (!state().events.count(reinterpret_cast<Event*>(event))) return CUDA_ERROR_INVALID_HANDLE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  return resolve_stream(handle, &context, &capturing);
}

CUresult CUDAAPI cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  FAKE_ENTER(cuStreamIsCapturing);
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  if (is_legacy(handle)) {
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    return blocking_capture(current()) ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
  }
  if (!state().streams.count(stream_of(handle))) return CUDA_ERROR_INVALID_HANDLE;
  *status = stream_of(handle)->capture;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  FAKE_ENTER(cuStreamBeginCapture);
  if (is_legacy(handle)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Stream* stream = stream_of(handle);
  if (!state().streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture != CU_STREAM_CAPTURE_STATUS_NONE) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = CU_STREAM_CAPTURE_STATUS_ACTIVE;
  stream->mode = mode;
  stream->thread = this_thread();
  stream->graph = {};
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamEndCapture(CUstream handle, CUgraph* graph_handle) {
  FAKE_ENTER(cuStreamEndCapture);
  *graph_handle = nullptr;
  Stream* stream = stream_of(handle);
  if (is_legacy(handle) || !state().streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->thread != this_thread()) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  const bool sound = stream->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE;
  stream->capture = CU_STREAM_CAPTURE_STATUS_NONE;
  if (!sound) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  auto graph = std::make_unique<Graph>(std::move(stream->graph));
  Graph* key = graph.get();
  state().graphs[key] = std::move(graph);
  *graph_handle = reinterpret_cast<CUgraph>(key);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  FAKE_ENTER(cuThreadExchangeStreamCaptureMode);
  std::swap(thread_capture_mode(), *mode);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphDestroy(CUgraph handle) {
  FAKE_ENTER(cuGraphDestroy);
  return state().graphs.erase(reinterpret_cast<Graph*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  FAKE_ENTER(cuGraphGetNodes);
  if (nodes || !state().graphs.count(reinterpret_cast<Graph*>(handle))) return CUDA_ERROR_INVALID_VALUE;
  *count = reinterpret_cast<Graph*>(handle)->operations.size();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle, unsigned long long) {
  FAKE_ENTER(cuGraphInstantiateWithFlags);
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (!state().graphs.count(graph)) return CUDA_ERROR_INVALID_VALUE;
  auto copy = std::make_unique<Graph>(*graph);
  Graph* key = copy.get();
  state().execs[key] = std::move(copy);
  *exec = reinterpret_cast<CUgraphExec>(key);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec handle) {
  FAKE_ENTER(cuGraphExecDestroy);
  return state().execs.erase(reinterpret_cast<Graph*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  FAKE_ENTER(cuGraphLaunch);
  auto* exec = reinterpret_cast<Graph*>(handle);
  if (!state().execs.count(exec)) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(stream_handle, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  for (const Operation& operation : exec->operations) perform(capturing, operation);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventCreate(CUevent* handle, unsigned flags) {
  FAKE_ENTER(cuEventCreate);
  if (!current() || current()->device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  auto event = std::make_unique<Event>();
  event->context = current();
  event->timing = (flags & CU_EVENT_DISABLE_TIMING) == 0;
  Event* key = event.get();
  state().events[key] = std::move(event);
  *handle = reinterpret_cast<CUevent>(key);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventDestroy(CUevent handle) {
  FAKE_ENTER(cuEventDestroy);
  return state().events.erase(reinterpret_cast<Event*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuEventRecord(CUevent handle, CUstream stream_handle) {
  FAKE_ENTER(cuEventRecord);
  auto* event = reinterpret_cast<Event*>(handle);
  if (!state().events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(stream_handle, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  if (context != event->context) return CUDA_ERROR_INVALID_HANDLE;
  perform(capturing, [event] {
    event->recorded = true;
    event->ticks = ++state().ticks;
  });
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
  FAKE_ENTER(cuEventSynchronize);
  return state().events.count(reinterpret_cast<Event*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuEventQuery(CUevent handle) {
  FAKE_ENTER(cuEventQuery);
  return state().events.count(reinterpret_cast<Event*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/// One millisecond lies between any two records.
CUresult CUDAAPI cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  FAKE_ENTER(cuEventElapsedTime);
  const auto* start = reinterpret_cast<const Event*>(start_handle);
  const auto* end = reinterpret_cast<const Event*>(end_handle);
  if (!start->recorded || !end->recorded || !start->timing || !end->timing) return CUDA_ERROR_INVALID_HANDLE;
  *milliseconds = static_cast<float>(end->ticks) - static_cast<float>(start->ticks);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** parameters,
                                  void** extra) {
  FAKE_ENTER(cuLaunchKernelEx);
  const auto* function = reinterpret_cast<const Function*>(handle);
  if (!function || extra) return CUDA_ERROR_INVALID_HANDLE;
  Context* context = nullptr;
  Stream* capturing = nullptr;
  if (const CUresult result = resolve_stream(config->hStream, &context, &capturing); result != CUDA_SUCCESS)
    return result;
  if (context != function->context) return CUDA_ERROR_INVALID_HANDLE;
  // With lazy loading the real driver would load here: inside a capture, and at a cost, elsewhere.
  if (!function->resident) return CUDA_ERROR_ILLEGAL_STATE;
  Launch launch;
  launch.name = function->kernel->entry;
  launch.device = context->device;
  launch.stream = config->hStream;
  launch.dynamic_smem = config->sharedMemBytes;
  const unsigned grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[3] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  std::copy(grid, grid + 3, launch.grid);
  std::copy(block, block + 3, launch.block);
  for (const unsigned n : grid) {
    if (n == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  const std::uint64_t threads = std::uint64_t{block[0]} * block[1] * block[2];
  if (grid[1] > 65535 || grid[2] > 65535 || threads == 0) return CUDA_ERROR_INVALID_VALUE;
  if (threads > function->kernel->max_threads) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  if (config->sharedMemBytes > static_cast<unsigned>(function->max_dynamic_smem))
    return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      launch.programmatic = attribute.value.programmaticStreamSerializationAllowed != 0;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      launch.cluster = attribute.value.clusterDim.x;
      if (launch.cluster == 0 || grid[0] % launch.cluster != 0) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    } else {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  for (std::size_t i = 0; i < function->kernel->parameter_bytes.size(); ++i) {
    if (!parameters || !parameters[i]) return CUDA_ERROR_INVALID_VALUE;
    const auto* bytes = static_cast<const std::byte*>(parameters[i]);
    launch.arguments.emplace_back(bytes, bytes + function->kernel->parameter_bytes[i]);
  }
  launch.from_graph = capturing != nullptr;
  perform(capturing, [launch] { execute(launch); });
  return CUDA_SUCCESS;
}

}  // extern "C"
