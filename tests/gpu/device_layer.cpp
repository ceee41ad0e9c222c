#include "gpu/device_layer.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "gpu/evidence.hpp"

namespace gpu {
namespace {

using varmoe::cuda::DeviceBuffer;

struct World {
  std::string problem;
  std::shared_ptr<varmoe::cuda::Device> device;
};

const World& world() {
  static const World w = [] {
    World made;
    auto driver = varmoe::cuda::Driver::load();
    if (!driver) {
      made.problem = driver.error().message();
      return made;
    }
    auto opened = varmoe::cuda::Device::open(*driver, 0);
    if (!opened) {
      made.problem = opened.error().message();
      return made;
    }
    made.device = *opened;
    return made;
  }();
  return w;
}

/// A folder that goes with the process.
struct TempFolder {
  std::string path;
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "varmoe-gpu-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

/// Bytes after each buffer that must stay as they are.
constexpr std::size_t kGuard = 4096;
constexpr std::uint8_t kGuardByte = 0xa5, kPoisonByte = 0xff;

DeviceBuffer upload(const void* data, std::size_t bytes) {
  auto buffer = must(DeviceBuffer::allocate(device(), std::max<std::size_t>(bytes, 16)), "allocate");
  if (bytes > 0) must(varmoe::cuda::copy_to_device(*device(), buffer.address(), data, bytes), "upload");
  return buffer;
}

void fill(std::uint64_t address, std::uint8_t value, std::size_t bytes, void* stream) {
  if (bytes > 0) must(varmoe::cuda::fill_async(*device(), address, value, bytes, stream), "fill");
}

}  // namespace

std::string why_no_gpu() {
  return world().problem;
}
std::shared_ptr<varmoe::cuda::Device> device() {
  return world().device;
}

const std::string& cache_dir() {
  static const TempFolder folder;
  return folder.path;
}

varmoe::Engine& engine() {
  static varmoe::Engine made = [] {
    varmoe::EngineOptions options;
    options.cache_dir = cache_dir();
    options.log = [](varmoe::LogLevel, std::string_view) {};  // every case is a first use
    return must(varmoe::Engine::create(options), "Engine::create");
  }();
  return made;
}

DeviceLayer::DeviceLayer(const oracle::RandomCase& c, varmoe::LayerOptions options, varmoe::Engine* on)
    : case_(c) {
  if (on == nullptr) on = &engine();
  stream_ = std::make_unique<varmoe::cuda::Stream>(must(varmoe::cuda::Stream::create(device()), "stream"));
  fc1_ = upload(c.fc1.data(), c.fc1.bytes());
  up_ = upload(c.up.data(), c.up.bytes());
  fc2_ = upload(c.fc2.data(), c.fc2.bytes());
  fc1_bias_ = upload(c.fc1_bias.data(), c.fc1_bias.bytes());
  fc2_bias_ = upload(c.fc2_bias.data(), c.fc2_bias.bytes());
  x_ = upload(c.x.data(), c.x.bytes());
  out_ = must(DeviceBuffer::allocate(device(), c.out.bytes() + kGuard), "allocate");
  ids32_ = upload(c.ids32.data(), c.ids32.size() * 4);
  ids64_ = upload(c.ids64.data(), c.ids64.size() * 8);
  weights_ = upload(c.topk_weights.data(), c.topk_weights.size() * 4);
  const std::int32_t none = 0;
  count_ = upload(&none, sizeof none);
  layer_ = std::make_unique<varmoe::Layer>(must(on->create_layer(c.spec, options), "create_layer"));
  must(layer_->bind(must(c.weights(fc1_.data(), up_.data(), fc2_.data(), fc1_bias_.data(), fc2_bias_.data()),
                         "weights")),
       "bind");
}

varmoe::ForwardArgs DeviceLayer::args(const RunOptions& options) {
  varmoe::ForwardArgs a;
  a.tokens = options.tokens >= 0 ? options.tokens : case_.options.tokens;
  a.x = x_.data();
  a.x_stride = case_.x_stride;
  a.topk_ids = options.ids_64 ? ids64_.data() : ids32_.data();
  a.id_type = options.ids_64 ? varmoe::IdType::int64 : varmoe::IdType::int32;
  a.topk_weights = static_cast<const float*>(weights_.data());
  a.out = out_.data();
  a.out_stride = case_.out_stride;
  a.accumulate = case_.options.accumulate;
  if (options.device_tokens >= 0) {
    const auto n = static_cast<std::int32_t>(options.device_tokens);
    must(varmoe::cuda::copy_to_device(*device(), count_.address(), &n, sizeof n), "upload");
    a.token_count = static_cast<const std::int32_t*>(count_.data());
  }
  if (options.expert_map != nullptr) {
    map_ = upload(options.expert_map->data(), options.expert_map->size() * 4);
    a.expert_map = static_cast<const std::int32_t*>(map_.data());
    a.num_global_experts = static_cast<std::int64_t>(options.expert_map->size());
  }
  if (options.keep_absent) a.absent_tokens = varmoe::AbsentTokens::untouched;
  a.workspace_bytes = must(layer_->workspace_bytes(a.tokens), "workspace_bytes");
  if (workspace_.size() < a.workspace_bytes + kGuard) {
    workspace_ = {};
    workspace_ = must(DeviceBuffer::allocate(device(), a.workspace_bytes + kGuard), "allocate");
  }
  a.workspace = workspace_.data();
  a.stream = stream();
  return a;
}

void DeviceLayer::poison_out() {
  if (case_.options.accumulate) {
    must(varmoe::cuda::copy_to_device(*device(), out_.address(), case_.out.data(), case_.out.bytes()),
         "upload");
  } else {
    fill(out_.address(), kPoisonByte, case_.out.bytes(), stream());
  }
  fill(out_.address() + case_.out.bytes(), kGuardByte, kGuard, stream());
}

void DeviceLayer::synchronize() {
  must(stream_->synchronize(), "synchronize");
}

std::vector<std::uint16_t> DeviceLayer::download_out() {
  synchronize();
  std::vector<std::uint16_t> out((case_.out.bytes() + kGuard) / 2);
  must(varmoe::cuda::copy_to_host(*device(), out.data(), out_.address(), out.size() * 2), "download");
  const auto* guard = reinterpret_cast<const std::uint8_t*>(out.data()) + case_.out.bytes();
  CHECK_MESSAGE(std::all_of(guard, guard + kGuard, [](std::uint8_t b) { return b == kGuardByte; }),
                "wrote behind out");
  out.resize(case_.out.bytes() / 2);
  return out;
}

std::vector<std::uint16_t> DeviceLayer::forward_twice(const RunOptions& options) {
  std::vector<std::uint16_t> first;
  for (int round = 0; round < 2; ++round) {
    varmoe::ForwardArgs a = args(options);
    poison_out();
    // The workspace's contents must not matter: NaNs first, then small integers that pass for indices.
    fill(reinterpret_cast<std::uint64_t>(a.workspace), round == 0 ? kPoisonByte : 0x01, a.workspace_bytes,
         stream());
    fill(reinterpret_cast<std::uint64_t>(a.workspace) + a.workspace_bytes, kGuardByte, kGuard, stream());
    must(layer_->forward(a), "forward");
    auto out = download_out();
    std::vector<std::uint8_t> guard(kGuard);
    must(varmoe::cuda::copy_to_host(*device(), guard.data(),
                                    reinterpret_cast<std::uint64_t>(a.workspace) + a.workspace_bytes, kGuard),
         "download");
    CHECK_MESSAGE(std::all_of(guard.begin(), guard.end(), [](std::uint8_t b) { return b == kGuardByte; }),
                  "wrote behind the workspace");
    if (round == 0) {
      first = std::move(out);
    } else {
      CHECK_MESSAGE(out == first, "two runs differ");
    }
  }
  return first;
}

oracle::Comparison DeviceLayer::compare(const RunOptions& options) {
  const std::int64_t tokens = options.tokens >= 0 ? options.tokens : case_.options.tokens;
  const std::int64_t live = options.device_tokens >= 0 ? std::min(options.device_tokens, tokens) : tokens;
  const auto out = forward_twice(options);
  std::int64_t sample = options.sample;
  if (sample == 0) {
    const double per_token = 3.0 * static_cast<double>(case_.spec.slots_per_token() * case_.spec.hidden_size *
                                                       case_.spec.widest_of_all());
    sample = std::clamp<std::int64_t>(static_cast<std::int64_t>(4e9 / per_token), 6, 512);
  }
  auto call = case_.oracle_call();
  if (options.expert_map != nullptr) {
    call.expert_map = options.expert_map->data();
    call.global_experts = static_cast<std::int64_t>(options.expert_map->size());
  }
  // Rows of tokens without an expert that are to stay as they are.
  const auto is_kept = [&](std::int64_t t) {
    if (!options.keep_absent) return false;
    for (std::int64_t j = 0; j < case_.spec.top_k; ++j) {
      std::int64_t e = call.ids[t * case_.spec.top_k + j];
      if (call.expert_map != nullptr) e = e >= 0 && e < call.global_experts ? call.expert_map[e] : -1;
      if (e >= 0 && e < case_.spec.num_experts()) return false;
    }
    return true;
  };
  auto sampled = oracle::sample_tokens(live, sample, case_.options.seed);
  sampled.erase(std::remove_if(sampled.begin(), sampled.end(), is_kept), sampled.end());
  const auto reference = oracle::oracle_forward(case_.oracle_layer(), call, sampled);
  const std::int64_t hidden = case_.spec.hidden_size;
  const auto result = oracle::compare_rows(case_.spec.dtype, reference, out.data(), case_.out_stride, hidden,
                                           sampled, oracle::bars_of(case_.spec.dtype));
  // What was not computed is as it was: rows at and beyond the count, and the gaps between rows.
  bool untouched = true;
  for (std::int64_t t = 0; t < case_.options.tokens && untouched; ++t) {
    const std::int64_t from = t < live && !is_kept(t) ? hidden : 0;
    for (std::int64_t i = from; i < case_.out_stride && t * case_.out_stride + i < case_.out.size(); ++i) {
      const auto at = static_cast<std::size_t>(t * case_.out_stride + i);
      const std::uint16_t before =
          case_.options.accumulate ? case_.out[static_cast<std::int64_t>(at)] : 0xffff;
      if (out[at] != before) untouched = false;
    }
  }
  CHECK_MESSAGE(untouched, "rows or gaps that are not output were written");
  return result;
}

void check_case(const std::string& group, DeviceLayer& layer, const RunOptions& options) {
  const auto c = layer.compare(options);
  record_errors(group, c);
  CHECK_MESSAGE(c.pass, layer.source().spec.hidden_size << " hidden, " << layer.source().spec.num_experts()
                                                        << " experts, " << options.tokens
                                                        << " tokens: " << c.text());
}

}  // namespace gpu
