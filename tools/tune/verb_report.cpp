#include <fmt/core.h>

#include <memory>
#include <string>
#include <vector>

#include "base/atomic_file.hpp"
#include "base/file_system.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/record_text.hpp"
#include "tools/tune/report_data.hpp"
#include "tools/tune/report_html.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct ReportOptions {
  SessionOptions session;
  std::vector<std::string> paths, trial_logs;
  std::string html;
};

void print(const ReportData& data, const Output& out) {
  for (const ReportLayer& layer : data.layers) {
    out.say(fmt::format("{}: {}", layer.device, layer.layer));
    std::vector<std::string> columns = {"tokens",          "us",   "floor us", "share of floor",
                                        "cost model's us", "gain", "trials"};
    for (const ProductText& product : products_of(layer.buckets.front().record))
      columns.emplace_back(product.name);
    columns.emplace_back("");
    Table table(columns);
    for (const ReportBucket& b : layer.buckets) {
      const TuningRecord& r = b.record;
      std::vector<std::string> cells = {
          std::to_string(r.key.token),
          fmt::format("{:.1f}", r.us),
          b.floor_us ? fmt::format("{:.1f}", *b.floor_us) : "-",
          b.floor_us ? fmt::format("{:.2f}", *b.floor_us / r.us) : "-",
          r.baseline_us > 0 ? fmt::format("{:.1f}", r.baseline_us) : "-",
          r.baseline_us > 0 ? fmt::format("{:+.1f} %", (r.baseline_us / r.us - 1) * 100) : "-",
          std::to_string(b.trials.size())};
      for (const ProductText& product : products_of(r)) cells.push_back(product.brief);
      cells.emplace_back(!b.stale.empty() ? b.stale : r.verified ? "verified" : "not verified");
      table.add(cells);
      Json json;
      json.add("device", layer.device)
          .add("layer", layer.layer)
          .add("pass", pass_text(r.key))
          .add("tokens", r.key.token)
          .add("us", r.us)
          .add("baseline_us", r.baseline_us)
          .add("trials", b.trials.size())
          .add("from", b.from)
          .add("stale", b.stale)
          .add("verified", r.verified);
      if (b.floor_us) json.add("floor_us", *b.floor_us).add("share_of_floor", *b.floor_us / r.us);
      out.event("record", json);
    }
    out.say(table.text() + "\n");
  }
  if (data.layers.empty()) out.say("no tuning records");
}

int report_verb(const ReportOptions& options, const Output& out) {
  const auto sources = record_sources(options.session, options.paths);
  if (!sources) return out.fail(sources.error());
  std::vector<std::string> logs;
  for (const std::string& log : options.trial_logs) logs.push_back(absolute_path(log));
  const ReportData data = collect_report(*sources, logs);
  print(data, out);
  for (const std::string& problem : data.problems) fmt::print(stderr, "error: {}\n", problem);
  if (!options.html.empty()) {
    const std::string page = report_html(data);
    if (auto written = write_atomically(posix_file_system(), absolute_path(options.html), as_bytes(page),
                                        {.mode = 0666});
        !written)
      return out.fail(written.error());
    out.say("wrote " + options.html);
    out.event("written", Json().add("path", options.html));
  }
  return data.problems.empty() ? kDone : kSomeFailed;
}

}  // namespace

void add_report(Command& app, Action& run) {
  auto* verb = app.add_subcommand(
      "report", "Shows winners against floor and cost model, bucket by bucket; --html for a page");
  auto options = std::make_shared<ReportOptions>();
  verb->add_option("paths", options->paths,
                   "folders or files of records; default all that a look-up would see");
  verb->add_option("--html", options->html,
                   "write one self-contained page, with the landscape of the trials");
  verb->add_option("--trials", options->trial_logs, "logs of trials beside those that lie with the records");
  options->session.add_cache(*verb);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return report_verb(*options, out); }; });
}

}  // namespace varmoe::tools
