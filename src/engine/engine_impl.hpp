#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/env.hpp"
#include "base/log.hpp"
#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "engine/config_choice.hpp"
#include "engine/fork_guard.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "engine/layer_build.hpp"
#include "engine/toolchain.hpp"
#include "varmoe/engine.hpp"

namespace varmoe {

namespace engine {

/// What tests replace.
struct EngineSeams {
  std::string driver_library;                ///< empty: the system's
  FinderMaker finder;                        ///< null: NVRTC
  const Environment* environment = nullptr;  ///< null: this process's
};

}  // namespace engine

/// Shared by the Engine object and its layers; whoever goes last takes kernels and device tables along.
struct VARMOE_HIDDEN Engine::Impl {
  static Result<std::shared_ptr<Impl>> create(const EngineOptions& options, const engine::EngineSeams& seams);
  ~Impl();

  bool on_cpu() const noexcept { return device == nullptr; }
  Status check_process() const {
    if (fork.same_process()) [[likely]]
      return {};
    return fork.error();
  }
  /// What a build of this engine does besides building: finds resident kernels, loads new ones.
  engine::BuildHooks hooks(const PrepareOptions& options);
  void count(const engine::LayerBuild& build);
  void count(std::span<const KernelReport> reports);
  Counters counters() const noexcept;
  /// Device memory that stays until the engine goes, because captured graphs may refer to it.
  Result<std::uint64_t> keep_on_device(const void* bytes, std::size_t size);

  engine::ForkGuard fork;
  Log log;
  std::string description;
  int cpu_threads = 0;

  // GPU engines only.
  std::shared_ptr<cuda::Device> device;
  std::unique_ptr<engine::ConfigChooser> chooser;
  std::unique_ptr<engine::KernelBuilder> builder;
  std::unique_ptr<engine::KernelTable> kernels;

  std::atomic<std::uint64_t> forwards{0};

 private:
  std::mutex buffers_mutex_;
  std::vector<cuda::DeviceBuffer> buffers_;
  std::atomic<std::uint64_t> hits_{0}, misses_{0}, compiles_{0};
  std::atomic<std::uint64_t> by_override_{0}, by_tuning_{0}, by_prediction_{0};
};

/// Makes Engine objects on seams, for tests.
struct EngineAccess {
  static Result<Engine> create(const EngineOptions& options, const engine::EngineSeams& seams);
  static Engine::Impl& impl(Engine& engine);
};

}  // namespace varmoe
