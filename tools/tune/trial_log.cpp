#include "tools/tune/trial_log.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/digest.hpp"
#include "base/text.hpp"
#include "model/json_fields.hpp"
#include "model/json_writer.hpp"
#include "model/strict_json.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tools {
namespace {

constexpr std::size_t kLargestLog = std::size_t{256} << 20;
constexpr double kLargest = 1e12;

}  // namespace

std::string key_digest(const TuningKey& key) {
  return Hasher().field(tuningdb::sort_key(key)).finish().hex();
}

Result<TrialLog> TrialLog::open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr)
    return Error(ErrorCode::io_error,
                 fmt::format("cannot write the log of trials {}: {}", path, std::strerror(errno)));
  return TrialLog(file);
}

void TrialLog::add(const TuningKey& key, const tuner::Trial& trial) {
  model::JsonFieldList line;
  line.text("key", key_digest(key)).integer("token", key.token).text("effort", to_string(trial.effort));
  const BackwardConfig& p = trial.products;
  if (trial.pass == TuningPass::backward) {
    line.text("dh", to_string(p.dh))
        .text("dx", to_string(p.dx))
        .text("fc1_gradient", to_string(p.fc1_gradient))
        .text("fc2_gradient", to_string(p.fc2_gradient));
  } else {
    line.text("fc1", to_string(trial.config.fc1))
        .text("fc2", to_string(trial.config.fc2))
        .integer("one_launch", trial.config.one_launch.max_tokens);
  }
  if (trial.failure.empty()) {
    const tuner::Measurement& m = trial.measurement;
    line.real("us", m.us).real("skewed_us", m.skewed_us);
    if (m.products) {
      line.real("dh_us", m.products->us_dh)
          .real("dx_us", m.products->us_dx)
          .real("fc1_gradient_us", m.products->us_fc1_gradient)
          .real("fc2_gradient_us", m.products->us_fc2_gradient);
    } else {
      line.real("fc1_us", m.fc1_us).real("fc2_us", m.fc2_us);
    }
    line.real("spread", m.spread);
  } else {
    line.text("failure", printable(trial.failure, 400));
  }
  const std::string text = "\n" + line.object();  // a cut line before it stays alone
  std::fwrite(text.data(), 1, text.size(), file_.get());
  std::fflush(file_.get());
}

Result<std::map<std::string, std::vector<LoggedTrial>>> read_trials(const std::string& path) {
  std::map<std::string, std::vector<LoggedTrial>> trials;
  struct stat info;
  if (::stat(path.c_str(), &info) != 0 && errno == ENOENT) return trials;
  auto text = model::read_input_file(path, kLargestLog);
  if (!text) return text.error();
  for (const std::string_view line : split(*text, '\n')) {
    const auto json = model::parse_strict_json(line);
    if (!json) continue;
    try {
      const model::JsonFields fields(*json, "trial", model::NullField::is_wrong);
      if (fields.real_or("one_launch", 0, kLargest, 0) > 0) continue;  // says nothing of either GEMM
      LoggedTrial trial;
      trial.effort = fields.string("effort");
      trial.failure = fields.string_or_empty("failure");
      const auto figure = [&](const char* name) { return fields.real_or(name, 0, kLargest, 0); };
      trial.us = figure("us");
      trial.skewed_us = figure("skewed_us");
      const std::vector<std::string> gemms =
          fields.has("dh") ? std::vector<std::string>{"dh", "dx", "fc1_gradient", "fc2_gradient"}
                           : std::vector<std::string>{"fc1", "fc2"};
      for (const std::string& gemm : gemms) {
        trial.configs[gemm] = fields.string(gemm);
        trial.gemm_us[gemm] = figure((gemm + "_us").c_str());
      }
      trial.spread = figure("spread");
      trials[fields.string("key")].push_back(std::move(trial));
    } catch (const model::FieldError&) {
      continue;
    }
  }
  return trials;
}

}  // namespace varmoe::tools
