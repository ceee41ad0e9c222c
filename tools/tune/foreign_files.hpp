#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuner/search.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/hint.hpp"
#include "varmoe/error.hpp"

/// What other libraries' tuning files are to ours.
namespace varmoe::tools {

/// Reads AITER's tuned_fmoe.csv or one of vLLM's E=…,N=…,device_name=….json: records of ours, hints of other
/// kernels.
Result<tuningdb::CsvImport> read_foreign_file(const std::string& file, const model::DeviceProfile& device);

/// Configs of ours with the tiles that the hints for this layer have, at half to twice its tokens: a place
/// for a search to begin. Distinct; none where no config has such a tile.
std::vector<LayerConfig> configs_like(std::span<const tuningdb::TuningHint> hints,
                                      const tuner::TuningItem& item, const model::DeviceProfile& device);

}  // namespace varmoe::tools
