#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "cuda/driver.hpp"
#include "engine/blocks_impl.hpp"
#include "engine/device_choice.hpp"
#include "engine/engine_impl.hpp"
#include "engine/layer_impl.hpp"
#include "engine/router_gradient_impl.hpp"
#include "engine/routing_impl.hpp"
#include "engine/training_impl.hpp"

namespace varmoe {
namespace {

/// Runs `f`, and makes an error of what it throws: nothing is thrown through the API.
template <class F>
auto guarded(F&& f) -> decltype(f()) try {
  return f();
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
}

}  // namespace

Result<std::shared_ptr<Engine::Impl>> Engine::Impl::create(const EngineOptions& options,
                                                           const engine::EngineSeams& seams) {
  Environment environment;
  if (seams.environment) {
    environment = *seams.environment;
  } else {
    auto read = Environment::read();
    if (!read) return std::move(read).error();
    environment = *std::move(read);
  }
  auto impl = std::make_shared<Impl>();
  if (options.device == kCpuDevice) {
    if (options.cpu_threads < 0)
      return Error(ErrorCode::invalid_argument,
                   fmt::format("EngineOptions::cpu_threads = {}: must be 0 (one per core) or more",
                               options.cpu_threads));
    impl->log = engine::open_log(options, environment);
    for (const std::string& warning : environment.warnings) impl->log.once(warning, LogLevel::warn, warning);
    impl->cpu_threads = options.cpu_threads > 0 ? options.cpu_threads : available_cores();
    impl->description = fmt::format("CPU, {} thread{}", impl->cpu_threads, impl->cpu_threads == 1 ? "" : "s");
    return impl;
  }
  if (options.device < 0)
    return Error(
        ErrorCode::invalid_argument,
        fmt::format(
            "EngineOptions::device = {}: must be a CUDA device ordinal (0 or more) or kCpuDevice ({})",
            options.device, kCpuDevice));

  auto driver =
      seams.driver_library.empty() ? cuda::Driver::load() : cuda::Driver::load(seams.driver_library);
  if (!driver) return std::move(driver).error();
  auto device = cuda::Device::open(*driver, options.device);
  if (!device) return std::move(device).error();
  impl->device = *std::move(device);
  const cuda::DeviceAttributes& attributes = impl->device->attributes();
  if (attributes.compute_major < 8)
    return Error(
        ErrorCode::unsupported,
        fmt::format(
            "device {} is {} (compute capability {}.{}): varmoe's kernels need 8.0 (Ampere) or newer; "
            "the CPU backend is device {}",
            options.device, attributes.name, attributes.compute_major, attributes.compute_minor, kCpuDevice));
  auto profile = engine::device_profile(attributes, environment);
  if (!profile) return std::move(profile).error();

  auto toolchain = engine::Toolchain::open(options, environment, seams.finder);
  if (!toolchain) return std::move(toolchain).error();
  impl->log = toolchain->log;
  auto chooser = toolchain->chooser(*profile);
  if (!chooser) return std::move(chooser).error();
  impl->chooser = std::make_unique<engine::ConfigChooser>(*std::move(chooser));
  impl->builder = std::make_unique<engine::KernelBuilder>(toolchain->builder_settings(profile->arch));
  impl->kernels = std::make_unique<engine::KernelTable>(impl->device, *impl->builder, impl->log);
  impl->description = fmt::format("{}, {}, {} SMs, driver {}", attributes.name, profile->arch,
                                  attributes.sm_count, cuda::version_text((*driver)->version()));
  return impl;
}

Engine::Impl::~Impl() = default;

engine::BuildHooks Engine::Impl::hooks(const PrepareOptions& options) {
  engine::BuildHooks hooks;
  hooks.progress = options.progress;
  hooks.cancel = options.cancel;
  hooks.have = [this](const engine::KernelUnit& unit, KernelReport& report) {
    const engine::ResidentKernel* resident = kernels->find(unit.key);
    if (!resident) return false;
    const KernelReport& r = resident->report;
    report.hit = true;
    report.origin = "memory";
    report.registers = r.registers;
    report.spill_bytes = r.spill_bytes;
    report.static_smem_bytes = r.static_smem_bytes;
    report.compile_ms = r.compile_ms;
    return true;
  };
  hooks.finish = [this, cancel = options.cancel](engine::BuiltKernel& kernel) {
    Status status = kernels->load(kernel, cancel);
    kernel.binary.reset();  // it lies on the device now
    return status;
  };
  return hooks;
}

void Engine::Impl::count(std::span<const KernelReport> reports) {
  for (const KernelReport& kernel : reports) {
    if (kernel.hit) {
      hits_.fetch_add(1, std::memory_order_relaxed);
    } else {
      misses_.fetch_add(1, std::memory_order_relaxed);
      if (kernel.origin == "compiled") compiles_.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

void Engine::Impl::count(const engine::LayerBuild& build) {
  count(std::span(build.kernels));
  for (const engine::BuiltBucket& bucket : build.buckets) {
    if (bucket.units.empty()) continue;
    switch (bucket.plan.choice.source) {
      case ConfigSource::override_:
        by_override_.fetch_add(1, std::memory_order_relaxed);
        break;
      case ConfigSource::tuned:
        by_tuning_.fetch_add(1, std::memory_order_relaxed);
        break;
      case ConfigSource::predicted:
        by_prediction_.fetch_add(1, std::memory_order_relaxed);
        break;
    }
  }
}

Counters Engine::Impl::counters() const noexcept {
  Counters c;
  c.cache_hits = hits_.load(std::memory_order_relaxed);
  c.cache_misses = misses_.load(std::memory_order_relaxed);
  c.compiles = compiles_.load(std::memory_order_relaxed);
  if (kernels) {
    c.kernels_loaded = kernels->size();
    c.module_bytes = kernels->image_bytes();
  }
  c.forwards = forwards.load(std::memory_order_relaxed);
  c.configs_override = by_override_.load(std::memory_order_relaxed);
  c.configs_tuned = by_tuning_.load(std::memory_order_relaxed);
  c.configs_predicted = by_prediction_.load(std::memory_order_relaxed);
  return c;
}

Result<std::uint64_t> Engine::Impl::keep_on_device(const void* bytes, std::size_t size) {
  auto buffer = cuda::DeviceBuffer::allocate(device, size);
  if (!buffer) return std::move(buffer).error();
  const std::uint64_t address = buffer->address();
  if (Status status = cuda::copy_to_device(*device, address, bytes, size); !status)
    return std::move(status).error();
  std::lock_guard lock(buffers_mutex_);
  buffers_.push_back(*std::move(buffer));
  return address;
}

Engine::Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::create(const EngineOptions& options) {
  return EngineAccess::create(options, {});
}

Result<Engine> EngineAccess::create(const EngineOptions& options, const engine::EngineSeams& seams) {
  return guarded([&]() -> Result<Engine> {
    auto impl = Engine::Impl::create(options, seams);
    if (!impl) return std::move(impl).error();
    return Engine(*std::move(impl));
  });
}

Engine::Impl& EngineAccess::impl(Engine& engine) {
  return *engine.impl_;
}

Result<Layer> Engine::create_layer(const LayerSpec& spec, const LayerOptions& options) {
  return guarded([&]() -> Result<Layer> {
    if (!impl_) return Error(ErrorCode::invalid_argument, "create_layer on an Engine that was moved from");
    auto layer = Layer::Impl::create(impl_, spec, options);
    if (!layer) return std::move(layer).error();
    return Layer(*std::move(layer));
  });
}

Result<Router> Engine::create_router(const RouterSpec& spec) {
  return guarded([&]() -> Result<Router> {
    if (!impl_) return Error(ErrorCode::invalid_argument, "create_router on an Engine that was moved from");
    auto router = Router::Impl::create(impl_, spec);
    if (!router) return std::move(router).error();
    return Router(*std::move(router));
  });
}

Result<BlockAligner> Engine::create_block_aligner(const AlignSpec& spec) {
  return guarded([&]() -> Result<BlockAligner> {
    if (!impl_)
      return Error(ErrorCode::invalid_argument, "create_block_aligner on an Engine that was moved from");
    auto aligner = BlockAligner::Impl::create(impl_, spec);
    if (!aligner) return std::move(aligner).error();
    return BlockAligner(*std::move(aligner));
  });
}

Result<RouterStatistics> Engine::create_router_statistics(const RouterStatisticsSpec& spec) {
  return guarded([&]() -> Result<RouterStatistics> {
    if (!impl_)
      return Error(ErrorCode::invalid_argument, "create_router_statistics on an Engine that was moved from");
    auto statistics = RouterStatistics::Impl::create(impl_, spec);
    if (!statistics) return std::move(statistics).error();
    return RouterStatistics(*std::move(statistics));
  });
}

Result<RouterGradient> Engine::create_router_gradient(const RouterGradientSpec& spec) {
  return guarded([&]() -> Result<RouterGradient> {
    if (!impl_)
      return Error(ErrorCode::invalid_argument, "create_router_gradient on an Engine that was moved from");
    auto gradient = RouterGradient::Impl::create(impl_, spec);
    if (!gradient) return std::move(gradient).error();
    return RouterGradient(*std::move(gradient));
  });
}

Result<TrainingLayer> Engine::create_training_layer(const LayerSpec& spec, const TrainingOptions& options) {
  return guarded([&]() -> Result<TrainingLayer> {
    if (!impl_)
      return Error(ErrorCode::invalid_argument, "create_training_layer on an Engine that was moved from");
    auto layer = TrainingLayer::Impl::create(impl_, spec, options);
    if (!layer) return std::move(layer).error();
    return TrainingLayer(*std::move(layer));
  });
}

Result<Blocks> Engine::create_blocks(const LayerSpec& spec, const BlocksOptions& options) {
  return guarded([&]() -> Result<Blocks> {
    if (!impl_) return Error(ErrorCode::invalid_argument, "create_blocks on an Engine that was moved from");
    auto blocks = Blocks::Impl::create(impl_, spec, options);
    if (!blocks) return std::move(blocks).error();
    return Blocks(*std::move(blocks));
  });
}

Counters Engine::counters() const noexcept {
  return impl_ ? impl_->counters() : Counters{};
}

std::string Engine::device_description() const {
  return impl_ ? impl_->description : std::string();
}

}  // namespace varmoe
