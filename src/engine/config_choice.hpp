#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.hpp"
#include "model/device_profile.hpp"
#include "model/gradient_config.hpp"
#include "tuningdb/misses.hpp"
#include "tuningdb/snapshot.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/tuning.hpp"

namespace varmoe::engine {

/// One override text and who gave it.
struct OverrideText {
  std::string text;    ///< empty: none
  std::string origin;  ///< for messages: "EngineOptions::dh_config", "VARMOE_DH_CONFIG"
  ErrorCode code = ErrorCode::invalid_environment;  ///< of a text that cannot be read
};

/// Tile overrides as given: by the API, or by the environment. Empty: none.
struct OverrideTexts {
  std::string api_fc1, api_fc2;   ///< EngineOptions::fc1_config, fc2_config
  std::string env_fc1, env_fc2;   ///< VARMOE_FC1_CONFIG, VARMOE_FC2_CONFIG
  std::string env_both;           ///< VARMOE_CONFIG
  OverrideText dh, dx, dw1, dw2;  ///< of a backward pass: the API's, else the environment's
};

/// Where configs come from.
struct ChoiceOrigin {
  ConfigSource source = ConfigSource::predicted;
  /// What the config is, or was before an override changed some keys of it.
  MatchQuality quality = MatchQuality::predicted;
  /// Layer and file of the tuning record; empty when there is none.
  std::string record;
  /// The overrides that changed it, with where each came from: `VARMOE_FC1_CONFIG "stages=3"`; empty: none.
  std::string changed_by;
};

struct ConfigChoice : ChoiceOrigin {
  LayerConfig config;
};

/// Configs of the products of a backward pass.
struct BackwardChoice : ChoiceOrigin {
  LayerConfig config;  ///< of model::backward_layer: fc1 is dout·W2, fc2 is dz·W1
  GradientConfig fc1_gradient, fc2_gradient;
};

/// The choice of these products, whatever chose them: sort, gather and combine are the cost model's.
BackwardChoice backward_choice(const LayerSpec& spec, std::int64_t bucket, const BackwardConfig& products,
                               const model::DeviceProfile& device);

/// `predicted`, `tuned (near_bucket, user /home/me/.cache/varmoe/tuning, …)`,
/// `override (VARMOE_FC1_CONFIG "stages=3") of predicted`.
std::string to_string(const ChoiceOrigin& choice);

/// Token buckets, ascending, each with what is said of it: `1-64 predicted; 128 tuned (…)`.
std::string by_tokens(std::span<const std::pair<std::int64_t, std::string>> buckets);

/// Chooses the config of each token bucket: the best tuning record, else the cost model; then overrides by
/// the environment or the API replace the keys that they name. A layer and bucket without an exact record is
/// told to the log once, with the command that would make one, and to the file of misses. Immutable;
/// thread-safe.
class ConfigChooser {
 public:
  /// invalid_config for an override text of the API, invalid_environment for one of the environment.
  static Result<ConfigChooser> create(const model::DeviceProfile& device, const OverrideTexts& texts,
                                      tuningdb::TuningSnapshot records = {}, const Log& log = {},
                                      std::shared_ptr<tuningdb::MissFile> misses = nullptr);

  /// Rejects a config outside the config space or above the device's limits (invalid_config), before anything
  /// is compiled; the message names the override that asked for it, and the choices.
  Result<ConfigChoice> choose(const LayerSpec& spec, std::int64_t bucket) const;

  /// The same for the backward pass of a layer that learns, with gradients of weights of this type.
  Result<BackwardChoice> choose_backward(const LayerSpec& spec, std::int64_t bucket,
                                         GradientType gradient_type) const;

  const model::DeviceProfile& device() const noexcept { return device_; }

 private:
  struct Rule {
    GemmOverride change;
    std::string origin;  ///< for messages: "EngineOptions::fc1_config", "VARMOE_CONFIG", …
    bool fc1 = false, fc2 = false;
  };
  Status add_rules(std::string_view text, const char* origin, ErrorCode code, bool fc1, bool fc2);

  /// Without overrides. The cost model walks the config space, and records are many; the layers of a model
  /// that differ in the order of their experts alone ask once.
  ConfigChoice look_up(const LayerSpec& spec, std::int64_t bucket) const;
  BackwardChoice look_up_backward(const LayerSpec& spec, std::int64_t bucket,
                                  GradientType gradient_type) const;
  /// What a look-up gave, as an origin; says what is not exact, and adds it to the misses. `name` tells the
  /// question from all others, `what` is for people, `command` tunes it.
  ChoiceOrigin origin_of(const std::optional<tuningdb::TunedMatch>& match, const TuningKey& key,
                         const std::string& name, const std::string& what, const std::string& command) const;

  model::DeviceProfile device_;
  std::vector<Rule> rules_;  ///< later ones win
  std::vector<GemmOverride> dh_rules_, dx_rules_;
  OverrideText dh_, dx_, dw1_, dw2_;
  tuningdb::TuningSnapshot records_;
  std::shared_ptr<tuningdb::MissFile> misses_;  ///< null: none
  Log log_;
  struct Memory;
  std::shared_ptr<Memory> memory_;
};

}  // namespace varmoe::engine
