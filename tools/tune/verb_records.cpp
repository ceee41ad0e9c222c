#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "model/device_profile.hpp"
#include "model/strict_json.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/record_text.hpp"
#include "tools/tune/verbs.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/layers.hpp"
#include "tuningdb/store.hpp"

/// The verbs that look after tuning records: show, check, merge.
namespace varmoe::tools {
namespace {

struct RecordsOptions {
  SessionOptions session;
  std::vector<std::string> paths;
  std::string into;
};

int show_verb(const RecordsOptions& options, const Output& out) {
  const auto sources = record_sources(options.session, options.paths);
  if (!sources) return out.fail(sources.error());
  const model::DeviceProfile* device = nullptr;
  Result<model::DeviceProfile> found = Error(ErrorCode::no_device, "");
  if (!options.session.device.empty()) {
    found = model::find_profile(options.session.device);
    if (!found) return out.fail(Error(ErrorCode::invalid_argument, "--device: " + found.error().message()));
    device = &*found;
  }
  const tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), *sources);
  Table table({"device", "layer", "tokens", "us", "cost model's us", "fc1", "fc2", "one launch", "state"});
  Table backward({"device", "layer", "pass", "tokens", "us", "cost model's us", "dh", "dx", "fc1_gradient",
                  "fc2_gradient", "state"});
  for (const tuningdb::LayerFile& file : layers.files) {
    for (const auto& stored : file.contents.records) {
      const TuningRecord& r = stored.record;
      if (device != nullptr && !tuningdb::is_device(r.key.device, *device)) continue;
      const std::string stale = tuningdb::staleness(r);
      const Status usable = tuningdb::check_config(r);
      const std::string state = !usable          ? usable.error().message()
                                : !stale.empty() ? stale
                                : r.verified     ? "verified"
                                                 : "not verified";
      const std::vector<ProductText> products = products_of(r);
      const std::string tokens = std::to_string(r.key.token), us = fmt::format("{:.1f}", r.us),
                        baseline = r.baseline_us > 0 ? fmt::format("{:.1f}", r.baseline_us) : "-";
      if (r.key.pass == TuningPass::backward) {
        backward.add({r.key.device.name, brief(r.key), pass_text(r.key), tokens, us, baseline,
                      products[0].brief, products[1].brief, products[2].brief, products[3].brief, state});
      } else {
        table.add({r.key.device.name, brief(r.key), tokens, us, baseline, products[0].brief,
                   products[1].brief, one_launch_text(r.config), state});
      }
      Json json;
      json.add("from", layers.layers[file.layer].text())
          .add("file", file.path)
          .add("device", r.key.device.name)
          .add("arch", r.key.device.arch)
          .add("layer", layer_text(r.key))
          .add("tokens", r.key.token)
          .add("us", r.us)
          .add("baseline_us", r.baseline_us)
          .add("pass", pass_text(r.key));
      for (const ProductText& product : products) json.add(product.name, product.config);
      if (r.key.pass == TuningPass::forward) json.add("one_launch_tokens", r.config.one_launch.max_tokens);
      out.event("record", json.add("verified", r.verified).add("date", r.date).add("state", state));
    }
  }
  if (table.empty() && backward.empty()) {
    std::vector<std::string> searched;
    for (const tuningdb::Layer& layer : layers.layers) searched.push_back(layer.text());
    out.say("no tuning records in " + join(searched));
  } else {
    if (!table.empty()) out.say(table.text());
    if (!backward.empty()) out.say(backward.text());
  }
  for (const std::string& problem : layers.problems) fmt::print(stderr, "error: {}\n", problem);
  return layers.problems.empty() ? kDone : kSomeFailed;
}

/// The record files that a path names: itself, or a folder's.
Result<std::vector<std::string>> files_of(const std::string& path) {
  std::error_code failed;
  if (!std::filesystem::is_directory(path, failed)) return std::vector<std::string>{path};
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(path, failed))
    if (entry.path().extension() == ".json") files.push_back(entry.path().string());
  if (failed) return Error(ErrorCode::io_error, fmt::format("{}: {}", path, failed.message()));
  std::sort(files.begin(), files.end());
  return files;
}

int check_verb(const RecordsOptions& options, const Output& out) {
  constexpr std::size_t kLargestFile = std::size_t{256} << 20;
  std::size_t faults = 0, checked = 0;
  for (const std::string& path : options.paths) {
    auto files = files_of(path);
    if (!files) return out.fail(files.error());
    for (const std::string& file : *files) {
      auto text = model::read_input_file(file, kLargestFile);
      if (!text) return out.fail(text.error());
      ++checked;
      for (const std::string& fault : tuningdb::check_record_file(*text, file)) {
        ++faults;
        out.say(fault);
        out.event("fault", Json().add("file", file).add("text", fault));
      }
    }
  }
  out.say(fmt::format("{} files checked, {} faults", checked, faults));
  out.event("summary", Json().add("files", checked).add("faults", faults));
  return faults == 0 ? kDone : kSomeFailed;
}

int merge_verb(const RecordsOptions& options, const Output& out) {
  const auto sources = record_sources(options.session, options.paths);
  if (!sources) return out.fail(sources.error());
  const tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), *sources);
  std::vector<TuningRecord> records;
  std::size_t left_out = 0;
  for (const tuningdb::LayerFile& file : layers.files) {
    for (const auto& stored : file.contents.records) {
      if (auto usable = tuningdb::check_config(stored.record); !usable) {
        ++left_out;
        fmt::print(stderr, "left out: {}: {}: {}\n", file.path, to_string(stored.record.key),
                   usable.error().message());
        continue;
      }
      records.push_back(stored.record);
    }
  }
  for (const std::string& problem : layers.problems) fmt::print(stderr, "error: {}\n", problem);
  const tuningdb::TuningStore store(absolute_path(options.into), Log(LogLevel::warn, nullptr));
  auto saved = store.save(records);
  if (!saved) return out.fail(saved.error());
  out.say(fmt::format("{} records taken, {} kept as they were (better ones of the same key), {} left out; {}",
                      saved->saved, saved->kept, left_out, join(saved->files)));
  out.event("summary", Json()
                           .add("saved", saved->saved)
                           .add("kept", saved->kept)
                           .add("left_out", left_out)
                           .add("problems", layers.problems.size())
                           .add("files", saved->files));
  return layers.problems.empty() && left_out == 0 ? kDone : kSomeFailed;
}

}  // namespace

void add_records(Command& app, Action& run) {
  auto* show =
      app.add_subcommand("show", "Shows tuning records: those given, or all that a look-up would see");
  auto shown = std::make_shared<RecordsOptions>();
  show->add_option("paths", shown->paths,
                   "folders or files of records; default VARMOE_TUNING_DB, the user's, the shipped ones");
  show->add_option("--device", shown->session.device,
                   "records of this device alone: h200, a driver's device name, …");
  shown->session.add_cache(*show);
  show->callback([shown, &run] { run = [shown](const Output& out) { return show_verb(*shown, out); }; });

  auto* check = app.add_subcommand(
      "check", "Checks files of tuning records without a GPU: form, ranges, config space, order");
  auto checked = std::make_shared<RecordsOptions>();
  check->add_option("paths", checked->paths, "folders or files of records")->required();
  check->callback(
      [checked, &run] { run = [checked](const Output& out) { return check_verb(*checked, out); }; });

  auto* merge = app.add_subcommand(
      "merge", "Merges tuning records into a folder; of two with one key the better is kept");
  auto merged = std::make_shared<RecordsOptions>();
  merge->add_option("paths", merged->paths, "folders or files of records")->required();
  merge->add_option("--into", merged->into, "folder to merge into; made where it is missing")->required();
  merge->callback([merged, &run] { run = [merged](const Output& out) { return merge_verb(*merged, out); }; });
}

}  // namespace varmoe::tools
