#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "abi.cuh"
#include "cuda/fake_gpu.hpp"
#include "cuda/module.hpp"
#include "cuda/stream.hpp"
#include "plan/expert_table.hpp"
#include "plan/plan.hpp"

namespace varmoe::test {

using emit::Stage;
using Names = std::vector<std::string>;

inline std::uint32_t parameter_bytes(Stage stage) {
  switch (stage) {
    case Stage::fc1:
    case Stage::fc2:
      return sizeof(abi::GemmParams);
    case Stage::gather:
      return sizeof(abi::GatherParams);
    case Stage::combine:
      return sizeof(abi::CombineParams);
    case Stage::whole_layer:
      return sizeof(abi::LayerParams);
    default:
      return sizeof(abi::SortParams);
  }
}

template <class Params>
Params params_of(const fake_cuda::Launch& launch) {
  Params params;
  REQUIRE(launch.arguments.size() == 1);
  REQUIRE(launch.arguments[0].size() == sizeof params);
  std::memcpy(&params, launch.arguments[0].data(), sizeof params);
  return params;
}

inline std::uint64_t address(const void* p) {
  return reinterpret_cast<std::uint64_t>(p);
}

/// Kernels of every stage on the fake driver, each with a launch shape of its own, and sound arguments.
struct RunFixture {
  static constexpr std::int32_t kSms = 132;
  static constexpr std::uint64_t kTable = 0x5000000;

  std::shared_ptr<cuda::Device> device = fake_device();
  std::vector<cuda::Module> modules;
  cuda::Stream stream = [this] {
    auto made = cuda::Stream::create(device);
    REQUIRE(made.ok());
    return std::move(*made);
  }();
  LayerSpec spec = [] {
    LayerSpec s = uniform_spec(256, 6, 64, 2);
    s.expert_widths = {64, 128, 192, 64, 128, 192};
    return s;
  }();
  plan::RunContext context;
  plan::KernelSet kernels;
  ForwardArgs args;

  RunFixture() {
    context.driver = &device->driver();
    context.spec = &spec;
    context.expert_table = kTable;
    context.sm_count = kSms;
    context.max_width = spec.max_width();
    context.classes = 3;
    kernels.config.fc1.block_m = 64;
    kernels.config.fc2.block_m = 32;
    kernels.config.fc2.block_n = 64;
    kernels.config.sort.single_block_rows = 3072;
    for (const Stage stage : {Stage::sort_single, Stage::sort_count, Stage::sort_scatter, Stage::fc1,
                              Stage::fc2, Stage::combine}) {
      add(stage);
    }
    args.x = reinterpret_cast<const void*>(0x10000000);
    args.topk_ids = reinterpret_cast<const void*>(0x20000000);
    args.topk_weights = reinterpret_cast<const float*>(0x30000000);
    args.out = reinterpret_cast<void*>(0x40000000);
    args.workspace = reinterpret_cast<void*>(0x60000000);
    args.stream = stream.handle();
    fake_cuda::clear_calls();
  }

  void add(Stage stage) {
    FakeCubin cubin;
    cubin.kernels = {{emit::to_string(stage), 32, 0, 0, 1024, {parameter_bytes(stage)}}};
    KernelBinary binary;
    binary.image = make_fake_cubin(cubin);
    binary.arch = "sm_90";
    binary.entry_name = emit::to_string(stage);
    binary.compiler = {13, 0, 88};
    const auto number = static_cast<std::int32_t>(stage);
    plan::LoadedKernel& kernel = kernels[stage];
    kernel.block_threads = 64 + 32 * number;
    kernel.dynamic_smem_bytes = 1024 * number;
    kernel.blocks_per_sm = 1 + number % 2;
    auto module = cuda::Module::load(device, binary, kernel.dynamic_smem_bytes);
    REQUIRE_MESSAGE(module.ok(), (module.ok() ? "" : module.error().message()));
    kernel.function = module->function();
    modules.push_back(std::move(*module));
  }

  std::vector<fake_cuda::Launch> run(std::int64_t tokens, std::int64_t chunk) {
    fake_cuda::clear_launches();
    args.tokens = tokens;
    const Status status = plan::run(context, kernels, args, chunk);
    REQUIRE_MESSAGE(status.ok(), (status.ok() ? "" : status.error().message()));
    return fake_cuda::launches();
  }
  std::vector<fake_cuda::Launch> run(std::int64_t tokens) { return run(tokens, tokens); }

  std::int64_t resident(Stage stage) const { return std::int64_t{kernels[stage].blocks_per_sm} * kSms; }
  plan::WorkspaceLayout layout(std::int64_t tokens) const {
    return plan::workspace_layout(spec, &kernels.config, tokens);
  }
  std::uint64_t in_workspace(std::size_t offset) const { return address(args.workspace) + offset; }
};

inline Names names_of(const std::vector<fake_cuda::Launch>& launches) {
  Names names;
  for (const auto& launch : launches) names.push_back(launch.name);
  return names;
}

}  // namespace varmoe::test
