#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/device_profile.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::engine {

/// Tile overrides as given: by the API, or by the environment. Empty: none.
struct OverrideTexts {
  std::string api_fc1, api_fc2;  ///< EngineOptions::fc1_config, fc2_config
  std::string env_fc1, env_fc2;  ///< VARMOE_FC1_CONFIG, VARMOE_FC2_CONFIG
  std::string env_both;          ///< VARMOE_CONFIG
};

struct ConfigChoice {
  LayerConfig config;
  ConfigSource source = ConfigSource::predicted;
};

/// Chooses the config of each token bucket: override by the API, else by the environment, else the cost
/// model. An override replaces the keys that it names and leaves the others as the cost model has them.
/// Immutable; thread-safe.
class ConfigChooser {
 public:
  /// invalid_config for an override text of the API, invalid_environment for one of the environment.
  static Result<ConfigChooser> create(const model::DeviceProfile& device, const OverrideTexts& texts);

  /// Rejects a config outside the config space or above the device's limits (invalid_config), before anything
  /// is compiled; the message names the override that asked for it, and the choices.
  Result<ConfigChoice> choose(const LayerSpec& spec, std::int64_t bucket) const;

  const model::DeviceProfile& device() const noexcept { return device_; }

 private:
  struct Rule {
    GemmOverride change;
    std::string origin;  ///< for messages: "EngineOptions::fc1_config", "VARMOE_CONFIG", …
    bool fc1 = false, fc2 = false;
  };
  Status add_rules(std::string_view text, const char* origin, ErrorCode code, bool fc1, bool fc2);

  /// The cost model walks the config space; the layers of a model that differ in the order of their experts
  /// alone ask once.
  LayerConfig predict(const LayerSpec& spec, std::int64_t bucket) const;

  model::DeviceProfile device_;
  std::vector<Rule> rules_;  ///< later ones win
  struct Memory;
  std::shared_ptr<Memory> memory_;
};

}  // namespace varmoe::engine
