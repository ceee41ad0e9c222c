#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "c_api/structs.hpp"
#include "varmoe/varmoe.h"
#include "varmoe/varmoe.hpp"

extern "C" int varmoe_test_c_program(void);

namespace {

const std::int64_t kWidths[] = {64, 128, 64, 8};

varmoe_layer_spec good_spec() {
  varmoe_layer_spec spec;
  REQUIRE(varmoe_layer_spec_init(&spec, sizeof spec) == VARMOE_OK);
  spec.hidden_size = 128;
  spec.expert_widths = kWidths;
  spec.num_experts = 4;
  spec.top_k = 2;
  return spec;
}

struct Handles {
  Handles() {
    varmoe_engine_options options;
    REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
    options.device = VARMOE_CPU_DEVICE;
    options.cpu_threads = 1;
    REQUIRE(varmoe_engine_create(&options, &engine) == VARMOE_OK);
    const varmoe_layer_spec spec = good_spec();
    REQUIRE(varmoe_layer_create(engine, &spec, nullptr, &layer) == VARMOE_OK);
  }
  ~Handles() {
    varmoe_layer_destroy(layer);
    varmoe_engine_destroy(engine);
  }
  varmoe_engine* engine = nullptr;
  varmoe_layer* layer = nullptr;
};

bool last_error_has(const char* text) {
  return std::string(varmoe_last_error()).find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("a C program lives a layer's life") {
  const int status = varmoe_test_c_program();
  CHECK_MESSAGE(status == 0, status << ": " << varmoe_last_error());
}

TEST_CASE("names and version") {
  CHECK(std::string(varmoe_version()) == VARMOE_VERSION_STRING);
  CHECK(std::string(varmoe_status_name(VARMOE_OK)) == "ok");
  CHECK(std::string(varmoe_status_name(VARMOE_E_NOT_PREPARED)) == "not_prepared");
  CHECK(std::string(varmoe_status_name(VARMOE_E_INTERNAL)) == "internal");
  CHECK(std::string(varmoe_status_name(18)) == "unknown");
  CHECK(std::string(varmoe_status_name(-1)) == "unknown");
}

TEST_CASE("pointers of each expert are read as so many addresses") {
  const Handles h;
  alignas(256) static std::uint16_t fc1[2 * 128 * 128], fc2[128 * 128];
  const void* const one[] = {fc1, fc1, fc1, fc1};
  const void* const two[] = {fc2, fc2, fc2, fc2};
  varmoe_weights weights;
  REQUIRE(varmoe_weights_init(&weights, sizeof weights) == VARMOE_OK);
  weights.storage = VARMOE_STORAGE_POINTERS;
  weights.fc1_pointers = one;
  weights.fc2_pointers = two;
  weights.num_experts = 4;
  CHECK_MESSAGE(varmoe_layer_bind(h.layer, &weights) == VARMOE_OK, varmoe_last_error());
  weights.num_experts = 2;
  CHECK(varmoe_layer_bind(h.layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
}

TEST_CASE("null where a pointer is required is an error that names it") {
  Handles h;
  varmoe_counters counters;
  varmoe_counters_init(&counters, sizeof counters);
  varmoe_kernel_report kernel;
  varmoe_kernel_report_init(&kernel, sizeof kernel);
  varmoe_forward_args args;
  varmoe_forward_args_init(&args, sizeof args);
  const varmoe_layer_spec spec = good_spec();
  varmoe_layer* layer = nullptr;
  char text[4];
  size_t size = 0;
  const struct {
    int status;
    const char* names;
  } cases[] = {
      {varmoe_engine_options_init(nullptr, sizeof(varmoe_engine_options)), "varmoe_engine_options"},
      {varmoe_layer_spec_init(nullptr, sizeof(varmoe_layer_spec)), "varmoe_layer_spec"},
      {varmoe_layer_options_init(nullptr, sizeof(varmoe_layer_options)), "varmoe_layer_options"},
      {varmoe_prepare_options_init(nullptr, sizeof(varmoe_prepare_options)), "varmoe_prepare_options"},
      {varmoe_weights_init(nullptr, sizeof(varmoe_weights)), "varmoe_weights"},
      {varmoe_forward_args_init(nullptr, sizeof(varmoe_forward_args)), "varmoe_forward_args"},
      {varmoe_counters_init(nullptr, sizeof(varmoe_counters)), "varmoe_counters"},
      {varmoe_kernel_report_init(nullptr, sizeof(varmoe_kernel_report)), "varmoe_kernel_report"},
  };
  for (const auto& c : cases) CHECK_MESSAGE(c.status == VARMOE_E_INVALID_ARGUMENT, c.names);
#define REFUSED(call, name)                   \
  CHECK((call) == VARMOE_E_INVALID_ARGUMENT); \
  CHECK_MESSAGE(last_error_has(name " is null"), varmoe_last_error())
  REFUSED(varmoe_engine_create(nullptr, nullptr), "engine");
  REFUSED(varmoe_engine_counters(nullptr, &counters), "engine");
  REFUSED(varmoe_engine_counters(h.engine, nullptr), "counters");
  REFUSED(varmoe_engine_description(nullptr, text, sizeof text, &size), "engine");
  REFUSED(varmoe_engine_description(h.engine, nullptr, 4, &size), "buffer");
  REFUSED(varmoe_layer_create(nullptr, &spec, nullptr, &layer), "engine");
  REFUSED(varmoe_layer_create(h.engine, nullptr, nullptr, &layer), "varmoe_layer_spec");
  REFUSED(varmoe_layer_create(h.engine, &spec, nullptr, nullptr), "layer");
  REFUSED(varmoe_layer_prepare(nullptr, nullptr, nullptr), "layer");
  REFUSED(varmoe_report_kernel(nullptr, 0, &kernel), "report");
  REFUSED(varmoe_layer_bind(nullptr, nullptr), "layer");
  REFUSED(varmoe_layer_bind(h.layer, nullptr), "varmoe_weights");
  varmoe_up_args up;
  varmoe_up_args_init(&up, sizeof up);
  REFUSED(varmoe_layer_up(nullptr, &up), "layer");
  REFUSED(varmoe_layer_up(h.layer, nullptr), "args");
  REFUSED(varmoe_layer_workspace_bytes(nullptr, 1, &size), "layer");
  REFUSED(varmoe_layer_workspace_bytes(h.layer, 1, nullptr), "bytes");
  REFUSED(varmoe_layer_forward(nullptr, &args), "layer");
  REFUSED(varmoe_layer_forward(h.layer, nullptr), "args");
  REFUSED(varmoe_pack_expert(nullptr, 8, text, text, text, text), "varmoe_layer_spec");
#undef REFUSED
  varmoe_engine_destroy(nullptr);
  varmoe_layer_destroy(nullptr);
  varmoe_report_destroy(nullptr);
  CHECK(varmoe_report_kernel_count(nullptr) == 0);
  CHECK(varmoe_report_total_ms(nullptr) == 0);
  CHECK(layer == nullptr);
}

TEST_CASE("structs of callers that are too old, newer, or were never set up") {
  Handles h;
  varmoe_layer* layer = nullptr;
  varmoe_layer_spec spec = good_spec();
  // The first version's struct ended before the shared experts.
  constexpr std::size_t kFirstSpec = offsetof(varmoe_layer_spec, shared_widths);
  spec.struct_size = kFirstSpec - 4;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("struct_size"), varmoe_last_error());
  spec.struct_size = 0;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  spec.struct_size = std::size_t{0xcccccccccccccccc};  // uninitialised memory
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);

  // A newer caller: taken while what it knows and this library does not is zero.
  struct Newer {
    varmoe_layer_spec spec;
    std::int64_t added = 0;
  } newer{good_spec()};
  newer.spec.struct_size = sizeof newer;
  CHECK(varmoe_layer_create(h.engine, &newer.spec, nullptr, &layer) == VARMOE_OK);
  varmoe_layer_destroy(layer);
  newer.added = 1;
  CHECK(varmoe_layer_create(h.engine, &newer.spec, nullptr, &layer) == VARMOE_E_UNSUPPORTED);
  CHECK(layer == nullptr);

  // _init writes no more than the caller's struct.
  std::array<unsigned char, sizeof(varmoe_engine_options) + 16> memory;
  memory.fill(0xab);
  auto* options = reinterpret_cast<varmoe_engine_options*>(memory.data());
  // The first version's struct ended before the tuning records.
  constexpr std::size_t kFirst = offsetof(varmoe_engine_options, tuning_db);
  CHECK(varmoe_engine_options_init(options, kFirst - 8) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(memory[0] == 0xab);
  CHECK(varmoe_engine_options_init(options, kFirst) == VARMOE_OK);
  CHECK(options->struct_size == kFirst);
  CHECK(memory[kFirst] == 0xab);
  CHECK(varmoe_engine_options_init(options, sizeof(varmoe_engine_options)) == VARMOE_OK);
  CHECK(options->struct_size == sizeof(varmoe_engine_options));
  CHECK(memory[sizeof(varmoe_engine_options)] == 0xab);
  CHECK(varmoe_engine_options_init(options, sizeof(varmoe_engine_options) + 8) == VARMOE_OK);
  CHECK(memory[sizeof(varmoe_engine_options)] == 0);
  CHECK(memory[sizeof(varmoe_engine_options) + 8] == 0xab);

  varmoe_counters counters;
  counters.struct_size = 8;
  CHECK(varmoe_engine_counters(h.engine, &counters) == VARMOE_E_INVALID_ARGUMENT);
}

TEST_CASE("a caller of the first version has no shared experts, whatever lies behind its struct") {
  Handles h;
  varmoe_layer_spec spec = good_spec();
  spec.struct_size = offsetof(varmoe_layer_spec, shared_widths);
  spec.num_shared = 3;
  spec.shared_gate = 77;
  varmoe_layer* layer = nullptr;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_OK);
  varmoe_layer_destroy(layer);
}

TEST_CASE("shared experts through the C API: three ways to say where they lie compute the same") {
  Handles h;
  const std::int64_t shared_widths[] = {64, 16};
  varmoe_layer_spec spec = good_spec();
  spec.shared_widths = shared_widths;
  spec.num_shared = 2;
  spec.shared_gate = 1;
  varmoe_layer* layer = nullptr;
  REQUIRE(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_OK);
  constexpr std::size_t kHidden = 128, kRouted = 64 + 128 + 64 + 8, kShared = 64 + 16, kTokens = 3;
  struct alignas(16) Element8 {
    std::uint16_t v[8];
  };
  const auto filled = [](std::size_t elements, std::uint16_t seed) {
    std::vector<Element8> values(elements / 8);
    for (std::size_t i = 0; i < elements; ++i)  // about ±0.1
      values[i / 8].v[i % 8] =
          static_cast<std::uint16_t>(((i + seed) * 2654435761u >> 13) % 2 ? 0xbdcc : 0x3dcc);
    return values;
  };
  const auto fc1 = filled(2 * kRouted * kHidden, 1), fc2 = filled(kRouted * kHidden, 2),
             shared1 = filled(2 * kShared * kHidden, 3), shared2 = filled(kShared * kHidden, 4),
             gate = filled(kHidden, 5), x = filled(kTokens * kHidden, 6);
  const auto at = [](const std::vector<Element8>& v, std::size_t element) -> const void* {
    return v.data() + element / 8;
  };
  const std::int32_t ids[] = {0, 1, 2, 3, 4, 5};  // 4 and 5 are beyond E
  const float weights[] = {0.5f, 0.5f, 1, 1, 1, 1};
  std::vector<std::uint16_t> first;
  for (int way = 0; way < 3; ++way) {
    CAPTURE(way);
    varmoe_weights w;
    REQUIRE(varmoe_weights_init(&w, sizeof w) == VARMOE_OK);
    w.storage = VARMOE_STORAGE_BLOCKS;
    w.fc1 = fc1.data();
    w.fc2 = fc2.data();
    CHECK(varmoe_layer_bind(layer, &w) == VARMOE_E_INVALID_ARGUMENT);
    CHECK_MESSAGE(last_error_has("weights of 0 shared experts"), varmoe_last_error());
    const void* const fc1_list[] = {at(shared1, 0), at(shared1, 2 * 64 * kHidden)};
    const void* const fc2_list[] = {at(shared2, 0), at(shared2, 64 * kHidden)};
    const varmoe_expert_weights experts[] = {
        {at(shared1, 0), at(shared1, 64 * kHidden), at(shared2, 0), kHidden, 64},
        {at(shared1, 2 * 64 * kHidden), at(shared1, (2 * 64 + 16) * kHidden), at(shared2, 64 * kHidden),
         kHidden, 16}};
    w.num_shared = way == 0 ? 0 : 2;
    if (way == 0) w.shared_fc1 = shared1.data(), w.shared_fc2 = shared2.data();
    if (way == 1) w.shared_fc1_pointers = fc1_list, w.shared_fc2_pointers = fc2_list;
    if (way == 2) w.shared_experts = experts;
    CHECK(varmoe_layer_bind(layer, &w) == VARMOE_E_INVALID_ARGUMENT);
    CHECK_MESSAGE(last_error_has("shared_gate is null"), varmoe_last_error());
    w.shared_gate = gate.data();
    REQUIRE_MESSAGE(varmoe_layer_bind(layer, &w) == VARMOE_OK, varmoe_last_error());
    std::vector<Element8> out(kTokens * kHidden / 8), workspace;
    std::size_t bytes = 0;
    REQUIRE(varmoe_layer_workspace_bytes(layer, kTokens, &bytes) == VARMOE_OK);
    varmoe_forward_args args;
    REQUIRE(varmoe_forward_args_init(&args, sizeof args) == VARMOE_OK);
    args.tokens = kTokens;
    args.x = x.data();
    args.topk_ids = ids;
    args.topk_weights = weights;
    args.out = out.data();
    std::vector<std::byte> memory(bytes + 256);
    args.workspace = memory.data() + (256 - reinterpret_cast<std::uintptr_t>(memory.data()) % 256) % 256;
    args.workspace_bytes = bytes;
    REQUIRE_MESSAGE(varmoe_layer_forward(layer, &args) == VARMOE_OK, varmoe_last_error());
    const auto* elements = reinterpret_cast<const std::uint16_t*>(out.data());
    std::vector<std::uint16_t> got(elements, elements + kTokens * kHidden);
    // Token 2 has no routed expert: what it gets is the shared experts'.
    CHECK(got[2 * kHidden] != 0);
    if (first.empty()) first = got;
    CHECK(got == first);

    std::vector<Element8> rows(kTokens * 4 * 128 / 8);
    std::vector<std::int32_t> offsets(4 + 2 + 1, -1), slot_row(kTokens * 4, -7);
    varmoe_up_args up;
    REQUIRE(varmoe_up_args_init(&up, sizeof up) == VARMOE_OK);
    up.tokens = kTokens;
    up.x = x.data();
    up.topk_ids = ids;
    up.h = rows.data();
    up.expert_offsets = offsets.data();
    up.slot_row = slot_row.data();
    up.workspace = args.workspace;
    up.workspace_bytes = bytes;
    REQUIRE_MESSAGE(varmoe_layer_up(layer, &up) == VARMOE_OK, varmoe_last_error());
    CHECK(offsets == std::vector<std::int32_t>{0, 1, 2, 3, 4, 7, 10});
    CHECK(slot_row == std::vector<std::int32_t>{0, 1, 4, 7, 2, 3, 5, 8, -1, -1, 6, 9});
    up.id_type = 2;
    CHECK(varmoe_layer_up(layer, &up) == VARMOE_E_INVALID_ARGUMENT);
    CHECK_MESSAGE(last_error_has("id_type must be"), varmoe_last_error());
    if (way > 0) {
      w.num_shared = 1;
      CHECK(varmoe_layer_bind(layer, &w) == VARMOE_E_INVALID_ARGUMENT);
      CHECK_MESSAGE(last_error_has("num_shared = 1"), varmoe_last_error());
    }
  }
  varmoe_layer_destroy(layer);

  spec.num_shared = 17;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("num_shared = 17"), varmoe_last_error());
  spec.num_shared = 2;
  spec.shared_widths = nullptr;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("shared_widths is null"), varmoe_last_error());
}

TEST_CASE("defaults are those of the C++ API") {
  varmoe_engine_options e;
  varmoe_layer_spec s;
  varmoe_layer_options l;
  varmoe_prepare_options p;
  REQUIRE(varmoe_engine_options_init(&e, sizeof e) == VARMOE_OK);
  REQUIRE(varmoe_layer_spec_init(&s, sizeof s) == VARMOE_OK);
  REQUIRE(varmoe_layer_options_init(&l, sizeof l) == VARMOE_OK);
  REQUIRE(varmoe_prepare_options_init(&p, sizeof p) == VARMOE_OK);
  const varmoe::EngineOptions cpp_e;
  CHECK(e.device == cpp_e.device);
  CHECK(e.cache_mode == -1);
  CHECK(e.jit == -1);
  CHECK(e.cache_max_bytes == -1);
  CHECK((e.log == nullptr));
  const varmoe::LayerSpec cpp_s;
  CHECK(s.activation == static_cast<int>(cpp_s.activation));
  CHECK(s.alpha == cpp_s.activation_params.alpha);
  CHECK(s.limit == cpp_s.activation_params.limit);
  CHECK(l.max_workspace_bytes == 0);
  const varmoe::PrepareOptions cpp_p;
  CHECK(p.min_tokens == cpp_p.min_tokens);
  CHECK(p.max_tokens == cpp_p.max_tokens);
}

TEST_CASE("enumerators and counts out of range are refused by name") {
  Handles h;
  varmoe_layer* layer = nullptr;
  const struct {
    const char* member;
    std::int32_t varmoe_layer_spec::*field;
  } members[] = {{"activation = 99", &varmoe_layer_spec::activation},
                 {"dtype = 99", &varmoe_layer_spec::dtype},
                 {"fc1_layout = 99", &varmoe_layer_spec::fc1_layout},
                 {"fc2_layout = 99", &varmoe_layer_spec::fc2_layout},
                 {"gate_order = 99", &varmoe_layer_spec::gate_order},
                 {"batch_invariant = 99", &varmoe_layer_spec::batch_invariant},
                 {"bias = 99", &varmoe_layer_spec::bias},
                 {"weight_on_input = 99", &varmoe_layer_spec::weight_on_input}};
  for (const auto& m : members) {
    varmoe_layer_spec spec = good_spec();
    spec.*m.field = 99;
    CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
    CHECK_MESSAGE(last_error_has(m.member), varmoe_last_error());
    spec.*m.field = -1;
    CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  }
  varmoe_layer_spec spec = good_spec();
  spec.expert_widths = nullptr;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  spec = good_spec();
  spec.num_experts = SIZE_MAX;  // never walked
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_ARGUMENT);
  spec = good_spec();
  spec.top_k = 0;
  CHECK(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_SPEC);
  CHECK_MESSAGE(last_error_has("top_k"), varmoe_last_error());

  varmoe_weights weights;
  REQUIRE(varmoe_weights_init(&weights, sizeof weights) == VARMOE_OK);
  weights.storage = 6;
  CHECK(varmoe_layer_bind(h.layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("storage = 6"));
  for (const int storage : {VARMOE_STORAGE_POINTERS, VARMOE_STORAGE_EXPERTS}) {
    weights.storage = storage;
    weights.num_experts = 3;
    CHECK(varmoe_layer_bind(h.layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
    CHECK(last_error_has("num_experts = 3"));
    weights.num_experts = 4;
    CHECK(varmoe_layer_bind(h.layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
    CHECK(last_error_has("is null"));
  }
  varmoe_prepare_options prepare;
  REQUIRE(varmoe_prepare_options_init(&prepare, sizeof prepare) == VARMOE_OK);
  prepare.token_count = 2;
  CHECK(varmoe_layer_prepare(h.layer, &prepare, nullptr) == VARMOE_E_INVALID_ARGUMENT);
  varmoe_engine_options options;
  REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
  varmoe_engine* engine = nullptr;
  options.cache_mode = 3;
  CHECK(varmoe_engine_create(&options, &engine) == VARMOE_E_INVALID_ARGUMENT);
  options.cache_mode = -1;
  options.cubin_path_count = 1;
  CHECK(varmoe_engine_create(&options, &engine) == VARMOE_E_INVALID_ARGUMENT);
  options.cubin_path_count = 0;
  options.tuning_db_count = 1;
  CHECK(varmoe_engine_create(&options, &engine) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("tuning_db"));
  options.tuning_db_count = 0;
  options.tune = 3;
  CHECK(varmoe_engine_create(&options, &engine) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("tune = 3"));
  CHECK(engine == nullptr);
}

TEST_CASE("the last error belongs to its thread and outlives later successes") {
  CHECK(varmoe_engine_create(nullptr, nullptr) == VARMOE_E_INVALID_ARGUMENT);
  const std::string here = varmoe_last_error();
  CHECK(here == "engine is null");
  std::string there = "unset";
  std::thread([&] { there = varmoe_last_error(); }).join();
  CHECK(there.empty());
  Handles h;
  CHECK(varmoe_last_error() == here);
}

TEST_CASE("the description is cut to the buffer and always terminated") {
  Handles h;
  size_t needed = 0;
  CHECK(varmoe_engine_description(h.engine, nullptr, 0, &needed) == VARMOE_OK);
  std::vector<char> all(needed);
  CHECK(varmoe_engine_description(h.engine, all.data(), all.size(), nullptr) == VARMOE_OK);
  CHECK(std::string(all.data()) == "CPU, 1 thread");
  CHECK(needed == std::strlen("CPU, 1 thread") + 1);
  char part[4] = {'x', 'x', 'x', 'x'};
  CHECK(varmoe_engine_description(h.engine, part, sizeof part, nullptr) == VARMOE_OK);
  CHECK(std::string(part) == "CPU");
}

TEST_CASE("the log callback gets terminated lines and its user pointer") {
  std::vector<std::string> lines;
  varmoe_engine_options options;
  REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
  options.device = VARMOE_CPU_DEVICE;
  options.log_user = &lines;
  options.log = [](void* user, int level, const char* line) {
    CHECK(level >= VARMOE_LOG_TRACE);
    CHECK(level <= VARMOE_LOG_ERROR);
    static_cast<std::vector<std::string>*>(user)->emplace_back(line);
  };
  REQUIRE(setenv("VARMOE_UNHEARD_OF", "1", 1) == 0);
  varmoe_engine* engine = nullptr;
  CHECK(varmoe_engine_create(&options, &engine) == VARMOE_OK);
  REQUIRE(unsetenv("VARMOE_UNHEARD_OF") == 0);
  varmoe_engine_destroy(engine);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("VARMOE_UNHEARD_OF") != std::string::npos);
}

TEST_CASE("fault 42: a bad variable is invalid_environment through the C API") {
  REQUIRE(setenv("VARMOE_JIT", "perhaps", 1) == 0);
  varmoe_engine* engine = nullptr;
  CHECK(varmoe_engine_create(nullptr, &engine) == VARMOE_E_INVALID_ENVIRONMENT);
  CHECK(last_error_has("VARMOE_JIT"));
  CHECK(last_error_has("perhaps"));
  CHECK(engine == nullptr);
  REQUIRE(unsetenv("VARMOE_JIT") == 0);
}

TEST_CASE("packing through the C API is that of the C++ API") {
  CHECK(varmoe_packed_width(1) == 8);
  CHECK(varmoe_packed_width(64) == 64);
  varmoe_layer_spec spec = good_spec();
  const std::int64_t widths[] = {16};
  spec.expert_widths = widths;
  spec.num_experts = 1;
  std::vector<std::uint16_t> fc1(2 * 13 * 128, 1), fc2(128 * 13, 2), packed1(2 * 16 * 128, 9),
      packed2(128 * 16, 9);
  std::vector<std::uint16_t> expected1 = packed1, expected2 = packed2;
  CHECK(varmoe_pack_expert(&spec, 13, fc1.data(), fc2.data(), packed1.data(), packed2.data()) == VARMOE_OK);
  varmoe::LayerSpec cpp = varmoe::uniform_spec(128, 1, 16, 2);
  CHECK(varmoe::pack_expert(cpp, 13, fc1.data(), fc2.data(), expected1.data(), expected2.data()).ok());
  CHECK(packed1 == expected1);
  CHECK(packed2 == expected2);
  CHECK(packed2[13] == 0);
  std::vector<std::uint16_t> bias(26, 3), packed_bias(32, 9);
  CHECK(varmoe_pack_fc1_bias(&spec, 13, bias.data(), packed_bias.data()) == VARMOE_OK);
  CHECK(packed_bias[12] == 3);
  CHECK(packed_bias[13] == 0);
  CHECK(packed_bias[16] == 3);
  CHECK(packed_bias[31] == 0);
  CHECK(varmoe_pack_fc1_bias(&spec, 13, nullptr, packed_bias.data()) == VARMOE_E_INVALID_ARGUMENT);
}

TEST_CASE("biases and expert maps through the C API, in every storage that says where they lie") {
  Handles h;
  varmoe_layer_spec spec = good_spec();
  spec.activation = VARMOE_ACTIVATION_IDENTITY;  // y = (x W1 + b1) W2 + b2; with weights of 0: b2
  spec.bias = 1;
  varmoe_layer* layer = nullptr;
  REQUIRE(varmoe_layer_create(h.engine, &spec, nullptr, &layer) == VARMOE_OK);
  constexpr std::size_t kPadded = 4 * 128;
  alignas(16) static std::uint16_t zeroes[128 * kPadded] = {};
  // bf16: expert e's down bias is 2^e.
  std::vector<std::uint16_t> fc1_bias(kPadded), fc2_bias;
  for (unsigned e = 0; e < 4; ++e)
    fc2_bias.insert(fc2_bias.end(), 128, static_cast<std::uint16_t>(0x3f80 + 0x80 * e));
  varmoe_weights weights;
  REQUIRE(varmoe_weights_init(&weights, sizeof weights) == VARMOE_OK);
  weights.fc1 = weights.fc2 = zeroes;
  CHECK(varmoe_layer_bind(layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("fc1_bias is null"), varmoe_last_error());

  std::vector<std::uint16_t> x(128, 0x3f80), out(128);
  const std::int32_t ids[] = {7, 2};
  const float topk_weights[] = {0.5f, 2.0f};
  const std::int32_t map[] = {-1, 9, 3, 0, 0, 0, 0, 1};  // global 7 is expert 1 here, global 2 is expert 3
  std::vector<std::byte> workspace;
  std::size_t bytes = 0;
  REQUIRE(varmoe_layer_workspace_bytes(layer, 1, &bytes) == VARMOE_OK);
  workspace.resize(bytes + 256);
  varmoe_forward_args args;
  REQUIRE(varmoe_forward_args_init(&args, sizeof args) == VARMOE_OK);
  args.tokens = 1;
  alignas(16) static std::uint16_t x_row[128], out_row[128];
  std::copy(x.begin(), x.end(), x_row);
  args.x = x_row;
  args.out = out_row;
  args.topk_ids = ids;
  args.topk_weights = topk_weights;
  args.workspace =
      reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) / 256 * 256);
  args.workspace_bytes = bytes;
  args.expert_map = map;
  CHECK(varmoe_layer_forward(layer, &args) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("num_global_experts = 0"), varmoe_last_error());
  args.num_global_experts = 8;
  const auto check_forward = [&] {
    std::fill(std::begin(out_row), std::end(out_row), 0xffff);
    REQUIRE_MESSAGE(varmoe_layer_forward(layer, &args) == VARMOE_OK, varmoe_last_error());
    for (const std::uint16_t v : out_row) CHECK(v == 0x4188);  // 0.5 * 2 + 2 * 8 = 17
  };
  weights.fc1_bias = fc1_bias.data();
  weights.fc2_bias = fc2_bias.data();
  for (const int storage : {VARMOE_STORAGE_BLOCKS, VARMOE_STORAGE_PADDED}) {
    weights.storage = storage;
    weights.padded_width = 128;
    REQUIRE_MESSAGE(varmoe_layer_bind(layer, &weights) == VARMOE_OK, varmoe_last_error());
    check_forward();
  }
  weights.storage = VARMOE_STORAGE_POINTERS;
  weights.num_experts = 4;
  const void* matrices[] = {zeroes, zeroes, zeroes, zeroes};
  const void* fc1_biases[] = {fc1_bias.data(), fc1_bias.data(), fc1_bias.data(), fc1_bias.data()};
  const void* fc2_biases[] = {&fc2_bias[0], &fc2_bias[128], &fc2_bias[256], &fc2_bias[384]};
  weights.fc1_pointers = weights.fc2_pointers = matrices;
  CHECK(varmoe_layer_bind(layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
  CHECK_MESSAGE(last_error_has("fc1_bias_pointers is null"), std::string(varmoe_last_error()));
  weights.fc1_bias_pointers = fc1_biases;
  weights.fc2_bias_pointers = fc2_biases;
  REQUIRE_MESSAGE(varmoe_layer_bind(layer, &weights) == VARMOE_OK, varmoe_last_error());
  check_forward();
  weights.storage = VARMOE_STORAGE_EXPERTS;
  varmoe_expert_weights experts[4] = {};
  varmoe_expert_biases biases[4] = {};
  for (std::size_t e = 0; e < 4; ++e) {
    experts[e] = {nullptr, zeroes, zeroes, 128, kWidths[e]};
    biases[e] = {nullptr, fc1_bias.data(), fc2_biases[e], 1};
  }
  weights.experts = experts;
  CHECK(varmoe_layer_bind(layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("expert_biases is null"));
  weights.expert_biases = biases;
  REQUIRE_MESSAGE(varmoe_layer_bind(layer, &weights) == VARMOE_OK, varmoe_last_error());
  check_forward();

  const std::int32_t elsewhere[] = {0, 1};
  args.topk_ids = elsewhere;
  std::fill(std::begin(out_row), std::end(out_row), 0x1234);
  args.absent_tokens = VARMOE_ABSENT_UNTOUCHED;
  CHECK(varmoe_layer_forward(layer, &args) == VARMOE_OK);
  CHECK(out_row[0] == 0x1234);
  args.absent_tokens = VARMOE_ABSENT_WRITE_ZEROS;
  CHECK(varmoe_layer_forward(layer, &args) == VARMOE_OK);
  CHECK(out_row[0] == 0);
  args.absent_tokens = 2;
  CHECK(varmoe_layer_forward(layer, &args) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("absent_tokens = 2"));
  varmoe_layer_destroy(layer);
  // A layer without biases takes none.
  weights.storage = VARMOE_STORAGE_BLOCKS;
  CHECK(varmoe_layer_bind(h.layer, &weights) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("biases are set; the layer has none"));
}

TEST_CASE("forward refuses what its struct cannot mean") {
  Handles h;
  varmoe_forward_args args;
  REQUIRE(varmoe_forward_args_init(&args, sizeof args) == VARMOE_OK);
  CHECK(varmoe_layer_forward(h.layer, &args) == VARMOE_OK);  // no tokens
  args.id_type = 2;
  CHECK(varmoe_layer_forward(h.layer, &args) == VARMOE_E_INVALID_ARGUMENT);
  args.id_type = VARMOE_ID_INT64;
  args.accumulate = 2;
  CHECK(varmoe_layer_forward(h.layer, &args) == VARMOE_E_INVALID_ARGUMENT);
  args.accumulate = 0;
  args.tokens = 1;
  CHECK(varmoe_layer_forward(h.layer, &args) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("x is null"));
}
