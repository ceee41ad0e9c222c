#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <new>
#include <set>

#include "base/text.hpp"
#include "cuda/driver.hpp"
#include "model/cost_model.hpp"
#include "tools/bench/backend.hpp"
#include "tools/bench/check.hpp"
#include "tools/bench/options.hpp"
#include "tools/bench/router_bench.hpp"
#include "tools/bench/search.hpp"
#include "tools/bench/training_bench.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/output.hpp"

namespace varmoe::tools {
namespace {

Result<std::unique_ptr<Backend>> open_backend(const BenchOptions& options, const Output& out) {
  if (options.device == "cpu") return open_cpu(options);
  if (options.device != "auto") {
    const auto ordinal = parse_uint64(options.device);
    if (!ordinal || *ordinal > 1023)
      return {ErrorCode::invalid_argument, "--device is auto, cpu or a CUDA device number"};
    return open_gpu(options, static_cast<int>(*ordinal));
  }
  // Only where there is no GPU at all is the CPU taken by itself; a GPU that does not work is an error.
  if (auto driver = cuda::Driver::load(); !driver && driver.error().code() == ErrorCode::no_device) {
    out.say("no GPU here, so the CPU backend runs: " + driver.error().message());
    return open_cpu(options);
  }
  return open_gpu(options, 0);
}

std::vector<std::int64_t> rows_per_expert(const oracle::RandomCase& c, std::int64_t tokens) {
  std::vector<std::int64_t> rows(c.spec.expert_widths.size());
  for (std::int64_t i = 0; i < tokens * c.spec.top_k; ++i) {
    const std::int64_t e = c.ids64[static_cast<std::size_t>(i)];
    if (e >= 0 && e < c.spec.num_experts()) ++rows[static_cast<std::size_t>(e)];
  }
  return rows;
}

/// What is known of one token count.
struct Row {
  std::int64_t tokens = 0, experts_hit = 0;
  model::Floor floor;
  std::optional<CheckResult> check;
  std::optional<Measurement> measured;
};

std::string error_text(const oracle::Comparison& c) {
  return fmt::format(
      "Frobenius {:.2e}, worst row {:.2e} (token {}), worst element {:.2f} of its bar (token {}, column {}), "
      "{} rows",
      c.frobenius, c.worst_row, c.worst_row_at, c.worst_element, c.worst_element_row, c.worst_element_column,
      c.compared_rows);
}

void add_json(const Row& row, bool gpu, const Output& out) {
  Json json;
  json.add("tokens", row.tokens).add("experts_hit", row.experts_hit);
  if (row.measured) {
    const double seconds = row.measured->forward.median_us * 1e-6;
    json.add("us", row.measured->forward.median_us)
        .add("best_us", row.measured->forward.best_us)
        .add("spread", row.measured->forward.spread)
        .add("tflops", row.floor.flops / seconds * 1e-12)
        .add("gb_per_s", row.floor.bytes / seconds * 1e-9);
    if (row.measured->replay) json.add("replay_us", row.measured->replay->median_us);
    if (row.measured->flushed) json.add("flushed_us", row.measured->flushed->median_us);
    if (row.measured->eager) json.add("eager_us", row.measured->eager->median_us);
    if (row.measured->host_us) json.add("host_us", *row.measured->host_us);
    if (gpu) {
      json.add("floor_us", row.floor.seconds * 1e6)
          .add("share_of_floor", row.floor.seconds / seconds)
          .add("weight_copies", row.measured->copies);
    }
    for (const StepTime& step : row.measured->steps) json.add("step_us_" + step.name, step.us);
  }
  if (row.check) {
    const oracle::Comparison& c = row.check->comparison;
    json.add("check", row.check->pass())
        .add("repeatable", row.check->repeatable)
        .add("frobenius", c.frobenius)
        .add("worst_row", c.worst_row)
        .add("worst_element", c.worst_element)
        .add("checked_rows", c.compared_rows)
        .add("failure", c.failure);
  }
  out.event("row", json);
}

void add_cells(const Row& row, bool gpu, Table& table) {
  std::vector<std::string> cells{std::to_string(row.tokens), std::to_string(row.experts_hit)};
  if (row.measured) {
    const Measurement& m = *row.measured;
    const double seconds = m.forward.median_us * 1e-6;
    cells.push_back(fmt::format("{:.1f}", m.forward.median_us));
    cells.push_back(fmt::format("{:.1f} %", m.forward.spread * 100));
    if (gpu) {
      cells.push_back(fmt::format("{:.1f}", m.eager->median_us));
      cells.push_back(fmt::format("{:.1f}", *m.host_us));
    }
    cells.push_back(fmt::format("{:.{}f}", row.floor.flops / seconds * 1e-12, gpu ? 1 : 3));
    cells.push_back(fmt::format("{:.1f}", row.floor.bytes / seconds * 1e-9));
    if (gpu) {
      cells.push_back(fmt::format("{:.1f}", row.floor.seconds * 1e6));
      cells.push_back(fmt::format("{:.2f}", row.floor.seconds / seconds));
    }
  } else {
    cells.resize(gpu ? 10 : 6, "-");
  }
  cells.emplace_back(!row.check ? "-" : row.check->pass() ? "ok" : "FAILED");
  table.add(std::move(cells));
}

int bench(const BenchOptions& options, const Output& out) {
  auto tokens = options.token_counts();
  if (!tokens) return out.fail(tokens.error());
  std::vector<std::string> notes;
  auto layers = options.input.read(&notes);
  if (!layers) return out.fail(layers.error());
  const InputLayer& layer = layers->front();
  const LayerSpec& spec = layer.spec;
  if (!oracle::storage_fits(spec, options.parsed_storage())) {
    return out.fail(
        {ErrorCode::invalid_argument,
         fmt::format("--storage {} does not go with these layouts and this gate order", options.storage)});
  }
  auto backend = open_backend(options, out);
  if (!backend) return out.fail(backend.error());
  const bool gpu = (*backend)->profile() != nullptr;

  for (const std::string& note : notes) out.say("note: " + note);
  if (layers->size() > 1)
    out.say(fmt::format("{} different layers; this is {} (--layer chooses)", layers->size(), layer.label));
  out.say(fmt::format("{}: {} experts ({}), top-{}, hidden size {}, {}, {}, {} routing; {}", layer.label,
                      spec.num_experts(), widths_text(spec.expert_widths) + shared_text(spec), spec.top_k,
                      spec.hidden_size, to_string(spec.activation), to_string(spec.dtype), options.routing,
                      (*backend)->description()));

  oracle::CaseOptions case_options;
  case_options.tokens = tokens->back();
  case_options.seed = options.seed;
  case_options.storage = options.parsed_storage();
  case_options.routing = options.parsed_routing();
  oracle::RandomCase layer_case = oracle::make_case(spec, case_options);
  auto report = (*backend)->load(layer_case, *tokens);
  if (!report) return out.fail(report.error());
  out.event("layer", Json()
                         .add("label", layer.label)
                         .add("experts", spec.num_experts())
                         .add("top_k", spec.top_k)
                         .add("hidden_size", spec.hidden_size)
                         .add("widths", spec.expert_widths)
                         .add("shared_widths", spec.shared_widths)
                         .add("shared_gate", spec.shared_gate)
                         .add("activation", to_string(spec.activation))
                         .add("dtype", to_string(spec.dtype))
                         .add("routing", options.routing)
                         .add("backend", (*backend)->description())
                         .add("prepare_ms", report->total_ms)
                         .add("kernels", report->kernels.size()));
  for (const KernelReport& kernel : report->kernels) {
    if (options.detailed) {
      out.say(fmt::format("{} for {} tokens: {} ({}), {} registers, {} spilled, {}", kernel.stage,
                          join(kernel.token_buckets), kernel.config, to_string(kernel.config_source),
                          kernel.registers, kernel.spill_bytes, kernel.origin));
    }
    out.event("kernel", Json()
                            .add("stage", kernel.stage)
                            .add("tokens", kernel.token_buckets)
                            .add("config", kernel.config)
                            .add("config_source", to_string(kernel.config_source))
                            .add("origin", kernel.origin));
  }

  Table table(
      gpu ? std::vector<std::string>{"tokens", "experts hit", "us", "spread", "eager us", "host us",
                                     "TFLOP/s", "GB/s", "floor us", "share of floor", "check"}
          : std::vector<std::string>{"tokens", "experts hit", "us", "spread", "TFLOP/s", "GB/s", "check"});
  // FLOPs and bytes do not depend on the device; the floor does.
  const model::DeviceProfile& device = gpu ? *(*backend)->profile() : model::shipped_profiles().front();
  bool failed = false;
  std::vector<std::string> remarks;
  for (const std::int64_t count : *tokens) {
    if (interrupted) break;
    Row row;
    row.tokens = count;
    const auto rows = rows_per_expert(layer_case, count);
    row.experts_hit = static_cast<std::int64_t>(rows.size()) - std::count(rows.begin(), rows.end(), 0);
    row.floor = model::layer_floor(spec, count, device, rows);
    if (!options.no_check) {
      auto checked = check(**backend, layer_case, count, options.check_rows, options.inject_error);
      if (!checked) return out.fail(checked.error());
      row.check = *checked;
      failed |= !checked->pass();
      const oracle::Comparison& c = checked->comparison;
      if (!c.pass) remarks.push_back(fmt::format("{} tokens: the check FAILED: {}", count, c.failure));
      if (!checked->repeatable)
        remarks.push_back(fmt::format("{} tokens: a second run gave other bits", count));
      if (options.detailed) remarks.push_back(fmt::format("{} tokens: {}", count, error_text(c)));
    }
    if (options.search >= 0) {
      auto found = search(**backend, layer_case, count, options.check_rows,
                          static_cast<std::size_t>(options.search), out);
      if (!found) return out.fail(found.error());
      const double floor_us = row.floor.seconds * 1e6;
      out.event("search", Json()
                              .add("tokens", count)
                              .add("us", found->best.layer_us)
                              .add("fc1", to_string(found->best.fc1))
                              .add("fc2", to_string(found->best.fc2))
                              .add("fc1_us", found->best.fc1_us)
                              .add("fc2_us", found->best.fc2_us)
                              .add("predicted_us", found->predicted.layer_us)
                              .add("predicted_fc1", to_string(found->predicted.fc1))
                              .add("predicted_fc2", to_string(found->predicted.fc2))
                              .add("floor_us", floor_us)
                              .add("tried", found->tried)
                              .add("failed", found->failed));
      remarks.push_back(
          fmt::format("{} tokens: best of {} ({} failed): {:.1f} us ({:.2f} of the floor), fc1 {:.1f} us {}, "
                      "fc2 {:.1f} us {}; the cost "
                      "model's own choice: {:.1f} us",
                      count, found->tried, found->failed, found->best.layer_us,
                      floor_us / found->best.layer_us, found->best.fc1_us, to_string(found->best.fc1),
                      found->best.fc2_us, to_string(found->best.fc2), found->predicted.layer_us));
      failed |= found->failed != 0;
    }
    if (!options.inject_error) {
      auto measured = (*backend)->measure(count);
      if (!measured) return out.fail(measured.error());
      row.measured = *measured;
      double sum = 0;
      for (const StepTime& step : measured->steps) sum += step.us;
      for (const StepTime& step : measured->steps) {
        remarks.push_back(fmt::format("{} tokens: {} {:.1f} us, {:.0f} % of the steps' sum", count, step.name,
                                      step.us, step.us / sum * 100));
      }
    }
    add_cells(row, gpu, table);
    add_json(row, gpu, out);
  }
  out.say(table.text());
  for (const std::string& remark : remarks) out.say(remark);
  if (options.inject_error) {
    out.say(failed ? "one weight was altered, and the check failed as it must"
                   : "one weight was altered, and the check did NOT notice");
  }
  return failed || interrupted ? kSomeFailed : kDone;
}

}  // namespace
}  // namespace varmoe::tools

int main(int argc, char** argv) try {
  using namespace varmoe::tools;
  handle_signals();
  Program app(
      "varmoe-bench",
      "Runs a Mixture-of-Experts layer, checks it against an fp64 oracle, and times it: on a GPU through the "
      "compiled kernels, without one on the CPU backend.",
      "Exit status: 0 done, 1 a check failed, 2 usage, 3 environment.");
  BenchOptions options;
  options.add_options(app);
  if (const auto status = app.parse(argc, argv)) return *status;
  if (options.router) return bench_router(options, Output(options.json));
  if (options.mode != "forward") return bench_training(options, Output(options.json));
  return bench(options, Output(options.json));
} catch (const std::bad_alloc&) {
  fmt::print(stderr,
             "error: out of memory: the layer's weights do not fit; name a smaller layer or fewer tokens\n");
  return varmoe::tools::kEnvironment;
} catch (const std::exception& error) {
  fmt::print(stderr, "error: {} (a bug in varmoe-bench)\n", error.what());
  return varmoe::tools::kSomeFailed;
}
