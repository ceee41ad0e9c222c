#include <fmt/core.h>

#include <memory>
#include <string>

#include "base/cache_dir.hpp"
#include "base/env.hpp"
#include "base/file_system.hpp"
#include "base/text.hpp"
#include "base/thread_pool.hpp"
#include "cpu/layer.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "model/device_profile.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/disassemble.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/verbs.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/layers.hpp"
#include "varmoe/version.hpp"

namespace varmoe::tools {
namespace {

/// Prints one finding: what was looked at, whether it is well, and what was found.
class Report {
 public:
  explicit Report(const Output& out) : out_(out) {}
  void good(const char* what, const std::string& text) { line("ok", what, text); }
  /// Something is less than it could be, yet varmoe works.
  void note(const char* what, const std::string& text) { line("note", what, text); }
  void bad(const char* what, const std::string& text) { line("BAD", what, text); }

 private:
  void line(const char* verdict, const char* what, const std::string& text) {
    out_.say(fmt::format("{:<5}{:<18}{}", verdict, what, text));
    out_.event("check", Json().add("verdict", verdict).add("what", what).add("text", text));
  }
  const Output& out_;
};

/// True when NVRTC can be used.
bool check_nvrtc(const engine::Toolchain& toolchain, Report& report) {
  auto compiler = toolchain.compiler->load();
  if (!compiler) {
    report.note("NVRTC", compiler.error().message());
    return false;
  }
  std::string archs;
  for (const int arch : (*compiler)->architectures())
    archs += fmt::format("{}sm_{}", archs.empty() ? "" : " ", arch);
  report.good("NVRTC", (*compiler)->description());
  report.good("NVRTC targets", archs);
  return true;
}

void check_devices(Report& report) {
  auto driver = cuda::Driver::load();
  if (!driver) {
    report.note("GPU", driver.error().message() + "; compiling and the CPU backend work");
    return;
  }
  report.good("driver", "CUDA " + cuda::version_text((*driver)->version()));
  for (int i = 0; i < (*driver)->device_count(); ++i) {
    auto device = cuda::Device::open(*driver, i);
    if (!device) {
      report.bad("GPU", fmt::format("{}: {}", i, device.error().message()));
      continue;
    }
    const cuda::DeviceAttributes& a = (*device)->attributes();
    auto profile = model::find_profile(a.name);
    const std::string text = fmt::format("{}: {}, {}, {} SMs, {}, profile {}", i, a.name,
                                         model::arch_name(a.compute_major, a.compute_minor), a.sm_count,
                                         format_byte_size(static_cast<std::uint64_t>(a.total_memory)),
                                         profile ? profile->id : "generic");
    if (a.compute_major < 8) {
      report.bad("GPU", text + ": kernels need sm_80 or newer");
    } else {
      report.good("GPU", text);
    }
  }
}

void check_cache(const engine::Toolchain& toolchain, const std::string& asked, Report& report) {
  const Environment& environment = toolchain.environment;
  const CacheMode mode = environment.cache.value_or(CacheMode::rw);
  if (mode == CacheMode::off) {
    report.note("cache", "off (VARMOE_CACHE=off)");
  } else {
    // The warning has been logged when the toolchain opened it.
    const CacheDir dir = resolve_cache_dir(
        posix_file_system(), {asked, environment.cache_dir, environment.xdg_cache_home, environment.home},
        mode, Log());
    const std::string where =
        dir.path.empty() ? "in memory only" : fmt::format("{} ({})", dir.path, dir.source);
    if (dir.problem.empty()) {
      report.good("cache", fmt::format("{}, {}", where, to_string(dir.mode)));
    } else {
      report.note("cache", fmt::format("{}, {}: {}", where, to_string(dir.mode), dir.problem));
    }
  }
  for (const auto& folder : toolchain.cache->stats().folders) {
    const std::string text =
        fmt::format("{}: {} entries, {}{}{}", folder.dir, folder.entries, format_byte_size(folder.bytes),
                    folder.note.empty() ? "" : "; ", folder.note);
    if (folder.own) {
      report.good("cache entries", text);
    } else if (folder.readable) {
      report.good("read-only layer", text);
    } else {
      report.bad("read-only layer", text);
    }
  }
}

/// Where records are looked for, and what is wrong with them.
void check_tuning(const engine::Toolchain& toolchain, const model::DeviceProfile* device, Report& report) {
  if (toolchain.tune == TuneMode::off) return report.note("tuning records", "off (VARMOE_TUNE=off)");
  tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), toolchain.tuning_sources);
  for (std::size_t i = 0; i < layers.layers.size(); ++i) {
    std::size_t records = 0, here = 0;
    for (const tuningdb::LayerFile& file : layers.files) {
      if (file.layer != i) continue;
      records += file.contents.records.size();
      for (const auto& stored : file.contents.records)
        here += device != nullptr && tuningdb::is_device(stored.record.key.device, *device) ? 1 : 0;
    }
    report.good("tuning records",
                fmt::format("{}: {}, {} of them for the target", layers.layers[i].text(), records, here));
  }
  for (const std::string& problem : layers.problems) report.bad("tuning records", problem);
}

int doctor_verb(const SessionOptions& options, const Output& out) {
  Report report(out);
  report.good("varmoe", version());
  auto toolchain = open_toolchain(options);
  if (!toolchain) {
    report.bad("environment", toolchain.error().message());
    return out.fail(toolchain.error());
  }
  const Environment& environment = toolchain->environment;
  std::string settings;
  for (const auto& setting : environment.settings) {
    settings +=
        fmt::format("{}{}={}", settings.empty() ? "" : " ", setting.name, setting.value.substr(0, 80));
  }
  report.good("environment", settings.empty() ? "no VARMOE_* variable is set" : settings);
  for (const std::string& warning : environment.warnings) report.note("environment", warning);
  const bool nvrtc = check_nvrtc(*toolchain, report);
  check_devices(report);
  const auto device = target_device(options, environment);
  if (device) {
    report.good("target",
                fmt::format("{} ({}): {}, {} SMs", device->name, device->id, device->arch, device->sm_count));
  } else {
    report.note("target", device.error().message());
  }
  report.good("CPU backend", fmt::format("{} cores, {}", available_cores(), join(cpu::instruction_sets())));
  check_cache(*toolchain, options.cache_dir, report);
  check_tuning(*toolchain, device ? &*device : nullptr, report);
  const std::string disassembler = find_disassembler();
  report.good("disassembler",
              disassembler.empty() ? "none (emit --form sass needs nvdisasm or cuobjdump)" : disassembler);

  const bool prebuilt = !environment.cubin_path.empty();
  if (!nvrtc && !prebuilt) {
    report.bad("verdict",
               "no kernel can be made here: install NVRTC, or name prebuilt kernels in VARMOE_CUBIN_PATH");
    return kEnvironment;
  }
  report.good("verdict", nvrtc ? "kernels can be compiled here" : "prebuilt kernels can be used here");
  return kDone;
}

}  // namespace

void add_doctor(Command& app, Action& run) {
  auto* verb =
      app.add_subcommand("doctor", "Says what is here: NVRTC, driver, GPUs, target, cache, environment");
  auto options = std::make_shared<SessionOptions>();
  options->add_device(*verb);
  options->add_cache(*verb);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return doctor_verb(*options, out); }; });
}

}  // namespace varmoe::tools
