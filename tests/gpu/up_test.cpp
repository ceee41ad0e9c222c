#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gpu/device_layer.hpp"
#include "oracle/up_check.hpp"

// Layer::up, the up-projection alone: h in expert order, its offsets and row map, in the caller's memory.

namespace {

using varmoe::WeightLayout;
using varmoe::cuda::DeviceBuffer;

/// One up on poisoned memory, compared with the oracle on every `step`-th token.
void check_up(const oracle::RandomCase& c, gpu::DeviceLayer& layer, std::int64_t tokens, std::int64_t live,
              std::int64_t step, bool ids_64 = false, std::int64_t gap = 0) {
  const varmoe::LayerSpec& spec = c.spec;
  const std::int64_t rows = tokens * spec.slots_per_token();
  const std::int64_t stride = (spec.widest_of_all() + 63) / 64 * 64 + gap;
  std::vector<std::uint16_t> h(static_cast<std::size_t>(rows * stride), oracle::kPoison);
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(spec.all_experts() + 1), oracle::kUntouched);
  std::vector<std::int32_t> slots(static_cast<std::size_t>(rows), oracle::kUntouched);
  const auto upload = [](const auto& host) {
    const std::size_t bytes = host.size() * sizeof(host[0]);
    auto buffer = gpu::must(DeviceBuffer::allocate(gpu::device(), bytes), "allocate");
    gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), buffer.address(), host.data(), bytes), "upload");
    return buffer;
  };
  gpu::RunOptions options;
  options.tokens = tokens;
  options.device_tokens = live < tokens ? live : -1;
  options.ids_64 = ids_64;
  const varmoe::ForwardArgs forward = layer.args(options);
  std::vector<std::uint16_t> first;
  for (int round = 0; round < 2; ++round) {
    const DeviceBuffer device_h = upload(h), device_offsets = upload(offsets), device_slots = upload(slots);
    gpu::must(varmoe::cuda::fill_async(*gpu::device(), reinterpret_cast<std::uint64_t>(forward.workspace),
                                       round == 0 ? 0xff : 0x01, forward.workspace_bytes, layer.stream()),
              "fill");
    varmoe::UpArgs up;
    up.tokens = tokens;
    up.x = forward.x;
    up.x_stride = forward.x_stride;
    up.topk_ids = forward.topk_ids;
    up.id_type = forward.id_type;
    up.h = device_h.data();
    up.h_stride = gap != 0 ? stride : 0;
    up.expert_offsets = static_cast<std::int32_t*>(device_offsets.data());
    up.slot_row = static_cast<std::int32_t*>(device_slots.data());
    up.token_count = forward.token_count;
    up.workspace = forward.workspace;
    up.workspace_bytes = forward.workspace_bytes;
    up.stream = forward.stream;
    gpu::must(layer.layer().up(up), "up");
    layer.synchronize();
    std::vector<std::uint16_t> got_h(h.size());
    std::vector<std::int32_t> got_offsets(offsets.size()), got_slots(slots.size());
    const auto download = [](auto& host, const DeviceBuffer& buffer) {
      gpu::must(varmoe::cuda::copy_to_host(*gpu::device(), host.data(), buffer.address(),
                                           host.size() * sizeof(host[0])),
                "download");
    };
    download(got_h, device_h);
    download(got_offsets, device_offsets);
    download(got_slots, device_slots);
    if (round == 1) {
      CHECK_MESSAGE(got_h == first, "two runs differ");
      break;
    }
    first = got_h;
    const std::string problem = oracle::up_problem(c, {got_h, stride, got_offsets, got_slots}, live, step);
    CHECK_MESSAGE(problem.empty(), problem);
  }
}

varmoe::LayerSpec mixed_spec(bool shared) {
  varmoe::LayerSpec spec = varmoe::uniform_spec(264, 12, 96, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = e % 3 == 0 ? 40 : e % 3 == 1 ? 96 : 136;
  if (shared) {
    spec.shared_widths = {200, 72};
    spec.shared_gate = true;
  }
  return spec;
}

}  // namespace

TEST_CASE("small: the up-projection alone in every layout with and without shared experts") {
  for (const bool shared : {false, true}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const varmoe::GateOrder order :
           {varmoe::GateOrder::gate_first, varmoe::GateOrder::up_first, varmoe::GateOrder::interleaved}) {
        for (const varmoe::DType dtype : {varmoe::DType::bf16, varmoe::DType::fp16}) {
          auto spec = mixed_spec(shared);
          spec.fc1_layout = layout;
          spec.gate_order = order;
          spec.dtype = dtype;
          CAPTURE(varmoe::kernel_signature(spec));
          oracle::CaseOptions options;
          options.tokens = 300;
          options.routing = oracle::Routing::zipf;
          options.invalid_fraction = 0.2;
          options.empty_every = 4;
          options.x_stride = spec.hidden_size + 8;
          const auto c = oracle::make_case(spec, options);
          gpu::DeviceLayer layer(c);
          check_up(c, layer, 1, 1, 1);
          check_up(c, layer, 300, 300, 7, true, 8);
          check_up(c, layer, 300, 131, 7);
        }
      }
    }
  }
}

TEST_CASE("small: the up-projection alone of runtime widths and on few SMs and with many rows") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 24, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 24));
  spec.shared_widths = {136};
  const auto c = oracle::make_case(spec, {.tokens = 3000, .routing = oracle::Routing::half_on_one});
  for (const int sms : {0, 3}) {
    varmoe::LayerOptions options;
    options.max_sms = sms;
    gpu::DeviceLayer layer(c, options);
    check_up(c, layer, 64, 64, 3);
    check_up(c, layer, 3000, 3000, 100);
    check_up(c, layer, 3000, 0, 1);
  }
}

TEST_CASE("the up-projection alone of a real layer gives what forward multiplies") {
  auto spec = varmoe::uniform_spec(2048, 64, 1408, 6);
  spec.shared_widths = {2816};
  const auto c = oracle::make_case(spec, {.tokens = 4096, .routing = oracle::Routing::zipf});
  gpu::DeviceLayer layer(c);
  for (const std::int64_t tokens : {1, 64, 4096})
    check_up(c, layer, tokens, tokens, std::max<std::int64_t>(1, tokens / 16));
}
