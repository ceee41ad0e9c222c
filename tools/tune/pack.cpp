#include "tools/tune/pack.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "base/atomic_file.hpp"
#include "base/file_system.hpp"
#include "cubin/entry_folder.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/layer_build.hpp"
#include "engine/training_build.hpp"
#include "model/json_writer.hpp"
#include "tools/common/output.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/router_kernels.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/snapshot.hpp"
#include "varmoe/version.hpp"

namespace varmoe::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = "pack.json";

Error file_error(std::string_view what, const std::string& path, const std::error_code& code) {
  return Error(ErrorCode::io_error, fmt::format("cannot {} {}: {}", what, path, code.message()));
}

/// A folder that goes unless it was published.
class Staging {
 public:
  explicit Staging(std::string path) : path_(std::move(path)) {}
  ~Staging() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  const std::string& path() const noexcept { return path_; }
  void published() noexcept { path_.clear(); }

 private:
  std::string path_;
};

/// What may stand at the pack's place: nothing, an empty folder, a former pack.
Status check_place(const std::string& folder) {
  std::error_code failed;
  if (!fs::exists(fs::symlink_status(folder, failed))) return {};
  const bool is_folder = fs::is_directory(fs::symlink_status(folder, failed));
  if (is_folder && (fs::is_empty(folder, failed) || fs::is_regular_file(folder + "/" + kMark, failed)))
    return {};
  return Error(ErrorCode::io_error,
               fmt::format("{} is there and is no pack: name another --out, or remove it", folder));
}

/// Whoever runs the server must be able to read it, and nobody else may write it.
Status open_to_readers(const std::string& folder) {
  std::error_code failed;
  std::vector<std::string> paths = {folder};
  for (const auto& entry : fs::recursive_directory_iterator(folder, failed))
    paths.push_back(entry.path().string());
  if (failed) return file_error("list", folder, failed);
  for (const std::string& path : paths) {
    if (::chmod(path.c_str(), fs::is_directory(path) ? 0755 : 0644) != 0)
      return file_error("open to readers", path, std::error_code(errno, std::generic_category()));
  }
  return {};
}

Result<std::uint64_t> bytes_below(const std::string& folder) {
  std::error_code failed;
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder, failed))
    if (entry.is_regular_file()) bytes += entry.file_size();
  if (failed) return file_error("list", folder, failed);
  return bytes;
}

/// The records that answer for these layers and buckets, into files of their devices.
Result<std::size_t> write_records(const std::string& folder, const std::vector<InputLayer>& layers,
                                  const std::vector<std::int64_t>& buckets,
                                  const engine::Toolchain& toolchain, const model::DeviceProfile& device,
                                  const PackFor& training) {
  const tuningdb::TuningSnapshot snapshot = toolchain.load_tuning(device);
  std::map<std::string, tuningdb::RecordFile> files;
  for (const InputLayer& layer : layers) {
    for (const std::int64_t bucket : buckets) {
      const auto add = [&files](const std::optional<tuningdb::TunedMatch>& match) {
        if (match)
          tuningdb::merge_record(files[tuningdb::record_file_name(match->record->key.device)],
                                 *match->record);
      };
      add(snapshot.find(layer.spec, device, bucket));
      if (training) add(snapshot.find_backward(layer.spec, device, bucket, training->gradient_type));
    }
  }
  std::size_t records = 0;
  if (!files.empty()) {
    if (Status made = make_directories(posix_file_system(), folder, 0700); !made) return made.error();
  }
  for (const auto& [name, file] : files) {
    auto text = tuningdb::record_file_text(file);
    if (!text) return text.error();
    if (auto written =
            write_atomically(posix_file_system(), folder + "/" + name, as_bytes(*text), {.mode = 0644});
        !written)
      return written.error();
    records += file.records.size();
  }
  return records;
}

/// Keys of the kernels that a chooser asks for.
Result<std::set<std::string>> planned_keys(const std::vector<InputLayer>& layers,
                                           const std::vector<std::int64_t>& buckets,
                                           const engine::ConfigChooser& chooser,
                                           engine::KernelBuilder& builder, const PackFor& training) {
  std::set<std::string> keys;
  for (const InputLayer& layer : layers) {
    if (training) {
      auto plan = engine::plan_training(layer.spec, *training, buckets, chooser, builder);
      if (!plan) return plan.error();
      for (const engine::UnitRequest& request : plan->requests) {
        if (!request.unit) return request.unit.error();
        keys.insert((*request.unit)->key.hex());
      }
      continue;
    }
    auto plan = engine::plan_kernels(layer.spec, buckets, chooser, engine::needs_runtime_width(layer.spec));
    if (!plan) return plan.error();
    for (const emit::KernelRequest& request : plan->requests) {
      auto unit = builder.unit(layer.spec, request);
      if (!unit) return unit.error();
      keys.insert((*unit)->key.hex());
    }
  }
  return keys;
}

/// All kernels of one layer, or why one is missing.
Result<std::vector<KernelReport>> build_kernels(const LayerSpec& spec,
                                                const std::vector<std::int64_t>& buckets,
                                                const PackFor& training, const engine::ConfigChooser& chooser,
                                                engine::KernelBuilder& builder,
                                                const engine::BuildHooks& hooks) {
  if (!training) {
    auto build = engine::build_layer(spec, buckets, chooser, builder, hooks);
    if (!build) return build.error();
    if (!build->complete()) return engine::build_error(*build);
    return std::move(build->kernels);
  }
  auto build = engine::build_training(spec, *training, buckets, chooser, builder, hooks);
  if (!build) return build.error();
  for (const engine::BuiltKernel& kernel : build->built)
    if (kernel.error) return *kernel.error;
  return std::move(build->reports);
}

std::string mark_text(const std::vector<KernelReport>& kernels, const std::vector<std::int64_t>& buckets,
                      const model::DeviceProfile& device, std::size_t records) {
  std::vector<std::string> lines;
  for (const KernelReport& kernel : kernels)
    lines.push_back(model::JsonFieldList().text("key", kernel.key).text("name", kernel.name).object());
  std::sort(lines.begin(), lines.end());
  std::string list;
  for (const std::string& line : lines) list += (list.empty() ? "\n" : ",\n") + line;
  return model::JsonFieldList()
             .integer("varmoe_pack", 1)
             .text("library", version())
             .text("device", device.name)
             .text("arch", device.arch)
             .raw("tokens", "[" + join(buckets, ", ") + "]")
             .integer("records", static_cast<std::int64_t>(records))
             .raw("kernels", "[" + list + "]")
             .object() +
         "\n";
}

}  // namespace

Result<PackReport> write_pack(const std::string& folder, const std::vector<InputLayer>& layers,
                              const std::vector<std::int64_t>& buckets, const engine::Toolchain& toolchain,
                              const model::DeviceProfile& device, const PackFor& training, bool progress) {
  if (Status place = check_place(folder); !place) return place.error();
  auto chooser = toolchain.chooser(device);
  if (!chooser) return chooser.error();
  Staging staging(fmt::format("{}.tmp-{}", folder, ::getpid()));
  if (Status made = make_directories(posix_file_system(), staging.path() + "/cubin", 0700); !made)
    return made.error();

  PackReport report;
  const cubin::EntryFolder entries(posix_file_system(), staging.path() + "/cubin",
                                   cubin::EntryFolder::Kind::own);
  engine::KernelBuilder builder(toolchain.builder_settings(device.arch));
  std::mutex mutex;
  std::set<std::string> written;
  engine::BuildHooks hooks;
  hooks.cancel = &interrupted;
  hooks.finish = [&](engine::BuiltKernel& kernel) -> Status {
    {
      const std::lock_guard lock(mutex);
      if (!written.insert(kernel.unit->key.hex()).second) return {};
    }
    KernelBinary binary = *kernel.binary;
    // What differs from one compile to the next is no part of a pack.
    binary.compile_ms = 0;
    binary.log.clear();
    return entries.write(kernel.unit->key, binary);
  };
  std::set<std::string> seen;
  for (const InputLayer& layer : layers) {
    Progress line("packing " + layer.label, progress);
    hooks.progress = [&](std::size_t done, std::size_t total) { line.update(done, total); };
    auto kernels = build_kernels(layer.spec, buckets, training, *chooser, builder, hooks);
    if (!kernels) return kernels.error();
    for (KernelReport& kernel : *kernels) {
      if (seen.insert(kernel.key).second) report.kernels.push_back(std::move(kernel));
    }
  }
  std::set<std::string> of_routers;
  for (const RouterSpec& router : routers_of(layers)) {
    auto requests = router_requests(router, builder);
    if (!requests) return requests.error();
    hooks.progress = nullptr;
    auto built = builder.build(*std::move(requests), hooks);
    if (!built) return built.error();
    for (engine::BuiltKernel& kernel : *built) {
      if (kernel.error) return *kernel.error;
      if (of_routers.insert(kernel.report.key).second) report.kernels.push_back(std::move(kernel.report));
    }
  }
  if (toolchain.tune != TuneMode::off) {
    auto records = write_records(staging.path() + "/tuning", layers, buckets, toolchain, device, training);
    if (!records) return records.error();
    report.records = *records;
  }

  // The proof: with these records in place of all that were at hand here, a server asks for the same kernels.
  engine::Toolchain server = toolchain;
  server.environment.record_misses.clear();
  server.tuning_sources = {};
  if (report.records > 0) server.tuning_sources.environment = {staging.path() + "/tuning"};
  auto there = server.chooser(device);
  if (!there) return there.error();
  auto asked = planned_keys(layers, buckets, *there, builder, training);
  if (!asked) return asked.error();
  if (*asked != seen) {
    return Error(ErrorCode::internal,
                 fmt::format("the packed records choose other kernels ({}) than were packed ({})",
                             asked->size(), seen.size()));
  }
  const std::string mark = mark_text(report.kernels, buckets, device, report.records);
  if (auto status =
          write_atomically(posix_file_system(), staging.path() + "/" + kMark, as_bytes(mark), {.mode = 0644});
      !status)
    return status.error();
  if (Status status = open_to_readers(staging.path()); !status) return status.error();
  auto bytes = bytes_below(staging.path());
  if (!bytes) return bytes.error();
  report.bytes = *bytes;

  std::error_code failed;
  fs::remove_all(folder, failed);
  if (failed) return file_error("replace", folder, failed);
  fs::rename(staging.path(), folder, failed);
  if (failed) return file_error("make", folder, failed);
  staging.published();
  return report;
}

}  // namespace varmoe::tools
