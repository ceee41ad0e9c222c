// The building blocks through the C API, on the CPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"
#include "varmoe/varmoe.h"

using namespace varmoe;

namespace {

bool last_error_has(const std::string& part) {
  return std::string(varmoe_last_error()).find(part) != std::string::npos;
}

/// Blocks of a small layer on the CPU, bound to a case's weights.
struct CpuBlocks {
  varmoe_engine* engine = nullptr;
  varmoe_blocks* blocks = nullptr;
  oracle::RandomCase source;

  explicit CpuBlocks(const varmoe_blocks_options* blocks_options = nullptr)
      : source(oracle::make_case(uniform_spec(64, 4, 72, 2), {.tokens = 10})) {
    varmoe_engine_options options;
    REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
    options.device = VARMOE_CPU_DEVICE;
    options.cpu_threads = 1;
    REQUIRE(varmoe_engine_create(&options, &engine) == VARMOE_OK);
    varmoe_layer_spec spec;
    REQUIRE(varmoe_layer_spec_init(&spec, sizeof spec) == VARMOE_OK);
    spec.hidden_size = 64;
    const std::int64_t widths[] = {72, 72, 72, 72};
    spec.expert_widths = widths;
    spec.num_experts = 4;
    spec.top_k = 2;
    REQUIRE(varmoe_blocks_create(engine, &spec, blocks_options, &blocks) == VARMOE_OK);
    varmoe_weights weights;
    REQUIRE(varmoe_weights_init(&weights, sizeof weights) == VARMOE_OK);
    weights.fc1 = source.fc1.data();
    weights.fc2 = source.fc2.data();
    REQUIRE_MESSAGE(varmoe_blocks_bind(blocks, &weights) == VARMOE_OK, varmoe_last_error());
  }
  ~CpuBlocks() {
    varmoe_blocks_destroy(blocks);
    varmoe_engine_destroy(engine);
  }
  CpuBlocks(const CpuBlocks&) = delete;
  CpuBlocks& operator=(const CpuBlocks&) = delete;
};

template <class T>
T made(int (*init)(T*, std::size_t)) {
  T value;
  REQUIRE(init(&value, sizeof value) == VARMOE_OK);
  return value;
}

}  // namespace

TEST_CASE("C: building blocks one after another give what the oracle computes") {
  const CpuBlocks b;
  constexpr std::int64_t kRows = 24, kHidden = 64, kStride = 128;
  // Rows by expert, each segment at a multiple of 1, as counts.
  std::vector<std::int32_t> counts(4, 0), map(kRows, -1);
  std::int64_t at = 0;
  for (std::int32_t e = 0; e < 4; ++e)
    for (std::int32_t slot = 0; slot < 20; ++slot)
      if (b.source.ids32[static_cast<std::size_t>(slot)] == e) {
        map[static_cast<std::size_t>(at++)] = slot;
        ++counts[static_cast<std::size_t>(e)];
      }
  REQUIRE(at == 20);
  oracle::Buffer16 x(kRows * kHidden), h(kRows * kStride), y(kRows * kHidden), out(10 * kHidden);
  for (oracle::Buffer16* buffer : {&x, &h, &y, &out})
    std::fill(buffer->data(), buffer->data() + buffer->size(), oracle::kPoison);
  auto gather = made(varmoe_gather_args_init);
  gather.tokens = 10;
  gather.x = b.source.x.data();
  gather.rows = kRows;
  gather.row_map = map.data();
  gather.out = x.data();
  REQUIRE_MESSAGE(varmoe_blocks_gather(b.blocks, &gather) == VARMOE_OK, varmoe_last_error());

  std::size_t bytes = 0;
  REQUIRE(varmoe_blocks_workspace_bytes(b.blocks, kRows, &bytes) == VARMOE_OK);
  oracle::Buffer16 workspace(static_cast<std::int64_t>(bytes / 2));
  auto rows = made(varmoe_rows_by_expert_init);
  CHECK(rows.multiple == 1);
  rows.rows = kRows;
  rows.layout = VARMOE_ROWS_COUNTS;
  rows.expert_counts = counts.data();
  auto up = made(varmoe_grouped_up_args_init);
  up.by_expert = &rows;
  up.x = x.data();
  up.h = h.data();
  up.workspace = workspace.data();
  up.workspace_bytes = bytes;
  REQUIRE_MESSAGE(varmoe_blocks_up(b.blocks, &up) == VARMOE_OK, varmoe_last_error());
  auto down = made(varmoe_grouped_down_args_init);
  down.by_expert = &rows;
  down.h = h.data();
  down.y = y.data();
  down.workspace = workspace.data();
  down.workspace_bytes = bytes;
  REQUIRE_MESSAGE(varmoe_blocks_down(b.blocks, &down) == VARMOE_OK, varmoe_last_error());
  std::vector<std::int32_t> slot_row(20, -7);
  auto slots = made(varmoe_slot_rows_args_init);
  slots.tokens = 10;
  slots.rows = kRows;
  slots.row_map = map.data();
  slots.slot_row = slot_row.data();
  REQUIRE_MESSAGE(varmoe_blocks_slot_rows(b.blocks, &slots) == VARMOE_OK, varmoe_last_error());
  auto combine = made(varmoe_combine_args_init);
  combine.tokens = 10;
  combine.rows = kRows;
  combine.y = y.data();
  combine.slot_row = slot_row.data();
  combine.topk_weights = b.source.topk_weights.data();
  combine.out = out.data();
  REQUIRE_MESSAGE(varmoe_blocks_combine(b.blocks, &combine) == VARMOE_OK, varmoe_last_error());
  const std::int64_t tokens[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto compared =
      oracle::compare_rows(DType::bf16, b.source.reference(), out.data(), kHidden, kHidden, tokens);
  CHECK_MESSAGE(compared.pass, compared.text());

  auto backward = made(varmoe_combine_backward_args_init);
  backward.tokens = 10;
  backward.rows = kRows;
  backward.dout = b.source.x.data();
  backward.slot_row = slot_row.data();
  backward.topk_weights = b.source.topk_weights.data();
  backward.y = y.data();
  backward.dy = x.data();
  std::vector<float> gradient(20, -1.0f);
  backward.dtopk_weights = gradient.data();
  REQUIRE_MESSAGE(varmoe_blocks_combine_backward(b.blocks, &backward) == VARMOE_OK, varmoe_last_error());
  double dot = 0;
  for (std::int64_t i = 0; i < kHidden; ++i)
    dot += oracle::decode(DType::bf16, b.source.x[3 * kHidden + i]) *
           oracle::decode(DType::bf16, y[slot_row[7] * kHidden + i]);
  CHECK(static_cast<double>(gradient[7]) == doctest::Approx(dot).epsilon(1e-4));
  CHECK(oracle::decode(DType::bf16, x[slot_row[7] * kHidden + 5]) ==
        doctest::Approx(oracle::decode(DType::bf16, b.source.x[3 * kHidden + 5]) *
                        static_cast<double>(b.source.topk_weights[7]))
            .epsilon(0.01));
}

TEST_CASE("C: building blocks refuse nulls, enumerators and structs of another size by name") {
  const CpuBlocks b;
  varmoe_report* report = nullptr;
  CHECK(varmoe_blocks_prepare(b.blocks, nullptr, &report) == VARMOE_OK);
  varmoe_report_destroy(report);
  std::size_t bytes = 0;
  CHECK(varmoe_blocks_workspace_bytes(b.blocks, -1, &bytes) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("rows = -1"));
  CHECK(varmoe_blocks_workspace_bytes(nullptr, 1, &bytes) == VARMOE_E_INVALID_ARGUMENT);
  varmoe_blocks* none = nullptr;
  CHECK(varmoe_blocks_create(b.engine, nullptr, nullptr, &none) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(varmoe_blocks_create(nullptr, nullptr, nullptr, &none) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(varmoe_gather_args_init(nullptr, 8) == VARMOE_E_INVALID_ARGUMENT);
  auto up = made(varmoe_grouped_up_args_init);
  CHECK(varmoe_blocks_up(b.blocks, nullptr) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("args is null"));
  CHECK(varmoe_blocks_up(nullptr, &up) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("blocks is null"));
  CHECK(varmoe_blocks_up(b.blocks, &up) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("by_expert is null"));
  auto rows = made(varmoe_rows_by_expert_init);
  rows.layout = 4;
  up.by_expert = &rows;
  CHECK(varmoe_blocks_up(b.blocks, &up) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("layout = 4"));
  rows.layout = 0;
  rows.index_type = 2;
  CHECK(varmoe_blocks_up(b.blocks, &up) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("index_type = 2"));
  rows.struct_size = 8;
  CHECK(varmoe_blocks_up(b.blocks, &up) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("varmoe_rows_by_expert: struct_size = 8"));
  auto gather = made(varmoe_gather_args_init);
  gather.map_to = 7;
  CHECK(varmoe_blocks_gather(b.blocks, &gather) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("map_to = 7"));
  auto combine = made(varmoe_combine_args_init);
  combine.accumulate = 2;
  CHECK(varmoe_blocks_combine(b.blocks, &combine) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("accumulate = 2"));
  combine.accumulate = 0;
  combine.absent_tokens = 9;
  CHECK(varmoe_blocks_combine(b.blocks, &combine) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("absent_tokens = 9"));
  auto options = made(varmoe_blocks_options_init);
  options.weighted_down = 3;
  varmoe_layer_spec spec;
  REQUIRE(varmoe_layer_spec_init(&spec, sizeof spec) == VARMOE_OK);
  spec.hidden_size = 64;
  const std::int64_t width = 64;
  spec.expert_widths = &width;
  spec.num_experts = 1;
  spec.top_k = 1;
  CHECK(varmoe_blocks_create(b.engine, &spec, &options, &none) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("weighted_down = 3"));
  options.weighted_down = 0;
  options.training = 2;
  CHECK(varmoe_blocks_create(b.engine, &spec, &options, &none) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("training = 2"));
  options.training = 1;
  options.gradient_type = 7;
  CHECK(varmoe_blocks_create(b.engine, &spec, &options, &none) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("gradient_type = 7"));
  auto down = made(varmoe_grouped_down_backward_args_init);
  CHECK(down.weight_gradients == 1);
  rows = made(varmoe_rows_by_expert_init);
  const std::int32_t offsets[5] = {};
  rows.expert_offsets = offsets;
  down.by_expert = &rows;
  CHECK(varmoe_blocks_down_backward(b.blocks, &down) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("training"));
  down.weight_gradients = 4;
  CHECK(varmoe_blocks_down_backward(b.blocks, &down) == VARMOE_E_INVALID_ARGUMENT);
  CHECK(last_error_has("weight_gradients = 4"));
  CHECK(varmoe_blocks_backward_workspace_bytes(b.blocks, 4, &bytes) == VARMOE_E_INVALID_ARGUMENT);
}

TEST_CASE("C: the backward passes of up and down pass every argument on") {
  // Of one-hot rows the gradients are single products, which are checked here; tests/engine has the rest.
  auto options = made(varmoe_blocks_options_init);
  options.training = options.weighted_down = 1;
  options.gradient_type = VARMOE_GRADIENT_FP32;
  const CpuBlocks b(&options);
  constexpr std::int64_t kRows = 8, kHidden = 64, kWidth = 72, kStride = 128;
  std::vector<float> fc1(4 * 2 * kWidth * kHidden, -1), fc2(4 * kHidden * kWidth, -1);
  auto gradients = made(varmoe_weights_init);
  gradients.fc1 = fc1.data();
  gradients.fc2 = fc2.data();
  REQUIRE_MESSAGE(varmoe_blocks_bind_gradients(b.blocks, &gradients) == VARMOE_OK, varmoe_last_error());
  std::size_t bytes = 0, forward_bytes = 0;
  REQUIRE(varmoe_blocks_backward_workspace_bytes(b.blocks, kRows, &bytes) == VARMOE_OK);
  REQUIRE(varmoe_blocks_workspace_bytes(b.blocks, kRows, &forward_bytes) == VARMOE_OK);
  oracle::Buffer16 workspace(static_cast<std::int64_t>(std::max(bytes, forward_bytes) / 2));
  const auto zeros = [](std::int64_t n) {
    oracle::Buffer16 buffer(n);
    std::fill_n(buffer.data(), n, std::uint16_t{0});
    return buffer;
  };
  auto x = zeros(kRows * kHidden), dy = zeros(kRows * kHidden), h = zeros(kRows * kStride),
       dh = zeros(kRows * kStride), z = zeros(kRows * 2 * kStride), dz = zeros(kRows * 2 * kStride),
       dx = zeros(kRows * kHidden);
  const auto one = oracle::encode(DType::bf16, 1.0);
  x[2 * kHidden + 5] = dy[2 * kHidden + 9] = one;  // of expert 1's one row
  const std::int32_t counts[] = {2, 1, 0, 5};
  std::vector<float> weights(kRows, 0.5f), dw(kRows, -1.0f);
  auto rows = made(varmoe_rows_by_expert_init);
  rows.rows = kRows;
  rows.layout = VARMOE_ROWS_COUNTS;
  rows.expert_counts = counts;
  auto up = made(varmoe_grouped_up_args_init);
  up.by_expert = &rows;
  up.x = x.data();
  up.h = h.data();
  up.z = z.data();
  up.workspace = workspace.data();
  up.workspace_bytes = forward_bytes;
  REQUIRE_MESSAGE(varmoe_blocks_up(b.blocks, &up) == VARMOE_OK, varmoe_last_error());
  auto down = made(varmoe_grouped_down_backward_args_init);
  down.by_expert = &rows;
  down.dy = dy.data();
  down.h = h.data();
  down.dh = dh.data();
  down.row_weights = weights.data();
  down.drow_weights = dw.data();
  down.workspace = workspace.data();
  down.workspace_bytes = bytes;
  REQUIRE_MESSAGE(varmoe_blocks_down_backward(b.blocks, &down) == VARMOE_OK, varmoe_last_error());
  auto back = made(varmoe_grouped_up_backward_args_init);
  back.by_expert = &rows;
  back.x = x.data();
  back.z = z.data();
  back.dh = dh.data();
  back.dz = dz.data();
  back.dx = dx.data();
  back.workspace = workspace.data();
  back.workspace_bytes = bytes;
  REQUIRE_MESSAGE(varmoe_blocks_up_backward(b.blocks, &back) == VARMOE_OK, varmoe_last_error());
  const auto number = [](std::uint16_t v) { return oracle::decode(DType::bf16, v); };
  const std::uint16_t *fc1_1 = b.source.fc1.data() + 2 * kWidth * kHidden,
                      *fc2_1 = b.source.fc2.data() + kHidden * kWidth;
  double sum = 0, dx5 = 0;
  for (std::int64_t j = 0; j < kWidth; ++j) {
    const double h_j = number(h[2 * kStride + j]), w2 = number(fc2_1[9 * kWidth + j]);
    sum += h_j * w2;
    CHECK(number(z[2 * 2 * kStride + 128 + j]) ==
          doctest::Approx(number(fc1_1[(kWidth + j) * kHidden + 5])).epsilon(0.01));
    CHECK(number(dh[2 * kStride + j]) == doctest::Approx(0.5 * w2).epsilon(0.01));
    CHECK(static_cast<double>(fc2[static_cast<std::size_t>((kHidden + 9) * kWidth + j)]) ==
          doctest::Approx(0.5 * h_j).epsilon(0.01));
    const double gate = number(dz[2 * 2 * kStride + j]), up_j = number(dz[2 * 2 * kStride + 128 + j]);
    CHECK(static_cast<double>(fc1[static_cast<std::size_t>((2 * kWidth + j) * kHidden + 5)]) == gate);
    CHECK(static_cast<double>(fc1[static_cast<std::size_t>((3 * kWidth + j) * kHidden + 5)]) == up_j);
    dx5 += gate * number(fc1_1[j * kHidden + 5]) + up_j * number(fc1_1[(kWidth + j) * kHidden + 5]);
  }
  CHECK(static_cast<double>(dw[2]) == doctest::Approx(sum).epsilon(0.01));
  CHECK(number(dx[2 * kHidden + 5]) == doctest::Approx(dx5).epsilon(0.01));
  // Expert 2 has no rows.
  CHECK(std::all_of(fc2.begin() + 2 * kHidden * kWidth, fc2.begin() + 3 * kHidden * kWidth,
                    [](float v) { return v == 0; }));
}
