#include "engine/kernel_table.hpp"

#include <fmt/format.h>

#include <utility>

namespace varmoe::engine {

KernelTable::KernelTable(std::shared_ptr<cuda::Device> device, KernelBuilder& builder, Log log)
    : device_(std::move(device)), builder_(builder), log_(std::move(log)) {}

const ResidentKernel* KernelTable::find(const Digest& key) const {
  std::lock_guard lock(mutex_);
  const auto found = kernels_.find(key);
  return found == kernels_.end() ? nullptr : found->second.get();
}

Result<cuda::Module> KernelTable::load_module(BuiltKernel& kernel, const std::atomic<bool>* cancel) {
  const int dynamic_smem = kernel.unit->emitted.dynamic_smem_bytes;
  cuda::LoadFailure why = cuda::LoadFailure::none;
  auto loaded = cuda::Module::load(device_, *kernel.binary, dynamic_smem, &why);
  if (loaded) return loaded;
  if (why == cuda::LoadFailure::too_new) {
    log_.once("driver_too_old", LogLevel::error, loaded.error().message());
    return loaded;
  }
  if (why != cuda::LoadFailure::damaged) return loaded;
  log_.warn("the driver refused cached kernel {} ({}): {}; it is set aside and made again",
            kernel.report.name, kernel.report.origin, loaded.error().message());
  builder_.rebuild(kernel, cancel);
  if (kernel.error) return *kernel.error;
  return cuda::Module::load(device_, *kernel.binary, dynamic_smem, &why);
}

Status KernelTable::load(BuiltKernel& kernel, const std::atomic<bool>* cancel) {
  const Digest& key = kernel.unit->key;
  std::lock_guard loading(loading_[key.bytes[0] % loading_.size()]);
  if (find(key)) return {};
  auto module = load_module(kernel, cancel);
  if (!module) return std::move(module).error();
  const emit::EmittedKernel& emitted = kernel.unit->emitted;
  auto blocks = module->blocks_per_sm(emitted.block_threads, emitted.dynamic_smem_bytes);
  if (!blocks) return std::move(blocks).error();
  if (*blocks < 1)
    return Error(
        ErrorCode::unsupported,
        fmt::format("{} does not fit on {}: {} threads, {} registers, {} bytes of shared memory a block",
                    emitted.entry_name, device_->attributes().name, emitted.block_threads,
                    module->attributes().registers, emitted.dynamic_smem_bytes));
  if (kernel.report.registers == 0) {
    // PTX: only the driver, which translated it, knows.
    kernel.report.registers = module->attributes().registers;
    kernel.report.spill_bytes = module->attributes().local_bytes;
    kernel.report.static_smem_bytes = module->attributes().static_smem;
  }
  plan::LoadedKernel launch{module->function(), emitted.block_threads, emitted.dynamic_smem_bytes, *blocks};
  const std::uint64_t bytes = module->image_bytes();
  auto resident =
      std::make_unique<const ResidentKernel>(ResidentKernel{launch, *std::move(module), kernel.report});
  std::lock_guard lock(mutex_);
  if (kernels_.try_emplace(key, std::move(resident)).second) {
    count_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }
  return {};
}

}  // namespace varmoe::engine
