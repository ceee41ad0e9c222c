#include "gpu/device_training.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>

#include "gpu/evidence.hpp"

namespace gpu {
namespace {

/// Bytes after each buffer that must stay as they are.
constexpr std::size_t kGuard = 4096;
constexpr std::uint8_t kGuardByte = 0xa5;

}  // namespace

DeviceTraining::Guarded DeviceTraining::allocate(const char* name, std::size_t bytes) const {
  Guarded made{must(varmoe::cuda::DeviceBuffer::allocate(device(), bytes + kGuard), "allocate"), bytes, name};
  must(varmoe::cuda::fill_async(*device(), made.buffer.address() + bytes, kGuardByte, kGuard, stream()),
       "fill");
  return made;
}

void DeviceTraining::fill(const Guarded& to, std::uint8_t value) const {
  if (to.bytes > 0)
    must(varmoe::cuda::fill_async(*device(), to.buffer.address(), value, to.bytes, stream()), "fill");
}

void DeviceTraining::upload(const Guarded& to, const void* data) const {
  must(stream_->synchronize(), "synchronize");
  if (to.bytes > 0)
    must(varmoe::cuda::copy_to_device(*device(), to.buffer.address(), data, to.bytes), "upload");
}

void DeviceTraining::download(const Guarded& from, void* data) const {
  if (from.bytes > 0)
    must(varmoe::cuda::copy_to_host(*device(), data, from.buffer.address(), from.bytes), "download");
  std::vector<std::uint8_t> guard(kGuard);
  must(varmoe::cuda::copy_to_host(*device(), guard.data(), from.buffer.address() + from.bytes, kGuard),
       "download");
  CHECK_MESSAGE(std::all_of(guard.begin(), guard.end(), [](std::uint8_t b) { return b == kGuardByte; }),
                "wrote behind " << from.name);
}

DeviceTraining::DeviceTraining(const oracle::TrainingCase& c, bool prepare, int max_sms, varmoe::Engine* on)
    : case_(c) {
  if (on == nullptr) on = &engine();
  const std::int64_t tokens = c.layer.options.tokens;
  stream_ = std::make_unique<varmoe::cuda::Stream>(must(varmoe::cuda::Stream::create(device()), "stream"));
  const oracle::Buffer16* parts[] = {&c.layer.fc1, &c.layer.up, &c.layer.fc2, &c.layer.fc1_bias,
                                     &c.layer.fc2_bias};
  const char* names[] = {"fc1", "up", "fc2", "fc1's biases", "fc2's biases"};
  const char* gradient_names[] = {"dfc1", "dup", "dfc2", "fc1's bias gradients", "fc2's bias gradients"};
  std::array<const void*, oracle::GradientBuffers::kParts> gradients{};
  for (std::size_t i = 0; i < oracle::GradientBuffers::kParts; ++i) {
    weights_[i] = allocate(names[i], parts[i]->bytes());
    gradients_[i] = allocate(gradient_names[i], c.before.gradients.part(i).bytes());
    gradients[i] = gradients_[i].buffer.data();
  }
  x_ = allocate("x", c.layer.x.bytes());
  ids_ = allocate("topk_ids", c.layer.ids64.size() * (c.options.ids_64 ? 8 : 4));
  topk_weights_ = allocate("topk_weights", c.layer.topk_weights.size() * 4);
  count_ = allocate("token_count", 4);
  map_ = allocate("expert_map", c.options.expert_map.size() * 4);
  dout_ = allocate("dout", c.dout.bytes());
  out_ = allocate("out", static_cast<std::size_t>(tokens * c.layer.spec.hidden_size) * 2);
  dx_ = allocate("dx", c.before.dx.bytes());
  dtopk_ = allocate("dtopk_weights", c.before.dtopk.size() * 4);
  upload_inputs(c);

  varmoe::TrainingOptions options;
  options.save_preactivation = c.options.save_preactivation;
  options.gradient_type = c.options.fp32 ? varmoe::GradientType::fp32 : varmoe::GradientType::layer_dtype;
  options.max_sms = max_sms;
  layer_ = std::make_unique<varmoe::TrainingLayer>(
      must(on->create_training_layer(c.layer.spec, options), "create_training_layer"));
  if (prepare && tokens > 0) must(layer_->prepare(buckets({tokens})), "prepare");
  must(layer_->bind(must(
           c.layer.weights(weights_[0].buffer.data(), weights_[1].buffer.data(), weights_[2].buffer.data(),
                           weights_[3].buffer.data(), weights_[4].buffer.data()),
           "weights")),
       "bind");
  must(layer_->bind_gradients(c.before.gradients.weights(gradients)), "bind_gradients");
  saved_ = allocate("saved", must(layer_->saved_bytes(tokens), "saved_bytes"));
  workspace_ = allocate("the workspace", must(layer_->workspace_bytes(tokens), "workspace_bytes"));
}

void DeviceTraining::upload_inputs(const oracle::TrainingCase& c) {
  const oracle::Buffer16* parts[] = {&c.layer.fc1, &c.layer.up, &c.layer.fc2, &c.layer.fc1_bias,
                                     &c.layer.fc2_bias};
  for (std::size_t i = 0; i < oracle::GradientBuffers::kParts; ++i) upload(weights_[i], parts[i]->data());
  upload(x_, c.layer.x.data());
  upload(ids_, c.options.ids_64 ? static_cast<const void*>(c.layer.ids64.data()) : c.layer.ids32.data());
  upload(topk_weights_, c.layer.topk_weights.data());
  const auto count = static_cast<std::int32_t>(c.options.token_count);
  upload(count_, &count);
  upload(map_, c.options.expert_map.data());
  upload(dout_, c.dout.data());
}

void DeviceTraining::reset_outputs(const oracle::TrainingCase& c, std::uint8_t workspace_byte) {
  for (const Guarded* poisoned : {&out_, &saved_, &workspace_}) fill(*poisoned, workspace_byte);
  upload(dx_, c.before.dx.data());
  upload(dtopk_, c.before.dtopk.data());
  for (std::size_t i = 0; i < oracle::GradientBuffers::kParts; ++i)
    upload(gradients_[i], c.before.gradients.part(i).data());
}

template <class Args>
Args DeviceTraining::common() const {
  Args a;
  a.tokens = case_.layer.options.tokens;
  a.stream = stream();
  a.x = x_.buffer.data();
  a.x_stride = case_.layer.x_stride;
  a.topk_ids = ids_.buffer.data();
  a.id_type = case_.options.ids_64 ? varmoe::IdType::int64 : varmoe::IdType::int32;
  a.topk_weights = static_cast<const float*>(topk_weights_.buffer.data());
  if (case_.options.token_count >= 0) a.token_count = static_cast<const std::int32_t*>(count_.buffer.data());
  if (!case_.options.expert_map.empty()) {
    a.expert_map = static_cast<const std::int32_t*>(map_.buffer.data());
    a.num_global_experts = static_cast<std::int64_t>(case_.options.expert_map.size());
  }
  a.workspace = workspace_.buffer.data();
  a.workspace_bytes = workspace_.bytes;
  return a;
}

varmoe::Status DeviceTraining::forward() {
  auto a = common<varmoe::ForwardArgs>();
  a.out = out_.buffer.data();
  return layer_->forward(a, saved_.bytes > 0 ? saved_.buffer.data() : nullptr, saved_.bytes);
}

varmoe::Status DeviceTraining::backward() {
  auto a = common<varmoe::BackwardArgs>();
  a.dout = dout_.buffer.data();
  a.dout_stride = case_.dout_stride;
  a.saved = saved_.bytes > 0 ? saved_.buffer.data() : nullptr;
  a.saved_bytes = saved_.bytes;
  if (case_.options.dx) a.dx = dx_.buffer.data();
  a.dx_stride = case_.dx_stride;
  if (case_.options.dtopk_weights) a.dtopk_weights = static_cast<float*>(dtopk_.buffer.data());
  a.weight_gradients = case_.options.weight_gradients;
  a.accumulate_weight_gradients = case_.options.accumulate_weights;
  a.accumulate_dx = case_.options.accumulate_dx;
  return layer_->backward(a);
}

oracle::TrainingOutput DeviceTraining::download() {
  must(stream_->synchronize(), "synchronize");
  oracle::TrainingOutput out = case_.fresh();
  download(dx_, out.dx.data());
  download(dtopk_, out.dtopk.data());
  for (std::size_t i = 0; i < oracle::GradientBuffers::kParts; ++i)
    download(gradients_[i], out.gradients.part(i).data());
  // The others have guards too.
  std::vector<std::uint8_t> rest(std::max({out_.bytes, saved_.bytes, workspace_.bytes}));
  for (const Guarded* guarded : {&out_, &saved_, &workspace_}) download(*guarded, rest.data());
  return out;
}

std::vector<std::uint16_t> DeviceTraining::forward_out() {
  must(stream_->synchronize(), "synchronize");
  std::vector<std::uint16_t> out(out_.bytes / 2);
  download(out_, out.data());
  return out;
}

oracle::TrainingOutput DeviceTraining::run(std::uint8_t workspace_byte) {
  reset_outputs(case_, workspace_byte);
  must(forward(), "forward");
  // What forward left in the workspace must not matter.
  fill(workspace_, workspace_byte);
  must(backward(), "backward");
  return download();
}

oracle::TrainingOutput DeviceTraining::run_twice() {
  auto first = run(0xff);  // NaNs, then small integers that pass for indices
  const auto second = run(0x01);
  CHECK_MESSAGE(first == second, "two runs differ");
  return first;
}

void check_training(const std::string& group, const oracle::TrainingCase& c, DeviceTraining& training) {
  const auto after = training.run_twice();
  const varmoe::DType dtype = c.layer.spec.dtype;
  const auto result = c.compare(c.reference(), after, oracle::training_bar(dtype));
  const char* type = varmoe::to_string(dtype);
  const auto record = [&](const char* what, double error) {
    oracle::Comparison one;
    one.frobenius = error;
    one.compared_rows = c.live_tokens();
    record_errors(group + ", " + type + ", " + what, one);
  };
  record("dx", result.dx);
  record("dW1", result.dw1);
  record("dW2", result.dw2);
  record("dtopk_weights", result.dtopk);
  CHECK_MESSAGE(result.pass(), varmoe::tuning_signature(c.layer.spec)
                                   << ", " << c.layer.options.tokens << " tokens: " << result.text());
  if (c.live_tokens() == 0) return;
  const auto sampled = oracle::sample_tokens(c.live_tokens(), 16, c.layer.options.seed);
  const auto out = training.forward_out();
  const auto rows =
      oracle::compare_rows(dtype, oracle::oracle_forward(c.layer.oracle_layer(), c.oracle_call(), sampled),
                           out.data(), c.layer.spec.hidden_size, c.layer.spec.hidden_size, sampled);
  CHECK_MESSAGE(rows.pass, "forward: " << rows.text());
}

void check_training(const std::string& group, const oracle::TrainingCase& c) {
  DeviceTraining training(c);
  check_training(group, c, training);
}

}  // namespace gpu
