#include <fmt/core.h>
#include <sys/stat.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/cache_dir.hpp"
#include "base/text.hpp"
#include "engine/kernel_plan.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/duration.hpp"
#include "tools/tune/foreign_files.hpp"
#include "tools/tune/gpus.hpp"
#include "tools/tune/known_records.hpp"
#include "tools/tune/provenance.hpp"
#include "tools/tune/record_text.hpp"
#include "tools/tune/training_options.hpp"
#include "tools/tune/trial_log.hpp"
#include "tools/tune/verbs.hpp"
#include "tools/tune/worker_pool.hpp"
#include "tuner/tuning_run.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/misses.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/store.hpp"

namespace varmoe::tools {
namespace {

using tuner::TuningItem;

struct TuneOptions {
  SessionOptions session;
  LayerInput input;
  std::string tokens = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096";
  std::string misses, into, gpus = "0", time_limit, config_timeout = "30s", trial_log;
  std::vector<std::string> hint_files;
  double min_improvement = 0.01;
  bool retune = false, exhaustive = false;
  TrainingFlags training;
};

/// How a sibling of a tuned layer is searched: the winners there, and few candidates beside them.
constexpr tuner::CandidateLimits kSiblingCandidates{6, 1, 1.5};

/// Where records go, and which ones count as done.
struct Target {
  std::string folder;
  tuningdb::TuningSources sources;
};

Result<Target> target_of(const TuneOptions& options, const engine::Toolchain& toolchain) {
  Target target;
  if (options.into.empty()) {
    // A record that a server here would find needs no other.
    target.folder = toolchain.tuning_sources.user_folder;
    target.sources = toolchain.tuning_sources;
    if (target.folder.empty()) {
      return Error(
          ErrorCode::io_error,
          "there is no folder for the records: set VARMOE_CACHE_DIR or HOME, or name one with --into");
    }
    return target;
  }
  // A folder that is named is to be complete by itself.
  target.folder = absolute_path(options.into);
  target.sources.shipped = {};
  struct stat info;
  if (::stat(target.folder.c_str(), &info) == 0) target.sources.paths = {target.folder};
  return target;
}

/// What the command line asks for; notes are said.
Result<std::vector<TuningItem>> items_of(const TuneOptions& options, const model::DeviceProfile& device,
                                         const Output& out) {
  const TuningDevice here = tuningdb::tuning_device(device);
  std::vector<TuningItem> items;
  if (!options.misses.empty()) {
    auto misses = tuningdb::read_misses(options.misses);
    if (!misses) return misses.error();
    for (const std::string& problem : misses->problems) fmt::print(stderr, "left out: {}\n", problem);
    std::set<std::string> others;
    for (TuningKey& key : misses->keys) {
      if (!tuningdb::is_device(key.device, device)) {
        others.insert(key.device.name);
        continue;
      }
      key.device = here;
      items.push_back({layer_spec_of(key), std::move(key)});
    }
    for (const std::string& name : others)
      out.say(fmt::format("note: {} has misses of {} too, which are tuned on that", options.misses, name));
    return items;
  }
  std::vector<std::string> notes;
  auto layers = options.input.read(&notes);
  if (!layers) return layers.error();
  auto tokens = parse_counts(options.tokens, "--tokens");
  if (!tokens) return tokens.error();
  PrepareOptions prepare;
  prepare.tokens = *tokens;
  auto buckets = engine::buckets_to_prepare(prepare);
  if (!buckets) return buckets.error();
  for (const std::string& note : notes) out.say("note: " + note);
  const auto training = options.training.options();
  if (training && !training->save_preactivation)
    out.say(
        "note: a backward pass's four products are the same with and without --recompute: one record serves "
        "both");
  for (const InputLayer& layer : *layers) {
    for (const std::int64_t bucket : *buckets) {
      TuningKey key = make_tuning_key(layer.spec, here, bucket);
      // The order of experts is no part of a key: layers that share one share its record.
      const LayerSpec spec = layer_spec_of(key);
      items.push_back({spec, std::move(key)});
      if (!training) continue;
      items.push_back({spec, make_backward_tuning_key(layer.spec, here, bucket, training->gradient_type)});
    }
  }
  return items;
}

/// One run from its options to its exit status.
class Tuning {
 public:
  Tuning(const TuneOptions& options, const Output& out, engine::Toolchain toolchain, Gpus gpus, Target target)
      : options_(options),
        out_(out),
        toolchain_(std::move(toolchain)),
        gpus_(std::move(gpus)),
        target_(std::move(target)),
        known_(target_.sources, gpus_.profile),
        store_(target_.folder, toolchain_.log),
        builder_(toolchain_.builder_settings(gpus_.profile.arch)),
        provenance_(read_provenance(toolchain_)),
        progress_("tuning", !out.json()) {
    for (const std::string& problem : known_.problems()) fmt::print(stderr, "note: {}\n", problem);
  }

  Status read_hints() {
    for (const std::string& file : options_.hint_files) {
      auto read = read_foreign_file(file, gpus_.profile);
      if (!read) return read.error();
      for (const std::string& what : read->dropped) fmt::print(stderr, "left out: {}\n", what);
      hints_.insert(hints_.end(), read->hints.begin(), read->hints.end());
      // Records of ours in another library's file count as unverified: they are hints as well.
      for (TuningRecord& record : read->records) known_.add(std::move(record));
    }
    return {};
  }

  Status open_trial_log() {
    if (options_.trial_log == "none") return {};
    std::string path = options_.trial_log;
    if (path.empty()) {
      // Beside the records, whose folder the first save would make.
      if (auto made = make_directories(posix_file_system(), target_.folder, 0700); !made) return made;
      path = target_.folder + "/" + tuningdb::record_file_name(tuningdb::tuning_device(gpus_.profile)) +
             "l";  // nvidia-h200.jsonl
    }
    auto log = TrialLog::open(path);
    if (!log) return log.error();
    trials_.emplace(*std::move(log));
    return {};
  }

  int run(const std::vector<TuningItem>& items, std::optional<double> time_limit,
          std::chrono::milliseconds config_timeout) {
    tuner::TuningOptions options;
    options.retune = options_.retune;
    options.time_limit_seconds = time_limit;
    options.cancel = &interrupted;
    options.search.min_improvement = options_.min_improvement;
    if (options_.exhaustive) options.search.candidates = {0, 0, 1e30};
    tuner::TuningRun run(gpus_.profile, std::move(options), callbacks());
    for (const TuningItem& item : items) run.add(item);
    auto workers = make_workers(gpus_, options_.session, config_timeout, toolchain_.log);
    std::vector<tuner::Measurer*> measurers;
    for (const auto& worker : workers) measurers.push_back(worker.get());
    const tuner::TuningReport report = run.run(measurers);
    progress_.erase();
    return conclude(report);
  }

 private:
  tuner::TuningCallbacks callbacks() {
    tuner::TuningCallbacks c;
    c.is_fresh = [this](const TuningKey& key) { return known_.is_fresh(key); };
    c.hints = [this](const TuningItem& item) {
      auto hints = known_.hints(item.key);
      for (LayerConfig& config : configs_like(hints_, item, gpus_.profile))
        hints.push_back(std::move(config));
      return hints;
    };
    c.backward_hints = [this](const TuningItem& item) { return known_.backward_hints(item.key); };
    c.adjust = [this](const TuningItem& item, tuner::SearchOptions& search) {
      begin(item);
      if (options_.exhaustive || !known_.has_sibling(item.key)) return;
      search.candidates = kSiblingCandidates;
      search.finalists = 2;
    };
    c.complete = [this](TuningRecord& record, const tuner::Measurer&) {
      complete_record(record, provenance_, builder_, gpus_.profile);
    };
    c.save = [this](const TuningRecord& record) -> Status {
      auto saved = store_.save({&record, 1});
      if (!saved) return saved.error();
      known_.add(record);
      return {};
    };
    c.progress = [this](const tuner::TuningProgress& p) { tell(p); };
    c.trial = [this](const TuningItem& item, const tuner::Trial& trial) { tell(item, trial); };
    c.item_done = [this](const TuningItem& item, const tuner::SearchOutcome& outcome) {
      tell(item, outcome);
    };
    return c;
  }

  static std::string tokens_text(const TuningKey& key) {
    return fmt::format("{} tokens{}", key.token,
                       key.pass == TuningPass::backward ? ", " + pass_text(key) : "");
  }
  void begin(const TuningItem& item) {
    under_way_ = fmt::format("{}, {}", tokens_text(item.key), layer_text(item.key));
    tried_ = 0;
    progress_.update(done_, total_, under_way_);
  }
  void tell(const tuner::TuningProgress& p) {
    total_ = p.total;
    done_ = p.done;
    progress_.update(done_, total_);
    Json json;
    json.add("total", p.total)
        .add("done", p.done)
        .add("failed", p.failed)
        .add("elapsed_s", p.elapsed_seconds);
    if (p.seconds_left) json.add("left_s", *p.seconds_left);
    out_.event("progress", json);
  }
  void tell(const TuningItem& item, const tuner::Trial& trial) {
    if (trials_) trials_->add(item.key, trial);
    if (!trial.failure.empty())
      toolchain_.log.info(
          "{}: {}: {}", tokens_text(item.key),
          trial.pass == TuningPass::backward ? tuner::text_of(trial.products) : tuner::text_of(trial.config),
          trial.failure);
    ++tried_;
    progress_.update(done_, total_, fmt::format("{}: {} trials", tokens_text(item.key), tried_));
  }
  void tell(const TuningItem& item, const tuner::SearchOutcome& outcome) {
    progress_.erase();
    const TuningRecord& r = outcome.record;
    Json json;
    json.add("layer", layer_text(item.key))
        .add("pass", pass_text(item.key))
        .add("tokens", item.key.token)
        .add("tried", outcome.tried)
        .add("failed_configs", outcome.failed)
        .add("found", outcome.found);
    if (!outcome.found) {
      out_.event("item", json.add("failure", outcome.failure));
      return;
    }
    const bool backward = r.key.pass == TuningPass::backward;
    json.add("us", r.us).add("baseline_us", r.baseline_us).add("spread", r.spread);
    std::string configs;
    for (const ProductText& product : products_of(r)) {
      json.add(product.name, product.config);
      if (backward) json.add(fmt::format("us_{}", product.name), product.us);
      configs += fmt::format("{}{} {}", configs.empty() ? "" : "; ", product.name, product.brief);
    }
    if (!backward)
      json.add("us1", r.us1).add("us2", r.us2).add("one_launch_tokens", r.config.one_launch.max_tokens);
    out_.event("item", json.add("tflops", r.tflops).add("gb_per_s", r.bw).add("verified", r.verified));
    out_.say(fmt::format(
        "{:>6} tokens{}  {:>9.1f} us  ({}; spread {:.1f} %, {} configs, {} failed)  {}{}  [{}]",
        item.key.token, backward ? ", " + pass_text(item.key) : "", r.us,
        r.baseline_us > 0 ? fmt::format("cost model's choice {:.1f}", r.baseline_us) : "no baseline",
        r.spread * 100, outcome.tried, outcome.failed, configs,
        r.config.one_launch.max_tokens > 0 ? "; one launch " + one_launch_text(r.config) : "",
        layer_text(item.key)));
  }

  int conclude(const tuner::TuningReport& report) {
    for (const tuner::ItemFailure& failure : report.failures)
      fmt::print(stderr, "error: {}: {}\n", to_string(failure.key), failure.reason);
    for (const std::string& lost : report.lost_measurers) fmt::print(stderr, "error: {}\n", lost);
    out_.say(fmt::format("{} of {} tuned, {} were there already, {} failed, {} left{}; records in {}",
                         report.tuned, report.items, report.fresh, report.failed, report.left,
                         report.left > 0
                             ? fmt::format(" ({}; the same command goes on with them)", to_string(report.end))
                             : "",
                         target_.folder));
    out_.event("summary", Json()
                              .add("items", report.items)
                              .add("fresh", report.fresh)
                              .add("tuned", report.tuned)
                              .add("failed", report.failed)
                              .add("left", report.left)
                              .add("end", to_string(report.end))
                              .add("folder", target_.folder)
                              .add("lost_workers", report.lost_measurers));
    if (report.end == tuner::RunEnd::no_measurer) return kEnvironment;
    return report.failed == 0 && report.left == 0 ? kDone : kSomeFailed;
  }

  const TuneOptions& options_;
  const Output& out_;
  engine::Toolchain toolchain_;
  Gpus gpus_;
  Target target_;
  KnownRecords known_;
  tuningdb::TuningStore store_;
  engine::KernelBuilder builder_;
  Provenance provenance_;
  std::vector<tuningdb::TuningHint> hints_;
  std::optional<TrialLog> trials_;
  Progress progress_;
  std::size_t total_ = 0, done_ = 0, tried_ = 0;
  std::string under_way_;
};

int tune_verb(const TuneOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  std::optional<double> time_limit;
  if (!options.time_limit.empty()) {
    auto seconds = parse_duration(options.time_limit, "--time-limit");
    if (!seconds) return out.fail(seconds.error());
    time_limit = *seconds;
  }
  auto config_timeout = parse_duration(options.config_timeout, "--config-timeout");
  if (!config_timeout) return out.fail(config_timeout.error());
  if (options.misses.empty() == options.input.empty()) {
    return out.fail(
        {ErrorCode::invalid_argument,
         "name what to tune: a layer or model (--model FILE, --set NAME, or flags), or --misses FILE"});
  }
  if (options.training.training && !options.misses.empty()) {
    return out.fail(
        {ErrorCode::invalid_argument,
         "--training goes with layers; a file of --misses says of each miss which pass it is of"});
  }
  // What is wrong with the input is told before what is missing on this machine.
  if (options.misses.empty()) {
    if (auto layers = options.input.read(nullptr); !layers) return out.fail(layers.error());
    if (auto tokens = parse_counts(options.tokens, "--tokens"); !tokens) return out.fail(tokens.error());
  } else if (auto misses = tuningdb::read_misses(options.misses); !misses) {
    return out.fail(misses.error());
  }
  auto gpus = find_gpus(options.gpus, toolchain->environment);
  if (!gpus) return out.fail(gpus.error());
  auto items = items_of(options, gpus->profile, out);
  if (!items) return out.fail(items.error());
  auto target = target_of(options, *toolchain);
  if (!target) return out.fail(target.error());

  out.say(fmt::format("{} items on {} GPU{} ({}, {}, {} SMs)", items->size(), gpus->ordinals.size(),
                      gpus->ordinals.size() == 1 ? "" : "s", gpus->profile.name, gpus->profile.arch,
                      gpus->profile.sm_count));
  Tuning tuning(options, out, *std::move(toolchain), *std::move(gpus), *std::move(target));
  if (Status status = tuning.read_hints(); !status) return out.fail(status.error());
  if (Status status = tuning.open_trial_log(); !status) return out.fail(status.error());
  return tuning.run(*items, time_limit,
                    std::chrono::milliseconds(static_cast<std::int64_t>(*config_timeout * 1000)));
}

}  // namespace

void add_tune(Command& app, Action& run) {
  auto* verb = app.add_subcommand("tune",
                                  "Measures the best configs on the GPUs here and keeps them as tuning "
                                  "records; goes on where it stopped");
  auto options = std::make_shared<TuneOptions>();
  options->input.add_options(*verb);
  verb->add_option("--tokens", options->tokens, "token counts, e.g. 1,64,4096")->capture_default_str();
  verb->add_option("--misses", options->misses,
                   "tune what a server met and had no record for: a file of VARMOE_RECORD_MISSES");
  verb->add_option("--into", options->into,
                   "folder of records to add to; default the user's, beside the cubin cache");
  verb->add_option("--hints", options->hint_files,
                   "tuning files of other libraries to begin the search with: tuned_fmoe.csv, "
                   "E=…,N=…,device_name=….json");
  verb->add_option("--gpus", options->gpus, "CUDA device numbers that share the work, e.g. 0,1, or all")
      ->capture_default_str();
  verb->add_option("--time-limit", options->time_limit,
                   "stop after this time (90s, 10m, 2h), keeping what is done");
  verb->add_option("--config-timeout", options->config_timeout, "a config that takes longer has failed")
      ->capture_default_str();
  verb->add_option("--min-improvement", options->min_improvement,
                   "share by which a config must beat the cost model's choice to replace it")
      ->capture_default_str()
      ->range(0.0, 1.0);
  verb->add_flag("--retune", options->retune, "measure again what has a fresh record");
  verb->add_flag("--exhaustive", options->exhaustive,
                 "try every config of the space, not the promising ones: many times longer");
  verb->add_option(
      "--trial-log", options->trial_log,
      "file that every trial is appended to, for report; none: no log; default beside the records");
  options->training.add_options(
      *verb, "tune the backward pass too: a record of its own for the four products of a layer that learns");
  options->session.add_cache(*verb);
  verb->add_option("--jobs,-j", options->session.threads,
                   "compile threads of each GPU's worker; 0: the cores shared out")
      ->range(0, 1024);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return tune_verb(*options, out); }; });
}

}  // namespace varmoe::tools
