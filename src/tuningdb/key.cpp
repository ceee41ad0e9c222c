#include <fmt/format.h>

#include <cmath>

#include "base/text.hpp"
#include "model/token_bucket.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_order.hpp"
#include "varmoe/tuning.hpp"

namespace varmoe {
namespace {

Error bad_key(std::string message) {
  return Error(ErrorCode::invalid_argument, std::move(message));
}

Status check_device(const TuningDevice& device) {
  if (!tuningdb::is_arch(device.arch)) {
    return bad_key(fmt::format("arch is \"{}\"; must be an architecture such as sm_90a",
                               printable(device.arch, tuningdb::kMaxNameBytes)));
  }
  if (device.cu_num < 1 || device.cu_num > tuningdb::kMaxSms) {
    return bad_key(
        fmt::format("cu_num is {}; must be an integer from 1 to {}", device.cu_num, tuningdb::kMaxSms));
  }
  if (device.name.empty() || !tuningdb::is_name(device.name)) {
    return bad_key(
        fmt::format("device is \"{}\"; must be {}", printable(device.name, 64), tuningdb::kNameRule));
  }
  return {};
}

/// What one value alone is possible for today.
Status check_fixed(const TuningKey& key) {
  if (key.q_dtype_a != key.dtype) {
    return bad_key(
        fmt::format("q_dtype_a is {}; must be {}, as dtype", to_string(key.q_dtype_a), to_string(key.dtype)));
  }
  if (key.q_dtype_w != key.dtype) {
    return bad_key(
        fmt::format("q_dtype_w is {}; must be {}, as dtype", to_string(key.q_dtype_w), to_string(key.dtype)));
  }
  if (key.q_type != QuantType::none) return bad_key("q_type must be none");
  return {};
}

/// Widths with their counts; `experts` gets the sum of these.
Status check_classes(const char* name, const std::vector<WidthClass>& classes, std::int64_t most,
                     std::int64_t& experts) {
  experts = 0;
  for (std::size_t i = 0; i < classes.size(); ++i) {
    const WidthClass& c = classes[i];
    if (c.count < 1 || c.count > most)
      return bad_key(fmt::format("{}[{}] has {} experts; must be from 1 to {}", name, i, c.count, most));
    if (i > 0 && c.width <= classes[i - 1].width) {
      return bad_key(fmt::format("{}[{}] has width {} after {}; widths must ascend", name, i, c.width,
                                 classes[i - 1].width));
    }
    experts += c.count;
    if (experts > most) return bad_key(fmt::format("{} has more than {} experts", name, most));
  }
  return {};
}

Status check_inter_dim(const TuningKey& key) {
  std::int64_t experts = 0;
  if (key.inter_dim.empty()) return bad_key("inter_dim is empty; must have at least one width");
  if (auto status = check_classes("shared_inter_dim", key.shared_inter_dim, kMaxSharedExperts, experts);
      !status)
    return status;
  if (auto status = check_classes("inter_dim", key.inter_dim, kMaxExperts, experts); !status) return status;
  if (experts != key.expert) {
    return bad_key(
        fmt::format("expert is {}; must be {}, the sum of inter_dim's counts", key.expert, experts));
  }
  return {};
}

}  // namespace

TuningKey make_tuning_key(const LayerSpec& spec, const TuningDevice& device, std::int64_t tokens) {
  TuningKey key;
  key.device = device;
  key.token = model::bucket_of(tokens);
  key.model_dim = spec.hidden_size;
  key.inter_dim = classes_of_widths(spec.expert_widths);
  key.expert = spec.num_experts();
  key.topk = spec.top_k;
  key.act_type = spec.activation;
  const ActivationInfo& activation = activation_info(spec.activation);
  if (activation.uses_params) {
    key.act_params = spec.activation_params;
    if (key.act_params.alpha == 0) key.act_params.alpha = 0;  // −0 computes the same
  }
  key.dtype = key.q_dtype_a = key.q_dtype_w = spec.dtype;
  key.use_g1u1 = activation.gated;
  key.fc1_layout = spec.fc1_layout;
  key.fc2_layout = spec.fc2_layout;
  if (activation.gated) key.gate_order = spec.gate_order;
  key.doweight_stage1 = spec.weight_on_input;
  key.bias = spec.bias;
  key.batch_invariant = spec.batch_invariant;
  key.shared_inter_dim = classes_of_widths(spec.shared_widths);
  key.shared_gate = spec.shared_gate;
  return key;
}

TuningKey make_backward_tuning_key(const LayerSpec& spec, const TuningDevice& device, std::int64_t tokens,
                                   GradientType gradient_type) {
  TuningKey key = make_tuning_key(spec, device, tokens);
  key.pass = TuningPass::backward;
  key.gradient_type = gradient_type;
  return key;
}

LayerSpec layer_spec_of(const TuningKey& key) {
  LayerSpec spec;
  spec.hidden_size = key.model_dim;
  for (const WidthClass& c : key.inter_dim) {
    spec.expert_widths.insert(spec.expert_widths.end(), static_cast<std::size_t>(c.count), c.width);
  }
  spec.top_k = key.topk;
  spec.activation = key.act_type;
  spec.activation_params = key.act_params;
  spec.dtype = key.dtype;
  spec.fc1_layout = key.fc1_layout;
  spec.fc2_layout = key.fc2_layout;
  spec.gate_order = key.gate_order;
  spec.weight_on_input = key.doweight_stage1;
  spec.bias = key.bias;
  spec.batch_invariant = key.batch_invariant;
  for (const WidthClass& c : key.shared_inter_dim) {
    spec.shared_widths.insert(spec.shared_widths.end(), static_cast<std::size_t>(c.count), c.width);
  }
  spec.shared_gate = key.shared_gate;
  return spec;
}

Status validate(const TuningKey& key) {
  if (auto status = check_device(key.device); !status) return status;
  if (key.token < 1 || key.token > tuningdb::kMaxTokens || model::bucket_of(key.token) != key.token) {
    return bad_key(
        fmt::format("token is {}; must be a power of two from 1 to {}", key.token, tuningdb::kMaxTokens));
  }
  if (auto status = check_inter_dim(key); !status) return status;
  if (auto status = check_fixed(key); !status) return status;
  const LayerSpec spec = layer_spec_of(key);
  if (auto status = spec.validate(); !status) return bad_key(status.error().message());
  const bool backward = key.pass == TuningPass::backward;
  if (!backward && key.gradient_type != GradientType::layer_dtype)
    return bad_key("gradient_dtype is given, and a forward has no gradients");
  const TuningKey canonical = backward
                                  ? make_backward_tuning_key(spec, key.device, key.token, key.gradient_type)
                                  : make_tuning_key(spec, key.device, key.token);
  if (key.use_g1u1 != canonical.use_g1u1) {
    return bad_key(fmt::format("use_g1u1 is {}; must be {} with act_type {}", key.use_g1u1,
                               canonical.use_g1u1, to_string(key.act_type)));
  }
  if (key.gate_order != canonical.gate_order) {
    return bad_key(fmt::format("gate_order is {}; must be {} where act_type is not gated",
                               to_string(key.gate_order), to_string(canonical.gate_order)));
  }
  if (key != canonical) {
    return bad_key(fmt::format("act_params are given, and act_type {} reads none", to_string(key.act_type)));
  }
  return {};
}

std::string to_string(const TuningKey& key) {
  std::string text =
      fmt::format("{}, {} SMs, {}; {} tokens; {}", printable(key.device.arch, 32), key.device.cu_num,
                  printable(key.device.name, 64), key.token, tuning_signature(layer_spec_of(key)));
  if (key.pass == TuningPass::backward)
    text += fmt::format("; backward, {} gradients", tuningdb::gradient_dtype(key));
  return text;
}

const char* to_string(MatchQuality value) noexcept {
  switch (value) {
    case MatchQuality::exact:
      return "exact";
    case MatchQuality::near_bucket:
      return "near_bucket";
    case MatchQuality::near_widths:
      return "near_widths";
    case MatchQuality::stale_epoch:
      return "stale_epoch";
    case MatchQuality::same_device_class:
      return "same_device_class";
    case MatchQuality::same_arch:
      return "same_arch";
    case MatchQuality::predicted:
      return "predicted";
  }
  return "invalid";
}

const char* to_string(TuningPass value) noexcept {
  return value == TuningPass::forward ? "forward" : value == TuningPass::backward ? "backward" : "invalid";
}

const char* to_string(QuantType value) noexcept {
  return value == QuantType::none ? "none" : "invalid";
}

}  // namespace varmoe
