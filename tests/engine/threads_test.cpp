#include <random>
#include <thread>

#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

TEST_CASE_FIXTURE(EngineFixture, "fault 40: 32 threads create, prepare, bind, forward and destroy") {
  Engine engine = make_engine();
  Layer shared = make_bound_layer(engine, test::pruned_spec());
  constexpr int kThreads = 32;
  std::vector<std::unique_ptr<test::Arena>> arenas;
  for (int i = 0; i < kThreads; ++i) arenas.push_back(std::make_unique<test::Arena>(std::size_t{8} << 20));
  std::atomic<int> bad{0};
  std::mutex first_mutex;
  std::string first;
  const auto must = [&](const auto& result) {
    if (result.ok()) return;
    ++bad;
    const std::lock_guard lock(first_mutex);
    if (first.empty()) first = result.error().message();
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      std::mt19937 random(static_cast<unsigned>(i));
      const auto arena =
          static_cast<std::byte*>(arenas[static_cast<std::size_t>(i)]->take(std::size_t{8} << 20));
      const std::int64_t counts[] = {1, 3, 16, 100};
      for (int round = 0; round < 6; ++round) {
        const std::int64_t tokens = counts[random() % 4];
        auto layer = engine.create_layer(test::pruned_spec(static_cast<int>(random() % 5)));
        must(layer);
        if (!layer) continue;
        // Each thread's buffers: its own slices of its own arena.
        const auto use = [&](Layer& target) {
          ForwardArgs args;
          args.tokens = tokens;
          args.x = arena;
          args.out = arena + (1 << 20);
          args.topk_ids = arena + (2 << 20);
          args.topk_weights = reinterpret_cast<const float*>(arena + (3 << 20));
          args.workspace = arena + (4 << 20);
          args.workspace_bytes = std::size_t{4} << 20;
          must(target.forward(args));
        };
        must(layer->bind(test::fake_weights(layer->spec())));
        if (random() % 2) {
          PrepareOptions prepare_options;
          prepare_options.tokens = {tokens, counts[random() % 4]};
          must(layer->prepare(prepare_options));
        }
        use(*layer);
        use(shared);
        if (random() % 4 == 0) must(shared.prepare({.tokens = {tokens}, .progress = {}}));
        static_cast<void>(engine.counters());
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_MESSAGE(bad == 0, first);
  // One class set: every layer shared the kernels of the few buckets used.
  CHECK(engine.counters().kernels_loaded == fake_cuda::live_libraries());
  CHECK(engine.counters().compiles == engine.counters().kernels_loaded);
  CHECK(engine.counters().forwards == kThreads * 6 * 2);
}
