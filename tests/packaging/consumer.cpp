// A C++ program that uses varmoe as installed: the same tiny layer, and an error with its sentence.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <varmoe/varmoe.hpp>
#include <vector>

namespace {

struct alignas(256) Block {
  std::uint16_t values[128];
};
std::vector<Block> filled(std::size_t elements, std::uint16_t value) {
  std::vector<Block> blocks((elements + 127) / 128);
  for (Block& b : blocks) {
    for (std::uint16_t& v : b.values) v = value;
  }
  return blocks;
}

}  // namespace

int main() try {
  if (std::strcmp(varmoe::version(), PACKAGE_VERSION) != 0) return 1;
  varmoe::EngineOptions options;
  options.device = varmoe::kCpuDevice;
  varmoe::Engine engine = varmoe::Engine::create(options).value();
  const auto spec = varmoe::uniform_spec(64, 2, 8, 1, varmoe::Activation::relu);
  varmoe::Layer layer = engine.create_layer(spec).value();
  layer.prepare().value();

  auto fc1 = filled(2 * 8 * 64, 0x3F80), fc2 = filled(2 * 8 * 64, 0x3F80), x = filled(3 * 64, 0x3F80),
       out = filled(3 * 64, 0xFFFF);
  layer.bind(varmoe::Weights::blocks(spec, fc1.data(), fc2.data()).value()).value();
  const std::int64_t ids[] = {0, 1, -1};
  const float weights[] = {0.5f, 0.5f, 0.5f};
  const std::size_t bytes = layer.workspace_bytes(3).value();
  auto workspace = filled(bytes / 2 + 1, 0xFFFF);
  varmoe::ForwardArgs args;
  args.tokens = 3;
  args.x = x.data();
  args.topk_ids = ids;
  args.id_type = varmoe::IdType::int64;
  args.topk_weights = weights;
  args.out = out.data();
  args.workspace = workspace.data();
  args.workspace_bytes = bytes;
  layer.forward(args).value();
  for (int i = 0; i < 3 * 64; ++i) {
    const std::uint16_t want = i < 2 * 64 ? 0x4380 : 0;  // 256, and nothing for the id of −1
    if (out[static_cast<std::size_t>(i / 128)].values[i % 128] != want) return 1;
  }

  auto bad = spec;
  bad.hidden_size = 63;
  try {
    engine.create_layer(bad).value();
    return 1;
  } catch (const varmoe::Exception& e) {
    if (e.code() != varmoe::ErrorCode::invalid_spec || std::strstr(e.what(), "63") == nullptr) return 1;
  }
  std::puts("C++ consumer: ok");
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
