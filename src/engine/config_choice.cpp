#include "engine/config_choice.hpp"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <utility>

#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::engine {

struct ConfigChooser::Memory {
  std::mutex mutex;
  std::map<std::string, ConfigChoice> known;       ///< by tuning signature and bucket
  std::map<std::string, BackwardChoice> backward;  ///< by these and the type of gradients
};

BackwardChoice backward_choice(const LayerSpec& spec, std::int64_t bucket, const BackwardConfig& products,
                               const model::DeviceProfile& device) {
  BackwardChoice choice;
  choice.config = model::predict_backward_config(spec, bucket, device);
  choice.config.fc1 = products.dh;
  choice.config.fc2 = products.dx;
  choice.fc1_gradient = products.fc1_gradient;
  choice.fc2_gradient = products.fc2_gradient;
  return choice;
}

std::string to_string(const ChoiceOrigin& choice) {
  const std::string base = choice.quality == MatchQuality::predicted
                               ? "predicted"
                               : fmt::format("tuned ({}, {})", to_string(choice.quality), choice.record);
  return choice.changed_by.empty() ? base : fmt::format("override ({}) of {}", choice.changed_by, base);
}

std::string by_tokens(std::span<const std::pair<std::int64_t, std::string>> buckets) {
  std::string text;
  for (auto first = buckets.begin(); first != buckets.end();) {
    auto last = first;
    while (last + 1 != buckets.end() && (last + 1)->second == first->second) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : "; ", first->first);
    if (last != first) text += fmt::format("-{}", last->first);
    text += " " + first->second;
    first = last + 1;
  }
  return text;
}

ChoiceOrigin ConfigChooser::origin_of(const std::optional<tuningdb::TunedMatch>& match, const TuningKey& key,
                                      const std::string& name, const std::string& what,
                                      const std::string& command) const {
  ChoiceOrigin origin;
  if (match) {
    origin.source = ConfigSource::tuned;
    origin.quality = match->quality;
    origin.record = match->file.empty() ? match->layer : fmt::format("{}, {}", match->layer, match->file);
    if (match->quality != MatchQuality::exact)
      log_.once(
          "match " + name, LogLevel::info,
          fmt::format("{} on {}: a record of match quality \"{}\" serves: {} ({}); to tune it: {}", what,
                      device_.name, to_string(match->quality), match->key, origin.record, command));
  } else if (!records_.searched().empty()) {
    log_.once("miss " + name, LogLevel::info,
              fmt::format("{} on {}: no tuning record in {}; the cost model's config serves; to tune it: {}",
                          what, device_.name, records_.searched(), command));
  }
  if (misses_ != nullptr && origin.quality != MatchQuality::exact) misses_->add(key);
  return origin;
}

ConfigChoice ConfigChooser::look_up(const LayerSpec& spec, std::int64_t bucket) const {
  const std::string name = fmt::format("{}#{}", tuning_signature(spec), bucket);
  {
    std::lock_guard lock(memory_->mutex);
    if (const auto found = memory_->known.find(name); found != memory_->known.end()) return found->second;
  }
  const auto match = records_.find(spec, device_, bucket);
  const ChoiceOrigin origin = origin_of(
      match, make_tuning_key(spec, tuningdb::tuning_device(device_), bucket), name,
      fmt::format("{} at {} tokens", tuning_signature(spec), bucket), tuningdb::tune_command(spec, bucket));
  ConfigChoice choice{origin, match ? match->config : model::predict_layer_config(spec, bucket, device_)};
  std::lock_guard lock(memory_->mutex);
  return memory_->known.try_emplace(name, std::move(choice)).first->second;
}

BackwardChoice ConfigChooser::look_up_backward(const LayerSpec& spec, std::int64_t bucket,
                                               GradientType gradient_type) const {
  const TuningKey key =
      make_backward_tuning_key(spec, tuningdb::tuning_device(device_), bucket, gradient_type);
  const std::string what = fmt::format("{} at {} tokens, backward with {} gradients", tuning_signature(spec),
                                       bucket, tuningdb::gradient_dtype(key));
  {
    std::lock_guard lock(memory_->mutex);
    if (const auto found = memory_->backward.find(what); found != memory_->backward.end())
      return found->second;
  }
  const auto match = records_.find_backward(spec, device_, bucket, gradient_type);
  const ChoiceOrigin origin =
      origin_of(match, key, what, what, tuningdb::tune_training_command(spec, bucket, gradient_type));
  const BackwardConfig products = match ? match->backward : model::predict_products(spec, bucket, device_);
  BackwardChoice choice = backward_choice(spec, bucket, products, device_);
  static_cast<ChoiceOrigin&>(choice) = origin;
  std::lock_guard lock(memory_->mutex);
  return memory_->backward.try_emplace(what, std::move(choice)).first->second;
}

Status ConfigChooser::add_rules(std::string_view text, const char* origin, ErrorCode code, bool fc1,
                                bool fc2) {
  if (text.empty()) return {};
  auto parsed = parse_gemm_overrides(text);
  if (!parsed) return Error(code, fmt::format("{}: {}", origin, parsed.error().message()));
  for (auto& change : *parsed) rules_.push_back({std::move(change), origin, fc1, fc2});
  return {};
}

Result<ConfigChooser> ConfigChooser::create(const model::DeviceProfile& device, const OverrideTexts& texts,
                                            tuningdb::TuningSnapshot records, const Log& log,
                                            std::shared_ptr<tuningdb::MissFile> misses) {
  ConfigChooser chooser;
  chooser.records_ = std::move(records);
  chooser.misses_ = std::move(misses);
  chooser.log_ = log;
  chooser.memory_ = std::make_shared<Memory>();
  chooser.device_ = device;
  // A text of the API for one stage replaces whatever the environment says of that stage.
  const bool env_fc1 = texts.api_fc1.empty(), env_fc2 = texts.api_fc2.empty();
  const auto environment = ErrorCode::invalid_environment, api = ErrorCode::invalid_config;
  Status status = chooser.add_rules(texts.env_both, "VARMOE_CONFIG", environment, env_fc1, env_fc2);
  if (status && env_fc1)
    status = chooser.add_rules(texts.env_fc1, "VARMOE_FC1_CONFIG", environment, true, false);
  if (status && env_fc2)
    status = chooser.add_rules(texts.env_fc2, "VARMOE_FC2_CONFIG", environment, false, true);
  if (status) status = chooser.add_rules(texts.api_fc1, "EngineOptions::fc1_config", api, true, false);
  if (status) status = chooser.add_rules(texts.api_fc2, "EngineOptions::fc2_config", api, false, true);
  chooser.dh_ = texts.dh;
  chooser.dx_ = texts.dx;
  chooser.dw1_ = texts.dw1;
  chooser.dw2_ = texts.dw2;
  const auto backward = [](const OverrideText& given, std::vector<GemmOverride>& rules) -> Status {
    if (given.text.empty()) return {};
    auto parsed = parse_gemm_overrides(given.text);
    if (!parsed) return Error(given.code, fmt::format("{}: {}", given.origin, parsed.error().message()));
    rules = *std::move(parsed);
    return {};
  };
  if (status) status = backward(texts.dh, chooser.dh_rules_);
  if (status) status = backward(texts.dx, chooser.dx_rules_);
  for (const OverrideText* given : {&texts.dw1, &texts.dw2}) {
    if (!status) break;
    auto parsed = model::parse_gradient_config(given->text, {});
    if (!parsed) status = Error(given->code, fmt::format("{}: {}", given->origin, parsed.error().message()));
  }
  if (!status) return std::move(status).error();
  return chooser;
}

Result<BackwardChoice> ConfigChooser::choose_backward(const LayerSpec& spec, std::int64_t bucket,
                                                      GradientType gradient_type) const {
  const LayerSpec back = model::backward_layer(spec), down = model::backward_down_layer(spec);
  BackwardChoice choice = look_up_backward(spec, bucket, gradient_type);
  const auto note = [&choice](const std::string& origin, const std::string& text) {
    choice.source = ConfigSource::override_;
    choice.changed_by += fmt::format("{}{} \"{}\"", choice.changed_by.empty() ? "" : " and ", origin, text);
  };
  const auto change = [&](GemmConfig& config, const std::vector<GemmOverride>& rules,
                          const OverrideText& given, model::GemmStage stage) -> Status {
    bool named = false;
    for (const GemmOverride& rule : rules) {
      if (bucket < rule.min_tokens || bucket > rule.max_tokens) continue;
      config = rule.apply(config);
      named = true;
    }
    if (!named) return {};
    note(given.origin, given.text);
    Status status = stage == model::GemmStage::fc1 ? model::check_dh_config(back, config, device_)
                                                   : model::check_gemm_config(down, stage, config, device_);
    if (status) return {};
    return Error(status.error().code(),
                 fmt::format("{} at {} tokens: {}", given.origin, bucket, status.error().message()));
  };
  if (auto ok = change(choice.config.fc1, dh_rules_, dh_, model::GemmStage::fc1); !ok) return ok.error();
  if (auto ok = change(choice.config.fc2, dx_rules_, dx_, model::GemmStage::fc2); !ok) return ok.error();
  const auto gradient = [&](GradientConfig& config, const OverrideText& given) -> Status {
    if (given.text.empty()) return {};
    config = *model::parse_gradient_config(given.text, config);
    note(given.origin, given.text);
    Status status = model::check_gradient_config(config, device_);
    if (status) return {};
    return Error(status.error().code(), fmt::format("{}: {}", given.origin, status.error().message()));
  };
  if (auto ok = gradient(choice.fc1_gradient, dw1_); !ok) return ok.error();
  if (auto ok = gradient(choice.fc2_gradient, dw2_); !ok) return ok.error();
  const BackwardConfig products =
      model::with_copies({choice.config.fc1, choice.config.fc2, choice.fc1_gradient, choice.fc2_gradient});
  choice.config.fc1 = products.dh;
  if (choice.changed_by.empty()) return choice;
  if (Status status = model::check_backward_config(spec, products, device_); !status)
    return Error(status.error().code(),
                 fmt::format("{} at {} tokens: {}", choice.changed_by, bucket, status.error().message()));
  return choice;
}

Result<ConfigChoice> ConfigChooser::choose(const LayerSpec& spec, std::int64_t bucket) const {
  ConfigChoice choice = look_up(spec, bucket);
  const GatherMode fc2_gather = choice.config.fc2.gather;
  std::string fc1_by, fc2_by;
  for (const Rule& rule : rules_) {
    if (bucket < rule.change.min_tokens || bucket > rule.change.max_tokens) continue;
    const auto note = [&rule](std::string& by) {
      if (!by.empty()) by += " and ";
      by += fmt::format("{} \"{}\"", rule.origin, rule.change.text);
    };
    if (rule.fc1) {
      choice.config.fc1 = rule.change.apply(choice.config.fc1);
      note(fc1_by);
    }
    if (rule.fc2) {
      choice.config.fc2 = rule.change.apply(choice.config.fc2);
      // "gather" in a text for both stages speaks of fc1, the only one that gathers.
      if (rule.fc1) choice.config.fc2.gather = fc2_gather;
      note(fc2_by);
    }
  }
  if (fc1_by.empty() && fc2_by.empty()) return choice;
  choice.source = ConfigSource::override_;
  // Whoever names tiles of a GEMM means them to run.
  choice.config.one_launch = {};
  choice.changed_by = fc1_by == fc2_by || fc2_by.empty() ? fc1_by
                      : fc1_by.empty()                   ? fc2_by
                                                         : fc1_by + "; " + fc2_by;
  const auto reject = [bucket](const char* stage, const std::string& by, const Error& error) {
    return Error(error.code(),
                 fmt::format("{} override {} at {} tokens: {}", stage, by, bucket, error.message()));
  };
  if (!fc1_by.empty()) {
    Status status = model::check_gemm_config(spec, model::GemmStage::fc1, choice.config.fc1, device_);
    if (!status) return reject("fc1", fc1_by, status.error());
  }
  if (!fc2_by.empty()) {
    Status status = model::check_gemm_config(spec, model::GemmStage::fc2, choice.config.fc2, device_);
    if (!status) return reject("fc2", fc2_by, status.error());
  }
  Status status = model::check_layer_config(spec, choice.config, device_);
  if (!status) return std::move(status).error();
  return choice;
}

}  // namespace varmoe::engine
