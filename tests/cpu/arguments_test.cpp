#include <doctest/doctest.h>

#include <string>

#include "cpu_case.hpp"

using varmoe::ErrorCode;

namespace {

struct Fixture {
  oracle::RandomCase c = oracle::make_case(cpu_test::small_spec(), {.tokens = 4});
  std::unique_ptr<varmoe::cpu::CpuLayer> layer = cpu_test::bound_layer(c, 2);

  /// The arguments, changed, are refused with a message that names `word`; nothing was written.
  template <class Change>
  void refused(const char* word, const Change& change, ErrorCode code = ErrorCode::invalid_argument) {
    auto args = cpu_test::arguments(c);
    change(args);
    const auto status = layer->forward(args);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == code);
    CHECK_MESSAGE(status.error().message().find(word) != std::string::npos, status.error().message());
    CHECK(c.out[0] == oracle::kPoison);
  }
};

const void* shifted(const void* p, int bytes) {
  return static_cast<const char*>(p) + bytes;
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "bad arguments are refused by name") {
  using Args = varmoe::ForwardArgs;
  refused("tokens", [](Args& a) { a.tokens = -1; });
  refused("tokens", [](Args& a) { a.tokens = std::int64_t{1} << 31; });
  refused("x is null", [](Args& a) { a.x = nullptr; });
  refused("out is null", [](Args& a) { a.out = nullptr; });
  refused("topk_ids", [](Args& a) { a.topk_ids = nullptr; });
  refused("topk_weights", [](Args& a) { a.topk_weights = nullptr; });
  refused("x_stride", [](Args& a) { a.x_stride = 128; });
  refused("x_stride", [](Args& a) { a.x_stride = 137; });
  refused("x_stride", [](Args& a) { a.x_stride = -136; });
  refused("out_stride", [](Args& a) { a.out_stride = 140; });
  refused("x is not 16-byte", [](Args& a) { a.x = shifted(a.x, 2); });
  refused("topk_ids", [](Args& a) { a.topk_ids = shifted(a.topk_ids, 2); });
  refused("workspace", [this](Args& a) { a.workspace = c.x.data() + 8; });
  static const std::int32_t map[2] = {};
  refused("expert_map", [](Args& a) { a.expert_map = static_cast<const std::int32_t*>(shifted(map, 2)); });
  refused("num_global_experts", [](Args& a) { a.expert_map = map; });
}

TEST_CASE_FIXTURE(Fixture, "a workspace too small even for one token is refused with the sizes") {
  oracle::Buffer16 workspace(128);
  refused(
      std::to_string(layer->workspace_bytes(1)).c_str(),
      [&](varmoe::ForwardArgs& a) {
        a.workspace = workspace.data();
        a.workspace_bytes = 256;
      },
      ErrorCode::workspace_too_small);
}

TEST_CASE("forward before bind") {
  auto c = oracle::make_case(cpu_test::small_spec(), {.tokens = 4});
  auto layer = varmoe::cpu::CpuLayer::create(c.spec, 1);
  REQUIRE(layer.ok());
  const auto status = (*layer)->forward(cpu_test::arguments(c));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::not_bound);
}

TEST_CASE("a bad spec, weights that do not fit, an unknown instruction set") {
  auto spec = cpu_test::small_spec();
  CHECK(varmoe::cpu::CpuLayer::create(spec, 1, "sse9").error().code() == ErrorCode::unsupported);
  auto layer = varmoe::cpu::CpuLayer::create(spec, 1);
  REQUIRE(layer.ok());
  CHECK_FALSE((*layer)->bind({}).ok());
  spec.hidden_size = 7;
  CHECK(varmoe::cpu::CpuLayer::create(spec, 1).error().code() == ErrorCode::invalid_spec);
}

TEST_CASE("bind again after the weights moved") {
  auto a = oracle::make_case(cpu_test::small_spec(), {.tokens = 4, .seed = 1});
  auto b = oracle::make_case(cpu_test::small_spec(), {.tokens = 4, .seed = 2});
  auto layer = cpu_test::bound_layer(a, 2);
  const auto reference = b.reference();
  REQUIRE(layer->bind(b.host_weights().value()).ok());
  cpu_test::run(*layer, cpu_test::arguments(b));
  cpu_test::check(b, reference);
}
