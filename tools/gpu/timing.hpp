#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/event.hpp"
#include "cuda/graph.hpp"
#include "varmoe/error.hpp"

/// Times of work on a stream, by events.
namespace varmoe::tools {

/// Microseconds: median and spread ((p90 − p10) / median) of samples; and the range of all of them.
struct Timing {
  double median_us = 0, spread = 0, best_us = 0, worst_us = 0;
  static Timing of(std::vector<double> samples_us);
  /// (slowest − fastest) / median.
  double range() const { return median_us > 0 ? (worst_us - best_us) / median_us : 0; }
};

/// Microseconds on the stream between the begin and the end of what `enqueue` (a callable that returns
/// Status) enqueues; waits for it.
template <class F>
Result<double> timed_us(const std::shared_ptr<cuda::Device>& device, void* stream, F&& enqueue) {
  auto start = cuda::Event::create(device, true);
  if (!start) return start.error();
  auto end = cuda::Event::create(device, true);
  if (!end) return end.error();
  if (auto status = start->record(stream); !status) return status.error();
  if (Status status = enqueue(); !status) return status.error();
  if (auto status = end->record(stream); !status) return status.error();
  if (auto status = end->synchronize(); !status) return status.error();
  auto ms = cuda::elapsed_ms(*device, *start, *end);
  if (!ms) return ms.error();
  return static_cast<double>(*ms) * 1000;
}

/// Microseconds of each of `count` replays that follow one another without a pause, after one more that
/// warms up: the device never waits for the host, however busy that is.
Result<std::vector<double>> replay_times_us(const std::shared_ptr<cuda::Device>& device, void* stream,
                                            const cuda::GraphExec& graph, int count);

/// Captures what `enqueue` enqueues.
template <class F>
Result<cuda::Graph> capture_graph(const std::shared_ptr<cuda::Device>& device, void* stream, F&& enqueue) {
  if (auto status = cuda::begin_capture(*device, stream); !status) return status.error();
  const Status enqueued = enqueue();
  auto graph = cuda::Graph::end_capture(device, stream);
  if (!enqueued) return enqueued.error();
  return graph;
}

/// The steps of a layer's forward, in the order in which they run.
const std::vector<std::string>& forward_steps();
/// The steps that a backward pass has beside sort, gather, fc1 (dout·W2), fc2 (dz·W1) and combine.
const std::vector<std::string>& backward_steps();
/// "varmoe_sort_single_t1024_…" → "sort_single"; another kernel's name as it is.
std::string step_of(const std::string& kernel);

/// Lets the kernels of the named steps alone do their work in later launches of `graph`.
Status enable_steps(const cuda::GraphExec& graph, const std::vector<cuda::GraphKernel>& kernels,
                    const std::vector<std::string>& steps);

}  // namespace varmoe::tools
