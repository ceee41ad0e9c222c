#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "varmoe/error.hpp"

/// CUDA graphs, for the benchmark and the tests; the library itself only has to be capturable.
namespace varmoe::cuda {

enum class CaptureMode : std::uint8_t { global, thread_local_, relaxed };

/// Begins capturing a stream (not the legacy default stream).
Status begin_capture(const Device& device, void* stream, CaptureMode mode = CaptureMode::thread_local_);

/// A kernel node of a graph.
struct GraphKernel {
  std::string name;      ///< of the kernel's entry
  void* node = nullptr;  ///< CUgraphNode
};

class Graph {
 public:
  /// Ends the capture of a stream. Fails when the capture was invalidated; it is over either way.
  static Result<Graph> end_capture(std::shared_ptr<Device> device, void* stream);
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  ~Graph();
  void* handle() const noexcept { return handle_; }
  Result<std::size_t> node_count() const;
  /// The kernels in it, in order of their capture. unsupported before CUDA 12.3.
  Result<std::vector<GraphKernel>> kernels() const;

 private:
  friend class GraphExec;
  Graph() = default;
  void destroy() noexcept;
  std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
};

/// A graph that can be launched. Kernels captured into it must stay loaded.
class GraphExec {
 public:
  static Result<GraphExec> instantiate(const Graph& graph);
  GraphExec(GraphExec&&) noexcept;
  GraphExec& operator=(GraphExec&&) noexcept;
  ~GraphExec();
  Status launch(void* stream) const;
  /// A kernel node of the graph that this was made of does its work in later launches, or is passed over.
  Status enable(const GraphKernel& kernel, bool enabled) const;

 private:
  GraphExec() = default;
  void destroy() noexcept;
  std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
};

/// Lets this thread allocate and load while another thread captures in global mode, without breaking that
/// capture.
class RelaxedCaptureScope {
 public:
  explicit RelaxedCaptureScope(const Driver& driver) noexcept;
  ~RelaxedCaptureScope();
  RelaxedCaptureScope(const RelaxedCaptureScope&) = delete;
  RelaxedCaptureScope& operator=(const RelaxedCaptureScope&) = delete;

 private:
  const Driver* driver_;
  int previous_ = 0;
  bool exchanged_ = false;
};

}  // namespace varmoe::cuda
