#include <fmt/core.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "base/thread_pool.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/duration.hpp"
#include "tools/tune/gpus.hpp"
#include "tools/tune/record_text.hpp"
#include "tools/tune/verbs.hpp"
#include "tools/tune/worker_pool.hpp"
#include "tuner/measurer.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/layers.hpp"

namespace varmoe::tools {
namespace {

struct VerifyOptions {
  SessionOptions session;
  std::vector<std::string> paths;
  std::string gpus = "0", config_timeout = "60s";
};

/// What a run of a record gave.
struct Verified {
  const TuningRecord* record = nullptr;
  tuner::Measurement measurement;
  std::string fault;  ///< empty: right
};

/// Runs records one after another on a worker of its own until none is left.
class Verification {
 public:
  Verification(std::vector<const TuningRecord*> records, const Output& out)
      : records_(std::move(records)), out_(out), progress_("verifying", !out.json()) {}

  void serve(tuner::WorkerProcess& worker) {
    while (const TuningRecord* record = take()) {
      tuner::MeasureRequest request{layer_spec_of(record->key), record->key.token, tuner::Effort::normal};
      request.pass = record->key.pass;
      request.gradient_type = record->key.gradient_type;
      if (request.pass == TuningPass::backward) {
        request.products = {record->backward};
      } else {
        request.configs = {record->config};
      }
      auto measured = tuner::measure_all(worker, request);
      const std::lock_guard lock(mutex_);
      if (!measured) {
        if (error_.empty() && !interrupted) error_ = measured.error().message();
        return;
      }
      done_.push_back({record, measured->front(), tuner::fault_of(measured->front())});
      tell(done_.back());
    }
  }

  /// Of the workers, the first that gave up before all was done.
  const std::string& error() const noexcept { return error_; }
  const std::vector<Verified>& done() const noexcept { return done_; }
  void end_progress() { progress_.erase(); }

 private:
  const TuningRecord* take() {
    const std::lock_guard lock(mutex_);
    return interrupted || next_ == records_.size() ? nullptr : records_[next_++];
  }
  void tell(const Verified& v) {
    const TuningRecord& r = *v.record;
    progress_.erase();
    Json json;
    const std::string layer =
        layer_text(r.key) + (r.key.pass == TuningPass::backward ? ", " + pass_text(r.key) : "");
    json.add("layer", layer_text(r.key))
        .add("pass", pass_text(r.key))
        .add("tokens", r.key.token)
        .add("record_us", r.us)
        .add("right", v.fault.empty());
    if (v.fault.empty()) {
      json.add("us", v.measurement.us)
          .add("skewed_us", v.measurement.skewed_us)
          .add("spread", v.measurement.spread);
      out_.say(fmt::format("{:>6} tokens  right  {:>9.1f} us, the record says {:.1f} ({:+.1f} %)  [{}]",
                           r.key.token, v.measurement.us, r.us, (v.measurement.us / r.us - 1) * 100, layer));
    } else {
      json.add("fault", v.fault);
      out_.say(fmt::format("{:>6} tokens  WRONG  {}  [{}]", r.key.token, v.fault, layer));
    }
    out_.event("record", json);
    progress_.update(done_.size(), records_.size());
  }

  std::vector<const TuningRecord*> records_;
  const Output& out_;
  std::mutex mutex_;
  std::size_t next_ = 0;
  std::vector<Verified> done_;
  std::string error_;
  Progress progress_;
};

int verify_verb(const VerifyOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto timeout = parse_duration(options.config_timeout, "--config-timeout");
  if (!timeout) return out.fail(timeout.error());
  const auto sources = record_sources(options.session, options.paths);
  if (!sources) return out.fail(sources.error());
  auto gpus = find_gpus(options.gpus, toolchain->environment);
  if (!gpus) return out.fail(gpus.error());

  const tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), *sources);
  for (const std::string& problem : layers.problems) fmt::print(stderr, "error: {}\n", problem);
  std::vector<const TuningRecord*> records;
  std::size_t others = 0, unusable = 0;
  for (const tuningdb::LayerFile& file : layers.files) {
    for (const auto& stored : file.contents.records) {
      if (!tuningdb::is_device(stored.record.key.device, gpus->profile)) {
        ++others;
      } else if (Status usable = tuningdb::check_config(stored.record, &gpus->profile); !usable) {
        ++unusable;
        fmt::print(stderr, "error: {}: {}: {}\n", file.path, to_string(stored.record.key),
                   usable.error().message());
      } else {
        records.push_back(&stored.record);
      }
    }
  }
  if (others > 0) out.say(fmt::format("note: {} records of other devices are passed over", others));
  Verification verification(records, out);
  auto workers =
      make_workers(*gpus, options.session,
                   std::chrono::milliseconds(static_cast<std::int64_t>(*timeout * 1000)), toolchain->log);
  parallel_for(workers.size(), static_cast<int>(workers.size()),
               [&](std::size_t i) { verification.serve(*workers[i]); });
  verification.end_progress();
  std::size_t wrong = 0;
  for (const Verified& v : verification.done()) wrong += v.fault.empty() ? 0 : 1;
  const std::size_t left = records.size() - verification.done().size();
  if (!verification.error().empty()) fmt::print(stderr, "error: {}\n", verification.error());
  out.say(fmt::format("{} records of {}: {} right, {} wrong, {} not run", records.size() + unusable,
                      gpus->profile.name, verification.done().size() - wrong, wrong, left + unusable));
  out.event("summary", Json()
                           .add("records", records.size() + unusable)
                           .add("right", verification.done().size() - wrong)
                           .add("wrong", wrong)
                           .add("not_run", left + unusable)
                           .add("other_devices", others)
                           .add("interrupted", interrupted.load()));
  if (left > 0 && !interrupted && verification.done().empty()) return kEnvironment;
  // Whoever asks for a check wants to know that nothing was checked.
  return wrong + left + unusable == 0 && !records.empty() && layers.problems.empty() ? kDone : kSomeFailed;
}

}  // namespace

void add_verify(Command& app, Action& run) {
  auto* verb = app.add_subcommand(
      "verify", "Runs every tuning record of the GPU here and compares the result with a reference");
  auto options = std::make_shared<VerifyOptions>();
  verb->add_option("paths", options->paths,
                   "folders or files of records; default all that a look-up would see");
  verb->add_option("--gpus", options->gpus, "CUDA device numbers that share the work, e.g. 0,1, or all")
      ->capture_default_str();
  verb->add_option("--config-timeout", options->config_timeout, "a record that takes longer has failed")
      ->capture_default_str();
  options->session.add_cache(*verb);
  verb->add_option("--jobs,-j", options->session.threads,
                   "compile threads of each GPU's worker; 0: the cores shared out")
      ->range(0, 1024);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return verify_verb(*options, out); }; });
}

}  // namespace varmoe::tools
