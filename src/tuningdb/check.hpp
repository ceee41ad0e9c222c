#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/device_profile.hpp"
#include "varmoe/tuning.hpp"

/// Static checks of records: what can be said without a GPU.
namespace varmoe::tuningdb {

/// The device as records name it.
TuningDevice tuning_device(const model::DeviceProfile& profile);
/// Whether a record's device is this profile's, by its name or one of its aliases.
bool is_device(const TuningDevice& device, const model::DeviceProfile& profile);

/// Whether the record's config exists for its layer on its device (model::check_layer_config,
/// of a backward pass model::check_backward_config). The device's
/// limits are those of `own` or of the shipped profile that describes it; of an unknown one, no GPU of its
/// arch has more. invalid_config.
Status check_config(const TuningRecord& record, const model::DeviceProfile* own = nullptr);

/// One sentence per fault of a set of records, in its order: a figure or key out of range, a config outside
/// the space, a key that an earlier record has, a record out of order. Empty: sound. `origin` begins each
/// message.
std::vector<std::string> check_records(std::span<const TuningRecord> records, std::string_view origin);

/// check_records of a file's text, and what its reading had to skip; also where the text is not what varmoe
/// would write of it, which would make the next save a larger diff than it need be.
std::vector<std::string> check_record_file(std::string_view text, std::string_view origin);

}  // namespace varmoe::tuningdb
