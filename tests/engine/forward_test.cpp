#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/layer_impl.hpp"
#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

// Every allocation of this thread while counting, except the fake driver's own.
thread_local bool counting = false;
thread_local std::size_t allocations = 0;

void* counted(std::size_t size) {
  if (counting && !fake_cuda::inside()) ++allocations;
  return std::malloc(size);
}

}  // namespace

void* operator new(std::size_t size) {
  if (void* p = counted(size)) return p;
  throw std::bad_alloc();
}
// std::stable_sort's buffer comes from this one; what it gives must be what delete takes back.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted(size);
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

namespace {

/// Runs `f` and says how often it allocated.
template <class F>
std::size_t allocations_of(F&& f) {
  allocations = 0;
  counting = true;
  f();
  counting = false;
  return allocations;
}

std::string message_of(const Status& status) {
  REQUIRE_FALSE(status.ok());
  return status.error().message();
}

}  // namespace

TEST_CASE_FIXTURE(EngineFixture, "a forward enqueues the layer's kernels on the caller's stream") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {64});
  auto stream = cuda::Stream::create(EngineAccess::impl(engine).device);
  REQUIRE(stream.ok());
  test::Arena arena;
  fake_cuda::clear_launches();
  require_ok(layer.forward(test::make_args(arena, layer, 64, stream->handle())));
  const auto launches = fake_cuda::launches();
  REQUIRE(launches.size() >= 4);
  const char* order[] = {"varmoe_sort", "varmoe_fc1", "varmoe_fc2", "varmoe_combine"};
  std::size_t at = 0;
  for (const auto& launch : launches) {
    CHECK(launch.stream == stream->handle());
    if (at < 4 && launch.name.rfind(order[at], 0) == 0) ++at;
  }
  CHECK(at == 4);
  CHECK(engine.counters().forwards == 1);
}

TEST_CASE_FIXTURE(EngineFixture, "the prepared path allocates, logs, compiles and synchronises nothing") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {1, 64, 4096});
  test::Arena arena;
  const ForwardArgs args[] = {test::make_args(arena, layer, 1), test::make_args(arena, layer, 33),
                              test::make_args(arena, layer, 4096)};
  const std::size_t lines = lines_logged(), compiles = fake_nvrtc::compiles();
  fake_cuda::clear_calls();
  bool ok = true;
  const std::size_t allocated = allocations_of([&] {
    for (int round = 0; round < 10; ++round)
      for (const auto& a : args) ok = ok && layer.forward(a).ok();
  });
  CHECK(ok);
  CHECK(allocated == 0);
  CHECK(lines_logged() == lines);
  CHECK(fake_nvrtc::compiles() == compiles);
  for (const std::string& call : fake_cuda::call_log()) {
    // Tensor maps are encoded on the host, of addresses that each forward may change.
    const bool allowed = call.find("Launch") != std::string::npos || call.rfind("cuCtx", 0) == 0 ||
                         call == "cuTensorMapEncodeTiled";
    CHECK_MESSAGE(allowed, call);
    CHECK_MESSAGE(call.find("Synchronize") == std::string::npos, call);
  }
}

TEST_CASE_FIXTURE(
    EngineFixture,
    "after a prepare every token count is served by the nearest bucket, and nothing is compiled") {
  options.fc1_config = "tokens=1-16,raster=4;tokens=17-,raster=2";
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {4, 256});
  const std::size_t compiles = fake_nvrtc::compiles();
  test::Arena arena;
  const auto fc1_of = [&](std::int64_t tokens) {
    fake_cuda::clear_launches();
    require_ok(layer.forward(test::make_args(arena, layer, tokens)));
    for (const std::string& name : test::launched_kernels())
      if (name.find("_fc1_") != std::string::npos) return name;
    return std::string();
  };
  const std::string small = fc1_of(4), large = fc1_of(256);
  CHECK(small != large);
  CHECK(fc1_of(1) == small);
  CHECK(fc1_of(5) == large);
  CHECK(fc1_of(3000) == large);
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(EngineFixture, "no tokens is nothing to do, whatever the pointers") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  fake_cuda::clear_launches();
  CHECK(layer.forward({}).ok());
  CHECK(fake_cuda::launches().empty());
  CHECK(*layer.workspace_bytes(0) == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "a forward before bind is not_bound") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  prepare(layer, {1});
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 1)).error().code() == ErrorCode::not_bound);
}

TEST_CASE_FIXTURE(EngineFixture, "every argument out of range is refused by name, and nothing is enqueued") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {8});
  test::Arena arena;
  const ForwardArgs good = test::make_args(arena, layer, 8);
  struct Case {
    const char* says;
    std::function<void(ForwardArgs&)> spoil;
  };
  const auto shift = [](auto& pointer, std::ptrdiff_t bytes) {
    using P = std::remove_reference_t<decltype(pointer)>;
    pointer =
        reinterpret_cast<P>(reinterpret_cast<std::uintptr_t>(pointer) + static_cast<std::uintptr_t>(bytes));
  };
  static std::int32_t counts[2];
  const Case cases[] = {
      {"tokens = -1", [](ForwardArgs& a) { a.tokens = -1; }},
      {"tokens = 4294967296",
       [](ForwardArgs& a) {
         a.tokens = std::int64_t{1} << 32;
         a.workspace_bytes = SIZE_MAX;
       }},
      {"x is null", [](ForwardArgs& a) { a.x = nullptr; }},
      {"topk_ids is null", [](ForwardArgs& a) { a.topk_ids = nullptr; }},
      {"topk_weights is null", [](ForwardArgs& a) { a.topk_weights = nullptr; }},
      {"out is null", [](ForwardArgs& a) { a.out = nullptr; }},
      {"workspace is null", [](ForwardArgs& a) { a.workspace = nullptr; }},
      {"x = ", [&](ForwardArgs& a) { shift(a.x, 8); }},
      {"out = ", [&](ForwardArgs& a) { shift(a.out, 2); }},
      {"topk_ids = ", [&](ForwardArgs& a) { shift(a.topk_ids, 2); }},
      {"8-byte aligned", [&](ForwardArgs& a) { shift(a.topk_ids, 4), a.id_type = IdType::int64; }},
      {"topk_weights = ", [&](ForwardArgs& a) { shift(a.topk_weights, 1); }},
      {"workspace = ", [&](ForwardArgs& a) { shift(a.workspace, 128); }},
      {"token_count = ",
       [&](ForwardArgs& a) {
         a.token_count = counts;
         shift(a.token_count, 1);
       }},
      {"expert_map = ",
       [&](ForwardArgs& a) {
         a.expert_map = counts;
         a.num_global_experts = 2;
         shift(a.expert_map, 2);
       }},
      {"num_global_experts = 0", [](ForwardArgs& a) { a.expert_map = counts; }},
      {"num_global_experts = 2147483648",
       [](ForwardArgs& a) {
         a.expert_map = counts;
         a.num_global_experts = std::int64_t{1} << 31;
       }},
      {"absent_tokens = 2", [](ForwardArgs& a) { a.absent_tokens = static_cast<AbsentTokens>(2); }},
      {"x_stride = 120", [](ForwardArgs& a) { a.x_stride = 120; }},
      {"x_stride = 132", [](ForwardArgs& a) { a.x_stride = 132; }},
      {"out_stride = -128", [](ForwardArgs& a) { a.out_stride = -128; }},
      {"out_stride = 9223372036854775800", [](ForwardArgs& a) { a.out_stride = 9223372036854775800; }},
      {"id_type = 7", [](ForwardArgs& a) { a.id_type = static_cast<IdType>(7); }},
      {"out overlaps x", [](ForwardArgs& a) { a.out = const_cast<void*>(a.x); }},
      {"out overlaps x",
       [&](ForwardArgs& a) {
         a.out = const_cast<void*>(a.x);
         shift(a.out, 7 * 128 * 2 + 240);
       }},
      {"workspace overlaps out", [](ForwardArgs& a) { a.workspace = a.out; }},
      {"workspace overlaps", [](ForwardArgs& a) { a.workspace = const_cast<void*>(a.x); }},
  };
  fake_cuda::clear_launches();
  for (const Case& c : cases) {
    ForwardArgs args = good;
    c.spoil(args);
    const Status status = layer.forward(args);
    const std::string message = message_of(status), context = std::string(c.says) + ": " + message;
    CHECK_MESSAGE(status.error().code() == ErrorCode::invalid_argument, context);
    CHECK_MESSAGE(message.find(c.says) != std::string::npos, context);
    // The fast check and the sentence agree.
    if (args.tokens >= 1) {
      CHECK_FALSE(engine::forward_arguments_ok(layer.spec(), args, 1));
      CHECK_FALSE(engine::forward_argument_problem(layer.spec(), args, 1).empty());
    }
  }
  CHECK(fake_cuda::launches().empty());
  ForwardArgs small = good;
  small.workspace_bytes -= 1;
  const Status status = layer.forward(small);
  CHECK(status.error().code() == ErrorCode::workspace_too_small);
  CHECK(message_of(status).find(std::to_string(good.workspace_bytes)) != std::string::npos);
  CHECK(engine::forward_argument_problem(layer.spec(), good, good.workspace_bytes).empty());
  // Rows that interleave inside one buffer but do not overlap as ranges are all right; touching ranges are
  // too.
  ForwardArgs touching = good;
  touching.out = const_cast<std::byte*>(static_cast<const std::byte*>(good.x)) + 8 * 128 * 2;
  CHECK(engine::forward_arguments_ok(layer.spec(), touching, 1));
}

TEST_CASE_FIXTURE(
    EngineFixture,
    "workspace grows with tokens and stops at its bound; what serves many tokens serves fewer") {
  Engine engine = make_engine();
  Layer unbounded = make_layer(engine, test::small_spec());
  std::size_t last = 0;
  for (std::int64_t tokens = 1; tokens < 5000; tokens += 7) {
    const std::size_t bytes = *unbounded.workspace_bytes(tokens);
    CHECK(bytes >= last);
    CHECK(bytes % 256 == 0);
    last = bytes;
  }
  CHECK(unbounded.workspace_bytes(-1).error().code() == ErrorCode::invalid_argument);

  LayerOptions layer_options;
  layer_options.max_workspace_bytes = *unbounded.workspace_bytes(600) + 100;
  Layer bounded = make_bound_layer(engine, test::small_spec(), layer_options);
  last = 0;
  for (std::int64_t tokens = 1; tokens < 5000; ++tokens) {
    const std::size_t bytes = *bounded.workspace_bytes(tokens);
    REQUIRE(bytes >= last);
    REQUIRE(bytes <= layer_options.max_workspace_bytes);
    last = bytes;
  }
  prepare(bounded, {1024});
  test::Arena arena;
  ForwardArgs args = test::make_args(arena, bounded, 3000);
  fake_cuda::clear_launches();
  require_ok(bounded.forward(args));
  std::size_t combines = 0;
  for (const auto& name : test::launched_kernels()) combines += name.rfind("varmoe_combine", 0) == 0 ? 1 : 0;
  CHECK(combines == 5);  // even chunks of 600
  args.tokens = 600;     // the workspace of 3000 tokens serves the largest chunk
  CHECK(bounded.forward(args).ok());
}

TEST_CASE_FIXTURE(EngineFixture, "max_sms bounds the grids") {
  Engine engine = make_engine();
  LayerOptions layer_options;
  layer_options.max_sms = 3;
  Layer bounded = make_bound_layer(engine, test::small_spec(), layer_options);
  Layer free = make_bound_layer(engine, test::small_spec());
  prepare(bounded, {4096});
  prepare(free, {4096});
  test::Arena arena;
  const auto largest_grid = [&](Layer& layer) {
    fake_cuda::clear_launches();
    require_ok(layer.forward(test::make_args(arena, layer, 4096)));
    unsigned largest = 0;
    for (const auto& launch : fake_cuda::launches())
      if (launch.name.rfind("varmoe_sort", 0) != 0) largest = std::max(largest, launch.grid[0]);
    return largest;
  };
  CHECK(largest_grid(bounded) <= 3 * 32);  // an SM holds at most 32 blocks
  CHECK(largest_grid(bounded) < largest_grid(free));
}

TEST_CASE_FIXTURE(EngineFixture,
                  "bind may be repeated; it keeps the table's place, so captured graphs follow") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  const std::size_t before = fake_cuda::live_allocations();
  require_ok(layer.bind(test::fake_weights(test::small_spec(), 0x10000)));
  CHECK(fake_cuda::live_allocations() == before + 1);
  require_ok(layer.bind(test::fake_weights(test::small_spec(), 0x20000)));
  CHECK(fake_cuda::live_allocations() == before + 1);
}

TEST_CASE_FIXTURE(EngineFixture, "bad weights are refused, and the old binding stays") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  Weights weights = test::fake_weights(test::small_spec());
  Weights missing = weights;
  missing.experts[3].down = nullptr;
  const Status refused = layer.bind(missing);
  REQUIRE_FALSE(refused.ok());
  CHECK_MESSAGE(refused.error().message().find("3") != std::string::npos, refused.error().message());
  require_ok(layer.bind(weights));
  CHECK_FALSE(layer.bind(missing).ok());
  prepare(layer, {1});
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 1)).ok());
}

TEST_CASE_FIXTURE(EngineFixture, "a failing launch is device_error, and the next forward works") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {64});  // several launches
  test::Arena arena;
  const ForwardArgs args = test::make_args(arena, layer, 64);
  fake_cuda::fail_any(719 /* CUDA_ERROR_LAUNCH_FAILED */, 2);
  const Status status = layer.forward(args);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::device_error);
  CHECK(layer.forward(args).ok());
}
