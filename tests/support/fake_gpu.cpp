#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "support/fake_cuda.hpp"
#include "tools/gpu/backward_reference.hpp"
#include "tools/gpu/reference_kernels.hpp"

/// A libcuda.so.1 for stories: the fake driver with an H200 on which every comparison of varmoe-tune's worker
/// finds what it should, so that the programs can be run from end to end where there is no GPU. What kernels
/// compute is nothing; a step of its clock is a millisecond, whatever ran. By environment:
///   FAKE_GPU_DEVICES=n      how many GPUs; default 1
///   FAKE_GPU_WRONG=text     kernels whose entry name has the text compute wrong results
///   FAKE_GPU_CRASH=text     they crash the process
///   FAKE_GPU_HANG=text      they never end
namespace {

bool named(const char* variable, const std::string& kernel) {
  const char* text = std::getenv(variable);
  return text != nullptr && kernel.find(text) != std::string::npos;
}

bool wrong = false;

void run_gemm(const varmoe::fake_cuda::Launch& launch) {
  if (named("FAKE_GPU_CRASH", launch.name)) std::raise(SIGKILL);
  while (named("FAKE_GPU_HANG", launch.name)) std::this_thread::sleep_for(std::chrono::seconds(1));
  wrong = wrong || named("FAKE_GPU_WRONG", launch.name);
}

/// Begins a pass.
void run_sort(const varmoe::fake_cuda::Launch&) {
  wrong = false;
}
void run_whole_layer(const varmoe::fake_cuda::Launch& launch) {
  wrong = false;
  run_gemm(launch);
}

template <class Params>
void compare(const varmoe::fake_cuda::Launch& launch) {
  Params params;
  if (launch.arguments.size() != 1 || launch.arguments[0].size() != sizeof params) std::abort();
  std::memcpy(&params, launch.arguments[0].data(), sizeof params);
  auto* results = reinterpret_cast<double*>(params.results);
  for (unsigned row = 0; row < launch.grid[0]; ++row) {
    results[3 * row] = wrong ? 2 : 0;
    results[3 * row + 1] = wrong ? 1 : 0;
    results[3 * row + 2] = 1;
  }
  varmoe::fake_cuda::clear_launches();
}

[[gnu::constructor]] void begin() {
  using namespace varmoe;
  const char* count = std::getenv("FAKE_GPU_DEVICES");
  fake_cuda::FakeDevice device;
  device.name = "NVIDIA H200";
  fake_cuda::set_devices(
      std::vector<fake_cuda::FakeDevice>(count == nullptr ? 1 : std::strtoul(count, nullptr, 10), device));
  fake_cuda::on_launch("varmoe_sort", run_sort);
  fake_cuda::on_launch("varmoe_fc1", run_gemm);
  fake_cuda::on_launch("varmoe_fc2", run_gemm);
  fake_cuda::on_launch("varmoe_whole_layer", run_whole_layer);
  fake_cuda::on_launch("varmoe_tool_compare", compare<tools::CompareParams>);
  fake_cuda::on_launch("varmoe_tool_backward_compare", compare<tools::BackwardCompareParams>);
}

}  // namespace
