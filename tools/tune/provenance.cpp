#include "tools/tune/provenance.hpp"

#include <fmt/format.h>

#include <ctime>
#include <fstream>
#include <sstream>

#include "base/digest.hpp"
#include "emit/emitter.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/training_build.hpp"
#include "model/cost_model.hpp"
#include "tuningdb/epochs.hpp"
#include "varmoe/version.hpp"

namespace varmoe::tools {
namespace {

/// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  …" or "… Open Kernel Module for x86_64  580…":
/// the first word that looks like a version.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    if (word.size() <= 32 && word.find('.') != std::string::npos &&
        word.find_first_not_of("0123456789.") == std::string::npos)
      return word;
  }
  return {};
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec);
}

}  // namespace

Provenance read_provenance(const engine::Toolchain& toolchain) {
  Provenance provenance;
  provenance.driver = driver_version();
  if (const auto version = toolchain.compiler->at_hand())
    provenance.nvrtc = fmt::format("{}.{}.{}", version->major, version->minor, version->build);
  return provenance;
}

std::string kernel_digest(engine::KernelBuilder& builder, const TuningRecord& record,
                          const model::DeviceProfile& device) {
  const LayerSpec spec = layer_spec_of(record.key);
  const std::int64_t bucket = record.key.token;
  Hasher hasher;
  if (record.key.pass == TuningPass::backward) {
    TrainingOptions options;
    options.gradient_type = record.key.gradient_type;
    engine::TrainingPlan plan;
    engine::ConfigChoice forward;
    forward.config = model::predict_layer_config(spec, bucket, device);
    engine::add_training_bucket(plan, spec, options, bucket, forward,
                                engine::backward_choice(spec, bucket, record.backward, device), builder);
    for (const char* product : {"dh", "dx", "fc1_gradient", "fc2_gradient"}) {
      for (const engine::UnitRequest& request : plan.requests) {
        if (request.stage != product) continue;
        if (!request.unit) return {};
        hasher.field((*request.unit)->key.hex());
      }
    }
    return hasher.finish().hex();
  }
  for (const emit::KernelRequest& request :
       emit::required_kernels(spec, record.config, bucket, engine::needs_runtime_width(spec))) {
    auto unit = builder.unit(spec, request);
    if (!unit) return {};
    hasher.field((*unit)->key.hex());
  }
  return hasher.finish().hex();
}

void complete_record(TuningRecord& record, const Provenance& provenance, engine::KernelBuilder& builder,
                     const model::DeviceProfile& device) {
  record.epochs = record.key.pass == TuningPass::backward ? tuningdb::current_epochs(record.backward)
                                                          : tuningdb::current_epochs(record.config);
  record.library = version();
  record.kernel_digest = kernel_digest(builder, record, device);
  record.nvrtc = provenance.nvrtc;
  record.driver = provenance.driver;
  record.date = now_utc();
  // A driver that cannot tell the GEMMs apart gave the whole pass for each.
  if (record.us1 == record.us && record.us2 == record.us) record.us1 = record.us2 = 0;
  BackwardFigures& p = record.of_products;
  if (p.us_dh == record.us && p.us_dx == record.us)
    p.us_dh = p.us_dx = p.us_fc1_gradient = p.us_fc2_gradient = 0;
}

}  // namespace varmoe::tools
