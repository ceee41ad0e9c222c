// A pruned MoE layer (experts of three different widths) through the C++ API: create, prepare, bind, forward.
// With a GPU it runs there once directly and once from a captured CUDA graph, and the result is compared with
// that of the CPU backend.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_dl.h"
#include "varmoe/varmoe.hpp"

namespace {

// bf16 is the upper half of a float.
std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bf16(std::uint16_t value) {
  return std::bit_cast<float>(std::uint32_t{value} << 16);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using HostMemory = std::unique_ptr<void, Free>;
HostMemory host_memory(std::size_t bytes) {
  return HostMemory(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
}

void check(CUresult result, const char* call) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string(call) + " failed: " + std::to_string(result));
}

// A layer, its inputs and what it should give, in host memory.
struct Problem {
  varmoe::LayerSpec spec;
  std::int64_t tokens = 48;
  std::vector<std::uint16_t> fc1, fc2, x;
  std::vector<std::int32_t> topk_ids;
  std::vector<float> topk_weights;

  Problem() {
    spec.hidden_size = 256;
    spec.expert_widths = {128, 64, 192, 128, 64, 192, 128, 64};
    spec.top_k = 2;
    spec.activation = varmoe::Activation::silu_mul;
    std::uint32_t seed = 1;
    const auto draw = [&seed] {  // in (−1, 1)
      seed = seed * 1664525u + 1013904223u;
      return static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
    };
    const auto fill = [&](std::vector<std::uint16_t>& v, std::int64_t count, float scale) {
      v.resize(static_cast<std::size_t>(count));
      for (auto& element : v) element = to_bf16(draw() * scale);
    };
    // Storage "blocks": expert after expert, fc1 [2·I_e, H] with the gate's rows first, fc2 [H, I_e].
    fill(fc1, 2 * spec.total_width() * spec.hidden_size, 0.1f);
    fill(fc2, spec.hidden_size * spec.total_width(), 0.1f);
    fill(x, tokens * spec.hidden_size, 1.0f);
    for (std::int64_t i = 0; i < tokens * spec.top_k; ++i) {
      topk_ids.push_back(static_cast<std::int32_t>((i * 5 + i / 7) % spec.num_experts()));
      topk_weights.push_back(i % 2 == 0 ? 0.7f : 0.3f);
    }
  }
};

std::vector<std::uint16_t> run_on_cpu(const Problem& p) {
  varmoe::EngineOptions options;
  options.device = varmoe::kCpuDevice;
  varmoe::Engine engine = varmoe::Engine::create(options).value();
  varmoe::Layer layer = engine.create_layer(p.spec).value();
  layer.bind(varmoe::Weights::blocks(p.spec, p.fc1.data(), p.fc2.data()).value()).value();
  const std::size_t bytes = layer.workspace_bytes(p.tokens).value();
  const HostMemory workspace = host_memory(bytes), out = host_memory(p.x.size() * 2);
  varmoe::ForwardArgs args;
  args.tokens = p.tokens;
  args.x = p.x.data();
  args.topk_ids = p.topk_ids.data();
  args.topk_weights = p.topk_weights.data();
  args.out = out.get();
  args.workspace = workspace.get();
  args.workspace_bytes = bytes;
  layer.forward(args).value();
  const auto* result = static_cast<const std::uint16_t*>(out.get());
  return {result, result + p.x.size()};
}

double difference(const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = from_bf16(a[i]) - from_bf16(b[i]);
    error += difference * difference;
    size += static_cast<double>(from_bf16(b[i])) * from_bf16(b[i]);
  }
  return std::sqrt(error / size);
}

// Twice: a direct forward, and one from a graph. Both must agree with the CPU.
void run_on_gpu(varmoe::Engine& engine, const cuda_dl& cuda, const Problem& p,
                const std::vector<std::uint16_t>& expected) {
  varmoe::Layer layer = engine.create_layer(p.spec).value();
  varmoe::PrepareOptions prepare;
  prepare.tokens = {p.tokens};
  const varmoe::PrepareReport report = layer.prepare(prepare).value();
  for (const varmoe::KernelReport& kernel : report.kernels)
    std::printf("  %-12s %-9s %3d registers  %s\n", kernel.stage.c_str(), kernel.origin.c_str(),
                kernel.registers, kernel.config.c_str());
  std::printf("  prepared in %.0f ms\n", report.total_ms);

  std::vector<CUdeviceptr> memory;
  const auto take = [&](std::size_t bytes, const void* contents) {
    CUdeviceptr address = 0;
    check(cuda.alloc(&address, bytes), "cuMemAlloc");
    memory.push_back(address);
    if (contents) check(cuda.copy_in(address, contents, bytes), "cuMemcpyHtoD");
    return reinterpret_cast<void*>(address);
  };
  const void* fc1 = take(p.fc1.size() * 2, p.fc1.data());
  const void* fc2 = take(p.fc2.size() * 2, p.fc2.data());
  layer.bind(varmoe::Weights::blocks(p.spec, fc1, fc2).value()).value();

  CUstream stream = nullptr;
  check(cuda.stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  varmoe::ForwardArgs args;
  args.tokens = p.tokens;
  args.x = take(p.x.size() * 2, p.x.data());
  args.topk_ids = take(p.topk_ids.size() * 4, p.topk_ids.data());
  args.topk_weights = static_cast<const float*>(take(p.topk_weights.size() * 4, p.topk_weights.data()));
  args.out = take(p.x.size() * 2, nullptr);
  args.workspace_bytes = layer.workspace_bytes(p.tokens).value();
  args.workspace = take(args.workspace_bytes, nullptr);
  args.stream = stream;

  std::vector<std::uint16_t> out(p.x.size());
  const auto out_at = reinterpret_cast<CUdeviceptr>(args.out);
  const auto verify = [&](const char* what) {
    check(cuda.stream_wait(stream), "cuStreamSynchronize");
    check(cuda.copy_out(out.data(), out_at, out.size() * 2), "cuMemcpyDtoH");
    const double error = difference(out, expected);
    std::printf("  %s: relative difference from the CPU %.2e\n", what, error);
    if (!(error < 5e-3)) throw std::runtime_error("the GPU and the CPU disagree");
  };

  layer.forward(args).value();
  verify("forward");

  check(cuda.fill(out_at, 0xff, out.size() * 2), "cuMemsetD8");
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  check(cuda.capture_begin(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
  layer.forward(args).value();
  check(cuda.capture_end(stream, &graph), "cuStreamEndCapture");
  check(cuda.instantiate(&exec, graph, 0), "cuGraphInstantiate");
  check(cuda.graph_launch(exec, stream), "cuGraphLaunch");
  verify("captured graph");

  check(cuda.exec_destroy(exec), "cuGraphExecDestroy");
  check(cuda.graph_destroy(graph), "cuGraphDestroy");
  check(cuda.stream_destroy(stream), "cuStreamDestroy");
  for (const CUdeviceptr address : memory) check(cuda.free(address), "cuMemFree");
}

}  // namespace

int main() try {
  std::printf("varmoe %s\n", varmoe::version());
  const Problem problem;
  const std::vector<std::uint16_t> expected = run_on_cpu(problem);
  double largest = 0;
  for (const std::uint16_t value : expected) largest = std::max(largest, std::fabs(double{from_bf16(value)}));
  std::printf("CPU: %lld tokens, largest output %.3f\n", static_cast<long long>(problem.tokens), largest);
  if (!std::isfinite(largest) || largest == 0) throw std::runtime_error("the CPU's output is not sensible");

  auto engine = varmoe::Engine::create();
  if (!engine && engine.error().code() == varmoe::ErrorCode::no_device) {
    std::printf("GPU: skipped, %s\n", engine.error().message().c_str());
    return 0;
  }
  cuda_dl cuda;
  if (!cuda_dl_open(&cuda)) throw std::runtime_error("the CUDA driver lacks a function");
  std::printf("GPU: %s\n", engine.value().device_description().c_str());
  run_on_gpu(*engine, cuda, problem, expected);
  check(cuda.release(cuda.device), "cuDevicePrimaryCtxRelease");
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 1;
}
