#include "cuda/graph.hpp"

#include <utility>

#include "cuda/driver_table.hpp"

namespace varmoe::cuda {

Status begin_capture(const Device& device, void* stream, CaptureMode mode) {
  CUstreamCaptureMode native = CU_STREAM_CAPTURE_MODE_GLOBAL;
  if (mode == CaptureMode::thread_local_) native = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
  if (mode == CaptureMode::relaxed) native = CU_STREAM_CAPTURE_MODE_RELAXED;
  const ContextScope scope(device);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device.driver(), cuStreamBeginCapture, static_cast<CUstream>(stream), native);
}

Result<Graph> Graph::end_capture(std::shared_ptr<Device> device, void* stream) {
  CUgraph handle = nullptr;
  const ContextScope scope(*device);
  if (!scope.ok()) return scope.status().error();
  const Status status =
      VARMOE_CUDA_CALL(device->driver(), cuStreamEndCapture, static_cast<CUstream>(stream), &handle);
  Graph graph;
  graph.device_ = std::move(device);
  graph.handle_ = handle;
  if (!status) return status.error();
  return graph;
}

Graph::Graph(Graph&& other) noexcept {
  *this = std::move(other);
}
Graph& Graph::operator=(Graph&& other) noexcept {
  if (this != &other) {
    destroy();
    device_ = std::move(other.device_);
    handle_ = std::exchange(other.handle_, nullptr);
  }
  return *this;
}
Graph::~Graph() {
  destroy();
}

void Graph::destroy() noexcept {
  if (handle_)
    quiet_call(device_->driver(), device_->driver().table().cuGraphDestroy, static_cast<CUgraph>(handle_));
  handle_ = nullptr;
  device_.reset();
}

Result<std::size_t> Graph::node_count() const {
  std::size_t count = 0;
  CUgraphNode* const no_nodes = nullptr;
  if (auto status = VARMOE_CUDA_CALL(device_->driver(), cuGraphGetNodes, static_cast<CUgraph>(handle_),
                                     no_nodes, &count);
      !status) {
    return status.error();
  }
  return count;
}

Result<std::vector<GraphKernel>> Graph::kernels() const {
  const DriverTable& table = device_->driver().table();
  if (table.cuGraphNodeGetType == nullptr || table.cuGraphKernelNodeGetParams == nullptr ||
      table.cuFuncGetName == nullptr || table.cuKernelGetName == nullptr) {
    return Error(ErrorCode::unsupported, "looking into a graph needs a driver of CUDA 12.3 or newer");
  }
  auto count = node_count();
  if (!count) return count.error();
  std::vector<CUgraphNode> nodes(*count);
  if (auto status = VARMOE_CUDA_CALL(device_->driver(), cuGraphGetNodes, static_cast<CUgraph>(handle_),
                                     nodes.data(), &*count);
      !status) {
    return status.error();
  }
  std::vector<GraphKernel> kernels;
  for (const CUgraphNode node : nodes) {
    CUgraphNodeType type{};
    if (auto status = VARMOE_CUDA_CALL(device_->driver(), cuGraphNodeGetType, node, &type); !status) {
      return status.error();
    }
    if (type != CU_GRAPH_NODE_TYPE_KERNEL) continue;
    CUDA_KERNEL_NODE_PARAMS parameters{};
    if (auto status = VARMOE_CUDA_CALL(device_->driver(), cuGraphKernelNodeGetParams, node, &parameters);
        !status) {
      return status.error();
    }
    const char* name = nullptr;
    const Status named = parameters.func != nullptr
                             ? VARMOE_CUDA_CALL(device_->driver(), cuFuncGetName, &name, parameters.func)
                             : VARMOE_CUDA_CALL(device_->driver(), cuKernelGetName, &name, parameters.kern);
    if (!named) return named.error();
    kernels.push_back({name, node});
  }
  return kernels;
}

Result<GraphExec> GraphExec::instantiate(const Graph& graph) {
  const ContextScope scope(*graph.device_);
  if (!scope.ok()) return scope.status().error();
  CUgraphExec handle = nullptr;
  if (auto status = VARMOE_CUDA_CALL(graph.device_->driver(), cuGraphInstantiateWithFlags, &handle,
                                     static_cast<CUgraph>(graph.handle_), 0ULL);
      !status) {
    return status.error();
  }
  GraphExec exec;
  exec.device_ = graph.device_;
  exec.handle_ = handle;
  return exec;
}

GraphExec::GraphExec(GraphExec&& other) noexcept {
  *this = std::move(other);
}
GraphExec& GraphExec::operator=(GraphExec&& other) noexcept {
  if (this != &other) {
    destroy();
    device_ = std::move(other.device_);
    handle_ = std::exchange(other.handle_, nullptr);
  }
  return *this;
}
GraphExec::~GraphExec() {
  destroy();
}

void GraphExec::destroy() noexcept {
  if (handle_) {
    quiet_call(device_->driver(), device_->driver().table().cuGraphExecDestroy,
               static_cast<CUgraphExec>(handle_));
  }
  handle_ = nullptr;
  device_.reset();
}

Status GraphExec::launch(void* stream) const {
  const ContextScope scope(*device_);
  if (!scope.ok()) return scope.status();
  return VARMOE_CUDA_CALL(device_->driver(), cuGraphLaunch, static_cast<CUgraphExec>(handle_),
                          static_cast<CUstream>(stream));
}

Status GraphExec::enable(const GraphKernel& kernel, bool enabled) const {
  if (device_->driver().table().cuGraphNodeSetEnabled == nullptr) {
    return Error(ErrorCode::unsupported,
                 "passing over a graph's kernels needs a driver of CUDA 12.3 or newer");
  }
  return VARMOE_CUDA_CALL(device_->driver(), cuGraphNodeSetEnabled, static_cast<CUgraphExec>(handle_),
                          static_cast<CUgraphNode>(kernel.node), enabled ? 1U : 0U);
}

RelaxedCaptureScope::RelaxedCaptureScope(const Driver& driver) noexcept : driver_(&driver) {
  if (!driver.usable()) return;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  exchanged_ = driver.table().cuThreadExchangeStreamCaptureMode(&mode) == CUDA_SUCCESS;
  previous_ = static_cast<int>(mode);
}

RelaxedCaptureScope::~RelaxedCaptureScope() {
  if (!exchanged_) return;
  auto mode = static_cast<CUstreamCaptureMode>(previous_);
  quiet_call(*driver_, driver_->table().cuThreadExchangeStreamCaptureMode, &mode);
}

}  // namespace varmoe::cuda
