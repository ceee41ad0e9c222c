#include "engine/kernel_builder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "compile/compile_pool.hpp"
#include "cubin/key.hpp"
#include "engine/kernel_dump.hpp"
#include "engine/kernel_plan.hpp"

namespace varmoe::engine {
namespace {

constexpr const char* kLineInfoOption = "--generate-line-info";

std::string request_text(const emit::KernelRequest& r) {
  std::string text =
      fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}", static_cast<int>(r.stage), to_string(r.gemm),
                  static_cast<int>(r.gemm.schedule), r.block_threads, r.one_launch.max_tokens,
                  r.one_launch.teams, r.runtime_width ? 1 : 0, (r.saves_z ? 1 : 0) + (r.saves_product ? 2 : 0), static_cast<int>(r.down_k),
                  r.row_weights ? 1 : 0, r.row_gaps ? 1 : 0);
  if (r.backward)
    text += fmt::format("|{}|{:x}|{:x}|{}|{}|{}|{}|{}", static_cast<int>(r.backward->activation),
                        std::bit_cast<std::uint32_t>(r.backward->params.alpha),
                        std::bit_cast<std::uint32_t>(r.backward->params.limit), r.backward->alternating,
                        r.backward->shared_gate, r.backward->weight_on_input, r.backward->bias, r.backward->weighs_rows);
  return text;
}

bool is_cancelled(const std::atomic<bool>* cancel) {
  return cancel && cancel->load(std::memory_order_relaxed);
}

Error cancelled_error() {
  return {ErrorCode::cancelled, "cancelled before this kernel was built"};
}

void describe(const KernelBinary& binary, KernelReport& report) {
  report.registers = binary.resources.registers;
  report.spill_bytes = binary.resources.spill_stores + binary.resources.spill_loads;
  report.static_smem_bytes = binary.resources.static_smem;
  report.compile_ms = binary.compile_ms;
}

}  // namespace

KernelBuilder::KernelBuilder(BuilderSettings settings) : settings_(std::move(settings)) {}

std::shared_ptr<const KernelUnit> KernelBuilder::unit(emit::EmittedKernel emitted) const {
  auto made = std::make_shared<KernelUnit>();
  made->emitted = std::move(emitted);
  auto options = made->emitted.options;
  if (settings_.line_info) options.emplace_back(kLineInfoOption);
  made->key = cubin::cubin_key(made->emitted.text, made->emitted.headers, options, settings_.arch);
  return made;
}

Result<std::shared_ptr<const KernelUnit>> KernelBuilder::unit(const LayerSpec& spec,
                                                              const std::string& signature,
                                                              const emit::KernelRequest& request) {
  const std::string name = signature + '#' + request_text(request);
  {
    std::lock_guard lock(mutex_);
    if (const auto found = units_.find(name); found != units_.end()) return found->second;
  }
  auto emitted = emit::emit_kernel(spec, request);
  if (!emitted) return std::move(emitted).error();
  auto made = unit(*std::move(emitted));
  std::lock_guard lock(mutex_);
  return units_.try_emplace(name, std::move(made)).first->second;
}

Result<std::shared_ptr<const KernelUnit>> KernelBuilder::unit(const LayerSpec& spec,
                                                              const emit::KernelRequest& request) {
  return unit(spec, kernel_signature(spec), request);
}

Result<KernelBinary> KernelBuilder::compile(const KernelUnit& unit, const std::atomic<bool>* cancel) {
  auto compiler = settings_.compiler->load();
  if (!compiler) return std::move(compiler).error();
  auto target = compile::target_arch((*compiler)->architectures(), settings_.arch);
  if (!target) return std::move(target).error();
  const bool native = *target == settings_.arch;
  if (!native)
    settings_.log.once(
        "portable path", LogLevel::warn,
        fmt::format("{} is newer than {}: kernels are made as PTX for {} and translated by the driver",
                    settings_.arch, (*compiler)->description(), *target));
  compile::CompileRequest request{unit.emitted.text, unit.emitted.headers,    unit.emitted.options,
                                  *target,           unit.emitted.entry_name, settings_.line_info};
  std::vector<compile::CompileRequest> requests;
  requests.push_back(std::move(request));
  compile::CompileAllOptions options;
  options.threads = 1;
  options.cancel = cancel;
  auto results = compile::compile_all(*compiler, std::move(requests), options);
  if (results.size() != 1) return Error(ErrorCode::internal, "the compile pool lost a request");
  if (!results[0]) return std::move(results[0]).error();
  KernelBinary binary = *std::move(results[0]);
  // PTX for a newer GPU is filed under that GPU's own arch, so that the next start finds it without asking a
  // compiler which architectures it knows; a newer NVRTC at hand replaces it like any entry of another build.
  if (!native) binary.arch = settings_.arch;
  return binary;
}

void KernelBuilder::fetch(BuiltKernel& kernel, const std::atomic<bool>* cancel) {
  const KernelUnit& unit = *kernel.unit;
  const cubin::AtHand at_hand([this] { return settings_.compiler->at_hand(); });
  cubin::Fetched fetched;
  if (settings_.jit == JitMode::cached_only) {
    // What exists is taken as it is: nothing could replace an entry of another build.
    auto found = settings_.cache->lookup(unit.key, settings_.arch);
    if (!found) {
      kernel.error = Error(
          ErrorCode::not_prepared,
          fmt::format("{} ({}, key {}) is not cached for {}, and JIT=cached_only "
                      "allows no compile",
                      unit.emitted.entry_name, kernel.report.config, kernel.report.key, settings_.arch));
      return;
    }
    fetched = *std::move(found);
  } else {
    cubin::FetchOptions options;
    options.at_hand = at_hand;
    options.cancel = cancel;
    auto built = settings_.cache->fetch_or_build(
        unit.key, settings_.arch, [&] { return compile(unit, cancel); }, options);
    if (!built) {
      kernel.error = std::move(built).error();
      return;
    }
    fetched = *std::move(built);
  }
  kernel.report.hit = fetched.origin != cubin::Origin::compiled;
  kernel.report.origin = fetched.origin_text();
  describe(*fetched.binary, kernel.report);
  dump(unit, *fetched.binary);
  kernel.binary = std::move(fetched.binary);
}

void KernelBuilder::rebuild(BuiltKernel& kernel, const std::atomic<bool>* cancel) {
  settings_.cache->reject(kernel.unit->key);
  kernel.binary.reset();
  kernel.error.reset();
  fetch(kernel, cancel);
}

void KernelBuilder::dump(const KernelUnit& unit, const KernelBinary& binary) {
  if (settings_.dump_dir.empty()) return;
  {
    std::lock_guard lock(mutex_);
    if (!dumped_.insert(unit.key.hex()).second) return;
  }
  Status status = dump_kernel(settings_.dump_dir, unit.emitted, binary);
  if (!status)
    settings_.log.once(
        "dump", LogLevel::warn,
        fmt::format("VARMOE_DUMP_DIR: {}; some kernels are not dumped", status.error().message()));
}

Result<std::vector<BuiltKernel>> KernelBuilder::build(const LayerSpec& spec,
                                                      std::span<const emit::KernelRequest> requests,
                                                      const BuildHooks& hooks) try {
  const std::string signature = kernel_signature(spec);
  std::vector<UnitRequest> units;
  for (const emit::KernelRequest& request : requests)
    units.push_back({emit::to_string(request.stage), config_text(request), request.runtime_width,
                     unit(spec, signature, request)});
  return build(std::move(units), hooks);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "host memory ran out while kernels were built");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
}

Result<std::vector<BuiltKernel>> KernelBuilder::build(std::vector<UnitRequest> requests,
                                                      const BuildHooks& hooks) try {
  settings_.compiler->forget_failure();
  std::vector<BuiltKernel> kernels(requests.size());
  std::mutex progress_mutex;
  std::size_t done = 0;
  const auto advance = [&] {
    if (!hooks.progress) return;
    std::lock_guard lock(progress_mutex);
    hooks.progress(++done, kernels.size());
  };
  const auto one = [&](std::size_t i) {
    BuiltKernel& kernel = kernels[i];
    try {
      fetch(kernel, hooks.cancel);
      if (!kernel.error && hooks.finish) {
        Status status = hooks.finish(kernel);
        if (!status) kernel.error = std::move(status).error();
      }
    } catch (const std::bad_alloc&) {
      kernel.error = Error(ErrorCode::out_of_memory, "host memory ran out while a kernel was built");
    } catch (const std::exception& e) {
      kernel.error = Error(ErrorCode::internal, e.what());
    }
  };
  // Emission is a fraction of a millisecond; what is left for the threads are reads, compiles and loads.
  std::vector<std::size_t> work;
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    BuiltKernel& kernel = kernels[i];
    kernel.report.stage = std::move(requests[i].stage);
    kernel.report.config = std::move(requests[i].config);
    kernel.report.runtime_width = requests[i].runtime_width;
    if (!requests[i].unit) {
      kernel.error = std::move(requests[i].unit).error();
    } else {
      kernel.unit = *std::move(requests[i].unit);
      kernel.report.name = kernel.unit->emitted.entry_name;
      kernel.report.key = kernel.unit->key.hex();
      kernel.report.dynamic_smem_bytes = kernel.unit->emitted.dynamic_smem_bytes;
      if (!hooks.have || !hooks.have(*kernel.unit, kernel.report)) {
        work.push_back(i);
        continue;
      }
    }
    advance();
  }
  parallel_for(work.size(), settings_.threads, [&](std::size_t w) {
    BuiltKernel& kernel = kernels[work[w]];
    if (is_cancelled(hooks.cancel)) {
      kernel.error = cancelled_error();
    } else {
      one(work[w]);
    }
    advance();
  });
  for (BuiltKernel& kernel : kernels)
    if (kernel.error) kernel.report.error = kernel.error->message();
  return kernels;
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "host memory ran out while kernels were built");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
}

}  // namespace varmoe::engine
