#include "fuzz/emit/emit_fuzz.hpp"

#include <algorithm>
#include <string>

#include "emit/closed_text.hpp"
#include "fuzz/fields.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "model/one_launch.hpp"

namespace varmoe::fuzz {
namespace {

using emit::EmittedKernel;
using emit::KernelRequest;
using emit::Stage;

/// Of two blocks that share weight tiles; kernels_src/ leaves it to the emitted text.
constexpr const char* kClusterWord = "__cluster_dims__";
const char* const kUnfit = "a message is not fit for a log";

/// Mostly valid; anything where `wild`.
LayerSpec take_spec(Fields& fields, bool wild) {
  LayerSpec spec;
  spec.hidden_size = wild ? fields.number(8, 1024) : 64 + 8 * (fields.take<std::uint16_t>() % 1024);
  spec.top_k = wild ? fields.number(1, 40) : 1 + fields.choice(static_cast<int>(kMaxTopK));
  const auto width = [&] {
    return wild ? fields.number(8, 4096) : 8 * (1 + fields.take<std::uint16_t>() % 1024);
  };
  std::vector<std::int64_t> widths;
  for (int distinct = fields.choice(20); distinct >= 0; --distinct) widths.push_back(width());
  const auto multiple = static_cast<std::int64_t>(fields.flag() ? 1 : 8);  // wgmma takes more of these
  for (std::int64_t& one : widths) one = wild ? one : one * multiple;
  const std::size_t experts = fields.take<std::uint16_t>() % (wild ? kMaxExperts + 8 : 64) + (wild ? 0 : 1);
  for (std::size_t e = 0; e < experts; ++e) spec.expert_widths.push_back(widths[e % widths.size()]);
  spec.activation = static_cast<Activation>(fields.choice(wild ? 12 : 10));
  if (fields.flag()) {
    spec.activation_params.alpha = fields.take<float>();
    spec.activation_params.limit = wild ? fields.take<float>() : static_cast<float>(1 + fields.choice(200));
  }
  spec.dtype = static_cast<DType>(fields.choice(wild ? 3 : 2));
  spec.fc1_layout = static_cast<WeightLayout>(fields.choice(wild ? 3 : 2));
  spec.fc2_layout = static_cast<WeightLayout>(fields.choice(wild ? 3 : 2));
  spec.gate_order = static_cast<GateOrder>(fields.choice(wild ? 4 : 3));
  spec.batch_invariant = fields.choice(4) == 0;
  for (int shared = fields.flag() ? fields.choice(wild ? 20 : 4) : 0; shared > 0; --shared)
    spec.shared_widths.push_back(width());
  spec.shared_gate = fields.flag() && (wild || !spec.shared_widths.empty());
  spec.bias = fields.choice(4) == 0;
  spec.weight_on_input = fields.choice(4) == 0;
  return spec;
}

/// Of one of the schedules, with fields that this schedule may have; sometimes one that nothing has.
GemmConfig take_gemm(Fields& fields) {
  GemmConfig c;
  c.schedule = static_cast<Schedule>(fields.choice(3));
  c.block_m = 16 << fields.choice(5);
  c.stages = 2 + fields.choice(7);
  c.raster = 1 << fields.choice(7);
  c.gather = static_cast<GatherMode>(fields.choice(2));
  if (model::uses_wgmma(c)) {
    const bool pingpong = c.schedule == Schedule::wgmma_pingpong;
    c.block_n = (pingpong ? 64 : 128) * (1 + fields.choice(2));
    c.row_step = 8 * (1 + fields.choice(32));
    if (fields.flag()) c.block_m = c.row_step * (1 + fields.choice(4));
    c.warps_m = pingpong ? 2 : 1;
    c.warps_n = pingpong ? 4 : 8;
    c.cluster = 1 + fields.choice(2);
  } else {
    c.block_n = 32 + 16 * fields.choice(15);
    c.block_k = 32 << fields.choice(3);
    c.warps_m = 1 << fields.choice(3);
    c.warps_n = 1 << fields.choice(4);
    c.ctas_per_sm = 1 + fields.choice(8);
  }
  if (fields.choice(8) == 0) {
    constexpr std::int32_t GemmConfig::*kMembers[] = {
        &GemmConfig::block_m, &GemmConfig::block_n, &GemmConfig::block_k,     &GemmConfig::stages,
        &GemmConfig::warps_m, &GemmConfig::warps_n, &GemmConfig::ctas_per_sm, &GemmConfig::raster,
        &GemmConfig::cluster, &GemmConfig::row_step};
    c.*kMembers[fields.choice(10)] = fields.take<std::int32_t>();
  }
  return c;
}

bool known_string(const std::string& text) {
  // Names, headers and sentences; wgmma's instructions are made of the second alphabet and begin alike.
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.:' +";
  if (text.find_first_not_of(kPlain) == std::string::npos) return true;
  return text.rfind("{.reg .pred p; setp.ne.u32 p, %", 0) == 0 &&
         text.find_first_not_of(std::string(kPlain) + "{}%,;\\") == std::string::npos;
}

/// What tests/emit/closed_text.hpp asks of a text, without its regular expressions, which are slow.
const char* check_closed_text(const EmittedKernel& kernel) {
  const test::Tokens tokens = test::tokens_of(kernel.text);
  for (const std::string& word : tokens.words) {
    const bool number =
        word[0] >= '0' && word[0] <= '9' && word.find_first_not_of("0123456789abcdefxu") == std::string::npos;
    if (!number && word != kernel.entry_name && word != kClusterWord && test::kernel_words().count(word) == 0)
      return "a text has a word from outside";
  }
  for (const std::string& text : tokens.strings)
    if (!known_string(text)) return "a text has a string from outside";
  if (tokens.others.find_first_not_of(" \n#{}()[]<>,;:=?&/!") != std::string::npos)
    return "a text has characters that none has";
  if (kernel.text.rfind("// varmoe ", 0) != 0 || kernel.text.find("/*") != std::string::npos ||
      kernel.text.find("*/") != std::string::npos)
    return "a text has other comments";
  return nullptr;
}

const char* check_kernel(const LayerSpec& spec, const KernelRequest& request, const EmittedKernel& kernel) {
  if (const char* broken = check_closed_text(kernel)) return broken;
  if (kernel.stage != request.stage) return "a kernel of another stage";
  if (kernel.options != std::vector<std::string>{"--std=c++17", "--no-source-include"})
    return "a kernel has other options";
  if (kernel.block_threads < 32 || kernel.block_threads > 1024 || kernel.block_threads % 32 != 0)
    return "a kernel's block is none";
  if (kernel.dynamic_smem_bytes < 0 || kernel.ctas_per_sm < 1) return "a kernel's launch is none";
  // Experts in another order are the same kernel.
  LayerSpec turned = spec;
  std::reverse(turned.expert_widths.begin(), turned.expert_widths.end());
  if (kernel_signature(turned) != kernel_signature(spec)) return "the order of experts is in the signature";
  const auto again = emit::emit_kernel(turned, request);
  if (!again || again->text != kernel.text || again->entry_name != kernel.entry_name)
    return "equal signatures have two kernels";
  return nullptr;
}

class Run {
 public:
  Run(const LayerSpec& spec, const std::function<void(const EmittedKernel&)>& each)
      : spec_(spec), each_(each) {}

  /// Emits; `expected` says whether it must succeed.
  void request(const KernelRequest& request, bool expected) {
    const auto kernel = emit::emit_kernel(spec_, request);
    if (kernel.ok() != expected)
      return broke(expected ? "a kernel of the space is not emitted"
                            : "a kernel outside the space is emitted");
    if (!kernel) {
      const ErrorCode code = kernel.error().code();
      if (code != ErrorCode::invalid_config && code != ErrorCode::unsupported &&
          code != ErrorCode::invalid_spec)
        broke("an error of another kind");
      if (!presentable(kernel.error().message())) broke(kUnfit);
      return;
    }
    broke(check_kernel(spec_, request, *kernel));
    if (each_) each_(*kernel);
  }
  void broke(const char* what) {
    if (what != nullptr) broken_ = what;
  }
  const char* broken() const { return broken_; }

 private:
  const LayerSpec& spec_;
  const std::function<void(const EmittedKernel&)>& each_;
  const char* broken_ = nullptr;
};

bool sound_threads(std::int32_t threads) {
  return threads >= 32 && threads <= 1024 && threads % 32 == 0;
}

}  // namespace

Outcome emit_spec(std::span<const std::uint8_t> bytes,
                  const std::function<void(const emit::EmittedKernel&)>& each) {
  Fields fields(bytes);
  Outcome outcome;
  const bool wild = fields.choice(8) == 0;
  const LayerSpec spec = take_spec(fields, wild);
  Run run(spec, each);
  const bool runtime_width = fields.choice(4) == 0;
  const bool many_widths = width_classes(spec).size() > kMaxWidthClasses;

  if (const Status valid = spec.validate(); !valid) {
    if (!presentable(valid.error().message())) outcome.broken = kUnfit;
    for (std::size_t stage = 0; stage < emit::kStageCount; ++stage) {
      KernelRequest request;
      request.stage = static_cast<Stage>(stage);
      request.block_threads = 256;
      request.one_launch.max_tokens = 8;
      run.request(request, false);
    }
    if (run.broken() != nullptr) outcome.broken = run.broken();
    return outcome;
  }
  outcome.accepted = true;

  const auto& devices = model::shipped_profiles();
  const model::DeviceProfile& device =
      devices[static_cast<std::size_t>(fields.take<std::uint8_t>()) % devices.size()];
  const std::int64_t bucket = std::int64_t{1} << fields.choice(17);
  const LayerConfig config = model::predict_layer_config(spec, bucket, device);
  for (const KernelRequest& request :
       emit::required_kernels(spec, config, bucket, runtime_width || many_widths))
    run.request(request, true);

  KernelRequest request;
  for (const Stage stage : {Stage::fc1, Stage::fc2}) {
    request.stage = stage;
    request.gemm = take_gemm(fields);
    request.runtime_width = runtime_width;
    const auto part = stage == Stage::fc1 ? model::GemmStage::fc1 : model::GemmStage::fc2;
    const Status fits = model::check_gemm_shape(spec, part, request.gemm);
    run.request(request, fits.ok() && (runtime_width || !many_widths));
  }
  request.stage = static_cast<Stage>(fields.choice(static_cast<int>(emit::kStageCount)));
  if (request.stage == Stage::fc1 || request.stage == Stage::fc2) request.stage = Stage::whole_layer;
  request.block_threads = fields.choice(8) == 0 ? fields.take<std::int32_t>() : 32 * (1 + fields.choice(32));
  const int tokens = fields.choice(4);
  request.one_launch.max_tokens = tokens == 3 ? 0 : 8 * (1 + tokens % 2);
  request.one_launch.teams = 1 + fields.choice(3);
  if (request.stage == Stage::whole_layer) {
    run.request(request,
                request.one_launch.max_tokens > 0 && model::check_one_launch(spec, request.one_launch).ok());
  } else {
    run.request(request, sound_threads(request.block_threads));
  }
  outcome.broken = run.broken();
  return outcome;
}

}  // namespace varmoe::fuzz
