#include "tuningdb/record_order.hpp"

#include <fmt/format.h>

#include <bit>

#include "tuningdb/record_json.hpp"

namespace varmoe::tuningdb {

const char* gradient_dtype(const TuningKey& key) noexcept {
  return key.gradient_type == GradientType::fp32 ? "fp32" : to_string(key.dtype);
}

std::string sort_key(const TuningKey& key) {
  // Numbers are padded so that they order as texts. 0x01 separates: it occurs in no name, and is less than
  // any character that does.
  std::string text = fmt::format("{}\x01{:010}\x01{}\x01{:010}\x01{:010}\x01{:010}\x01", key.device.arch,
                                 key.device.cu_num, key.device.name, key.model_dim, key.expert, key.topk);
  for (const WidthClass& c : key.inter_dim)
    fmt::format_to(std::back_inserter(text), "{:010}x{:05},", c.width, c.count);
  fmt::format_to(std::back_inserter(text), "\x01{}\x01{:08x}{:08x}\x01{}\x01{}\x01{}\x01{}",
                 to_string(key.act_type),
                 std::bit_cast<std::uint32_t>(key.act_params.alpha + 0.0f),  // −0 is 0
                 std::bit_cast<std::uint32_t>(key.act_params.limit), to_string(key.dtype),
                 to_string(key.fc1_layout), to_string(key.fc2_layout), to_string(key.gate_order));
  fmt::format_to(std::back_inserter(text), "\x01{}{}{}{}{}{}{}", static_cast<int>(key.batch_invariant),
                 static_cast<int>(key.bias), static_cast<int>(key.doweight_stage1),
                 static_cast<int>(key.use_g1u1), static_cast<int>(key.q_type),
                 static_cast<int>(key.q_dtype_a), static_cast<int>(key.q_dtype_w));
  if (!key.shared_inter_dim.empty()) {
    text += '\x01';
    for (const WidthClass& c : key.shared_inter_dim)
      fmt::format_to(std::back_inserter(text), "{:010}x{:05},", c.width, c.count);
    text += key.shared_gate ? "gate" : "plain";
  }
  if (key.pass == TuningPass::backward)
    fmt::format_to(std::back_inserter(text), "\x01{} {}", to_string(key.pass), gradient_dtype(key));
  fmt::format_to(std::back_inserter(text), "\x01{:020}", key.token);
  return text;
}

bool better(const TuningRecord& a, const TuningRecord& b) {
  if (a.verified != b.verified) return a.verified;
  if (a.config_space != b.config_space) return a.config_space > b.config_space;
  if (a.date != b.date) return a.date > b.date;
  if (a.us != b.us) return a.us < b.us;
  return record_text(a) < record_text(b);
}

}  // namespace varmoe::tuningdb
