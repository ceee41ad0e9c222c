#include "engine/kernel_group.hpp"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "cuda/driver.hpp"
#include "cuda/stream.hpp"

namespace varmoe::engine {

KernelGroup::KernelGroup(std::shared_ptr<Engine::Impl> engine, std::string name, Emit emit)
    : engine_(std::move(engine)), name_(std::move(name)), emit_(std::move(emit)) {}

Result<PrepareReport> KernelGroup::prepare(const PrepareOptions& options) {
  std::lock_guard lock(mutex_);
  failed_.reset();
  return prepare_locked(options);
}

Result<PrepareReport> KernelGroup::prepare_locked(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  auto emitted = emit_();
  if (!emitted) return std::move(emitted).error();
  std::vector<UnitRequest> requests;
  for (emit::EmittedKernel& kernel : *emitted) {
    UnitRequest request;
    request.stage = emit::to_string(kernel.stage);
    request.config = fmt::format("block_threads={}", kernel.block_threads);
    request.unit = engine_->builder->unit(std::move(kernel));
    requests.push_back(std::move(request));
  }
  auto built = engine_->builder->build(std::move(requests), engine_->hooks(options));
  if (!built) return std::move(built).error();
  PrepareReport report;
  for (BuiltKernel& kernel : *built) report.kernels.push_back(kernel.report);
  engine_->count(report.kernels);
  std::vector<plan::LoadedKernel> loaded;
  for (const BuiltKernel& kernel : *built) {
    if (kernel.error) return *kernel.error;
    const ResidentKernel* resident = engine_->kernels->find(kernel.unit->key);
    if (!resident)
      return Error(ErrorCode::internal,
                   fmt::format("{} is built and not resident", kernel.unit->emitted.entry_name));
    loaded.push_back(resident->launch);
  }
  if (!this->loaded()) {
    kernels_ = std::move(loaded);
    published_.store(kernels_.data(), std::memory_order_release);
  }
  report.total_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Result<const plan::LoadedKernel*> KernelGroup::first_use(void* stream) {
  auto capture = cuda::capture_status(engine_->device->driver(), stream);
  if (!capture) return std::move(capture).error();
  if (*capture != cuda::CaptureStatus::none)
    return Error(
        ErrorCode::not_prepared,
        fmt::format("{} is not prepared and may not be while a stream is captured: call prepare before",
                    name_));
  std::lock_guard lock(mutex_);
  if (const plan::LoadedKernel* kernels = loaded()) return kernels;  // another thread was first
  if (failed_) return *failed_;
  auto report = prepare_locked({});
  if (!report) {
    failed_ = report.error();
    engine_->log.error("first use of {}: {}", name_, failed_->message());
    return *failed_;
  }
  engine_->log.warn("{} was prepared at first use in {:.0f} ms; call prepare to do this beforehand", name_,
                    report->total_ms);
  return loaded();
}

}  // namespace varmoe::engine
