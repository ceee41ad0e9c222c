#include "tools/tune/foreign_files.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/strict_json.hpp"
#include "tuningdb/vllm_hints.hpp"

namespace varmoe::tools {
namespace {

constexpr std::size_t kLargestFile = std::size_t{64} << 20;

/// What a file does not say fits everything.
bool fits(const tuningdb::TuningHint& hint, const TuningKey& key) {
  const auto same = [](std::int64_t said, std::int64_t is) { return said == 0 || said == is; };
  return hint.block_m > 0 && hint.block_n > 0 && key.inter_dim.size() == 1 &&
         same(hint.inter_dim, key.inter_dim[0].width) && same(hint.expert, key.expert) &&
         same(hint.model_dim, key.model_dim) && same(hint.topk, key.topk) && hint.token <= 2 * key.token &&
         key.token <= 2 * hint.token;
}

/// Of the configs with the hint's rows a tile, and columns as near as there are, the best predicted.
std::optional<GemmConfig> nearest(const tuningdb::TuningHint& hint, const LayerSpec& spec,
                                  model::GemmStage stage, std::int64_t bucket,
                                  const model::DeviceProfile& device) {
  std::optional<GemmConfig> best;
  std::pair<double, double> least;
  for (const GemmConfig& config : model::gemm_candidates(spec, stage, device)) {
    if (config.block_m != hint.block_m) continue;
    const std::pair<double, double> distance = {
        std::abs(std::log2(static_cast<double>(config.block_n) / hint.block_n)),
        model::predict_gemm_seconds(spec, stage, config, bucket, device)};
    if (best && distance >= least) continue;
    best = config;
    least = distance;
  }
  return best;
}

}  // namespace

Result<tuningdb::CsvImport> read_foreign_file(const std::string& file, const model::DeviceProfile& device) {
  auto text = model::read_input_file(file, kLargestFile);
  if (!text) return std::move(text).error();
  if (!file.ends_with(".json")) return tuningdb::import_aiter_csv(*text, file, device);
  auto hints = tuningdb::import_vllm_config(*text, file);
  if (!hints) return std::move(hints).error();
  tuningdb::CsvImport import;
  import.hints = std::move(hints->hints);
  import.dropped = std::move(hints->dropped);
  return import;
}

std::vector<LayerConfig> configs_like(std::span<const tuningdb::TuningHint> hints,
                                      const tuner::TuningItem& item, const model::DeviceProfile& device) {
  const LayerSpec& spec = item.spec;
  const std::int64_t bucket = item.key.token;
  std::vector<LayerConfig> configs;
  for (const tuningdb::TuningHint& hint : hints) {
    if (!fits(hint, item.key)) continue;
    const auto fc1 = nearest(hint, spec, model::GemmStage::fc1, bucket, device);
    const auto fc2 = nearest(hint, spec, model::GemmStage::fc2, bucket, device);
    if (!fc1 || !fc2) continue;
    LayerConfig config = model::predict_layer_config(spec, bucket, device);
    config.fc1 = *fc1;
    config.fc2 = *fc2;
    if (model::check_layer_config(spec, config, device) &&
        std::find(configs.begin(), configs.end(), config) == configs.end())
      configs.push_back(config);
  }
  return configs;
}

}  // namespace varmoe::tools
