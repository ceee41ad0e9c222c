#include <fmt/core.h>

#include <memory>
#include <string>
#include <vector>

#include "base/atomic_file.hpp"
#include "base/file_system.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/foreign_files.hpp"
#include "tools/tune/verbs.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/layers.hpp"
#include "tuningdb/store.hpp"

/// The verbs that exchange tuning records with other libraries: import, export.
namespace varmoe::tools {
namespace {

struct ImportOptions {
  SessionOptions session;
  std::vector<std::string> files;
  std::string into;
};

struct ExportOptions {
  SessionOptions session;
  std::vector<std::string> paths;
  std::string out;
};

void tell_dropped(const std::vector<std::string>& dropped) {
  for (const std::string& what : dropped) fmt::print(stderr, "left out: {}\n", what);
}

int import_verb(const ImportOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto device = target_device(options.session, toolchain->environment);
  if (!device) return out.fail(device.error());
  std::vector<TuningRecord> records;
  std::size_t hints = 0, dropped = 0;
  for (const std::string& file : options.files) {
    auto import = read_foreign_file(file, *device);
    if (!import) return out.fail(import.error());
    tell_dropped(import->dropped);
    dropped += import->dropped.size();
    hints += import->hints.size();
    records.insert(records.end(), import->records.begin(), import->records.end());
  }
  const tuningdb::TuningStore store(absolute_path(options.into), toolchain->log);
  auto saved = store.save(records);
  if (!saved) return out.fail(saved.error());
  out.say(
      fmt::format("{} records taken, {} kept as they were; {} configs of other kernels, which are hints "
                  "for varmoe-tune tune --hints; {} left out",
                  saved->saved, saved->kept, hints, dropped));
  out.event("summary", Json()
                           .add("saved", saved->saved)
                           .add("kept", saved->kept)
                           .add("hints", hints)
                           .add("dropped", dropped)
                           .add("files", saved->files));
  return kDone;
}

int export_verb(const ExportOptions& options, const Output& out) {
  const auto sources = record_sources(options.session, options.paths);
  if (!sources) return out.fail(sources.error());
  const tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), *sources);
  for (const std::string& problem : layers.problems) fmt::print(stderr, "error: {}\n", problem);
  std::vector<TuningRecord> records;
  for (const tuningdb::LayerFile& file : layers.files)
    for (const auto& stored : file.contents.records) records.push_back(stored.record);
  const tuningdb::CsvExport csv = tuningdb::export_aiter_csv(records);
  tell_dropped(csv.dropped);
  if (options.out.empty()) {
    fmt::print("{}", csv.text);
  } else if (auto written = write_atomically(posix_file_system(), absolute_path(options.out),
                                             as_bytes(csv.text), {.mode = 0666});
             !written) {
    return out.fail(written.error());
  }
  return layers.problems.empty() ? kDone : kSomeFailed;
}

}  // namespace

void add_exchange(Command& app, Action& run) {
  auto* importer = app.add_subcommand(
      "import", "Takes records from AITER's tuned_fmoe.csv, and counts what vLLM's files say");
  auto imported = std::make_shared<ImportOptions>();
  importer->add_option("files", imported->files, "tuned_fmoe.csv, E=…,N=…,device_name=….json")->required();
  importer->add_option("--into", imported->into, "folder of records to merge into; made where it is missing")
      ->required();
  imported->session.add_device(*importer);
  importer->callback(
      [imported, &run] { run = [imported](const Output& out) { return import_verb(*imported, out); }; });

  auto* exporter = app.add_subcommand(
      "export", "Writes tuning records as AITER's tuned_fmoe.csv and says what it cannot hold");
  auto exported = std::make_shared<ExportOptions>();
  exporter->add_option("paths", exported->paths,
                       "folders or files of records; default all that a look-up would see");
  exporter->add_option("--out,-o", exported->out, "file to write; default standard output");
  exported->session.add_cache(*exporter);
  exporter->callback(
      [exported, &run] { run = [exported](const Output& out) { return export_verb(*exported, out); }; });
}

}  // namespace varmoe::tools
