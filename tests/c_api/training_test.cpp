// Training layers through the C API, on the CPU.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "oracle/half_types.hpp"
#include "varmoe/training.hpp"
#include "varmoe/varmoe.h"

using namespace varmoe;

namespace {

constexpr std::int64_t kHidden = 64, kTokens = 6, kTopK = 2, kWidest = 24;
constexpr std::array<std::int64_t, 3> kWidths = {8, kWidest, 16};
constexpr std::array<std::int64_t, 2> kShared = {16, 8};

bool last_error_has(const std::string& part) {
  return std::string(varmoe_last_error()).find(part) != std::string::npos;
}

struct CpuEngine {
  varmoe_engine* engine = nullptr;
  CpuEngine() {
    varmoe_engine_options options;
    REQUIRE(varmoe_engine_options_init(&options, sizeof options) == VARMOE_OK);
    options.device = VARMOE_CPU_DEVICE;
    options.cpu_threads = 1;
    REQUIRE(varmoe_engine_create(&options, &engine) == VARMOE_OK);
  }
  ~CpuEngine() { varmoe_engine_destroy(engine); }
  CpuEngine(const CpuEngine&) = delete;
  CpuEngine& operator=(const CpuEngine&) = delete;
};

varmoe_layer_spec good_spec() {
  varmoe_layer_spec spec;
  REQUIRE(varmoe_layer_spec_init(&spec, sizeof spec) == VARMOE_OK);
  spec.hidden_size = kHidden;
  spec.expert_widths = kWidths.data();
  spec.num_experts = kWidths.size();
  spec.top_k = kTopK;
  return spec;
}

varmoe_training_options options_of(int gradient_type, int save = 1) {
  varmoe_training_options options;
  REQUIRE(varmoe_training_options_init(&options, sizeof options) == VARMOE_OK);
  options.gradient_type = gradient_type;
  options.save_preactivation = save;
  return options;
}

/// 256-byte aligned bytes, all ones: NaN as bf16 and as fp32.
class Bytes {
 public:
  explicit Bytes(std::size_t size) : size_(size) {
    data_.reset(static_cast<unsigned char*>(std::aligned_alloc(256, (size + 256) / 256 * 256)));
    std::memset(data_.get(), 0xff, size);
  }
  unsigned char* at(std::size_t byte) { return data_.get() + byte; }
  std::size_t size() const { return size_; }
  float element(std::size_t i, bool wide) const {
    if (!wide) {
      std::uint16_t bits;
      std::memcpy(&bits, data_.get() + 2 * i, 2);
      return static_cast<float>(oracle::decode(DType::bf16, bits));
    }
    float value;
    std::memcpy(&value, data_.get() + 4 * i, 4);
    return value;
  }
  void set(std::size_t i, bool wide, float value) {
    const std::uint16_t bits = oracle::encode(DType::bf16, value);
    if (wide)
      std::memcpy(data_.get() + 4 * i, &value, 4);
    else
      std::memcpy(data_.get() + 2 * i, &bits, 2);
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> data_;
  std::size_t size_;
};

/// A layer's weights or gradients: nine regions of one array, in any storage, and the struct that says so.
struct Stored {
  static constexpr std::size_t kRegion = 3 * 2 * kWidest * kHidden, kRegions = 9;
  Stored(const varmoe_layer_spec& spec, int storage, bool wide, bool shared_pointers = false)
      : wide_(wide), bytes_(kRegions * kRegion * (wide ? 4 : 2)) {
    REQUIRE(varmoe_weights_init(&weights, sizeof weights) == VARMOE_OK);
    weights.storage = storage;
    weights.num_experts = kWidths.size();
    weights.padded_width = kWidest;
    weights.fc1 = region(0);
    weights.fc2 = region(1);
    weights.gate = region(2);
    weights.up = region(3);
    for (std::size_t e = 0; e < kWidths.size(); ++e) {
      const std::size_t matrix = static_cast<std::size_t>(kWidest * kHidden);
      fc1.push_back(region(0, 2 * e * matrix));
      fc2.push_back(region(1, e * matrix));
      experts.push_back(
          {region(2, e * matrix), region(3, e * matrix), region(1, e * matrix), kHidden, kHidden});
      fc1_bias.push_back(region(4, 2 * e * kWidest));
      fc2_bias.push_back(region(5, e * kHidden));
      biases.push_back(
          {region(4, 2 * e * kWidest), region(4, (2 * e + 1) * kWidest), region(5, e * kHidden), 1});
    }
    weights.fc1_pointers = fc1.data();
    weights.fc2_pointers = fc2.data();
    weights.experts = experts.data();
    if (spec.bias) {
      weights.fc1_bias = region(4);
      weights.fc2_bias = region(5);
      weights.fc1_bias_pointers = fc1_bias.data();
      weights.fc2_bias_pointers = fc2_bias.data();
      weights.expert_biases = biases.data();
    }
    if (spec.num_shared == 0) return;
    weights.num_shared = spec.num_shared;
    if (spec.shared_gate) weights.shared_gate = region(8);
    for (std::size_t e = 0; e < kShared.size(); ++e) {
      shared_fc1.push_back(region(6, e * 2 * kWidest * kHidden));
      shared_fc2.push_back(region(7, e * kWidest * kHidden));
    }
    if (shared_pointers) {
      weights.shared_fc1_pointers = shared_fc1.data();
      weights.shared_fc2_pointers = shared_fc2.data();
    } else {
      weights.shared_fc1 = region(6);
      weights.shared_fc2 = region(7);
    }
  }
  const void* region(std::size_t number, std::size_t element = 0) {
    return bytes_.at((number * kRegion + element) * (wide_ ? 4 : 2));
  }
  std::size_t elements() const { return kRegions * kRegion; }
  float operator[](std::size_t i) const { return bytes_.element(i, wide_); }
  void set(std::size_t i, float value) { bytes_.set(i, wide_, value); }
  void set(std::size_t number, std::size_t i, float value) { set(number * kRegion + i, value); }
  /// Multiples of 1/16 from −1/2 to 1/2.
  void fill() {
    std::uint32_t state = 7;
    for (std::size_t i = 0; i < elements(); ++i) {
      state = state * 1664525u + 1013904223u;
      set(i, (static_cast<float>(state >> 28) - 8) / 16);
    }
  }

  varmoe_weights weights;
  std::vector<const void*> fc1, fc2, fc1_bias, fc2_bias, shared_fc1, shared_fc2;
  std::vector<varmoe_expert_weights> experts;
  std::vector<varmoe_expert_biases> biases;

 private:
  bool wide_;
  Bytes bytes_;
};

/// One forward and backward of a layer and the tensors that they touch.
struct Pass {
  explicit Pass(varmoe_training_layer* of, std::int64_t tokens = kTokens)
      : layer(of),
        x(static_cast<std::size_t>(tokens * kHidden * 2)),
        out(x.size()),
        dout(x.size()),
        dx(x.size()),
        ids(static_cast<std::size_t>(tokens * kTopK)),
        weights(ids.size(), 1.0f),
        dweights(ids.size(), std::numeric_limits<float>::quiet_NaN()) {
    std::size_t saved_bytes = 0, workspace_bytes = 0;
    REQUIRE_MESSAGE(varmoe_training_layer_saved_bytes(of, tokens, &saved_bytes) == VARMOE_OK,
                    varmoe_last_error());
    REQUIRE(varmoe_training_layer_workspace_bytes(of, tokens, &workspace_bytes) == VARMOE_OK);
    saved = std::make_unique<Bytes>(saved_bytes);
    workspace = std::make_unique<Bytes>(workspace_bytes);
    for (std::size_t i = 0; i < x.size() / 2; ++i) {
      x.set(i, false, static_cast<float>(i * 5 % 9) / 8 - 0.5f);
      dout.set(i, false, static_cast<float>(i * 7 % 11) / 8 - 0.5f);
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i % 4) - 1;  // −1: no expert
      weights[i] = 0.25f * static_cast<float>(i % 3 + 1);
    }
    REQUIRE(varmoe_forward_args_init(&forward, sizeof forward) == VARMOE_OK);
    forward.tokens = tokens;
    forward.x = x.at(0);
    forward.topk_ids = ids.data();
    forward.topk_weights = weights.data();
    forward.out = out.at(0);
    forward.workspace = workspace->at(0);
    forward.workspace_bytes = workspace_bytes;
    REQUIRE(varmoe_backward_args_init(&backward, sizeof backward) == VARMOE_OK);
    backward.tokens = tokens;
    backward.x = x.at(0);
    backward.topk_ids = ids.data();
    backward.topk_weights = weights.data();
    backward.dout = dout.at(0);
    backward.saved = saved_bytes == 0 ? nullptr : saved->at(0);
    backward.saved_bytes = saved_bytes;
    backward.dx = dx.at(0);
    backward.dtopk_weights = dweights.data();
    backward.workspace = workspace->at(0);
    backward.workspace_bytes = workspace_bytes;
  }
  int run_forward() {
    return varmoe_training_layer_forward(layer, &forward, saved->size() == 0 ? nullptr : saved->at(0),
                                         saved->size());
  }
  int run_backward() { return varmoe_training_layer_backward(layer, &backward); }

  varmoe_training_layer* layer;
  Bytes x, out, dout, dx;
  std::vector<std::int32_t> ids;
  std::vector<float> weights, dweights;
  std::unique_ptr<Bytes> saved, workspace;
  varmoe_forward_args forward;
  varmoe_backward_args backward;
};

bool nan(float v) {
  return v != v;
}

}  // namespace

TEST_CASE("C: gradients of a layer that can be worked out by hand") {
  const CpuEngine cpu;
  varmoe_layer_spec spec = good_spec();
  spec.activation = VARMOE_ACTIVATION_RELU2;
  for (const int type : {VARMOE_GRADIENT_LAYER_DTYPE, VARMOE_GRADIENT_FP32})
    for (const int save : {0, 1}) {
      CAPTURE(type);
      CAPTURE(save);
      const varmoe_training_options options = options_of(type, save);
      varmoe_training_layer* layer = nullptr;
      REQUIRE_MESSAGE(varmoe_training_layer_create(cpu.engine, &spec, &options, &layer) == VARMOE_OK,
                      varmoe_last_error());
      varmoe_report* report = nullptr;
      CHECK(varmoe_training_layer_prepare(layer, nullptr, &report) == VARMOE_OK);
      CHECK(varmoe_report_kernel_count(report) == 0);
      varmoe_report_destroy(report);
      Pass p(layer, 2);
      CHECK((p.backward.saved_bytes != 0) == (save == 1));
      Stored weights(spec, VARMOE_STORAGE_BLOCKS, false),
          gradients(spec, VARMOE_STORAGE_BLOCKS, type == VARMOE_GRADIENT_FP32);
      for (std::size_t i = 0; i < weights.elements(); ++i) weights.set(i, 0);
      for (std::size_t i = 0; i < p.x.size() / 2; ++i) p.x.set(i, false, 0), p.dout.set(i, false, 0);
      // Token 0 visits expert 0 with weight 1: z[1] = 2·2 = 4, h[1] = 16, out[7] = 0.5·16. Token 1 visits
      // expert 1 with weight 2: z[3] = 1·4, h[3] = 16, out[9] = 2·0.25·16.
      const std::size_t up1 = kWidths[0] * kHidden, down1 = kHidden * kWidths[0];
      weights.set(0, 1 * kHidden + 5, 2);
      weights.set(1, 7 * kWidths[0] + 1, 0.5f);
      weights.set(0, up1 + 3 * kHidden + 6, 1);
      weights.set(1, down1 + 9 * kWidths[1] + 3, 0.25f);
      p.x.set(5, false, 2);
      p.x.set(kHidden + 6, false, 4);
      p.dout.set(7, false, 1);
      p.dout.set(kHidden + 9, false, 2);
      p.ids = {-1, 0, 1, 3};
      p.weights = {7, 1, 2, 7};
      p.forward.topk_ids = p.backward.topk_ids = p.ids.data();
      p.forward.topk_weights = p.backward.topk_weights = p.weights.data();
      REQUIRE_MESSAGE(varmoe_training_layer_bind(layer, &weights.weights) == VARMOE_OK, varmoe_last_error());
      REQUIRE_MESSAGE(p.run_forward() == VARMOE_OK, varmoe_last_error());
      CHECK(p.out.element(7, false) == 8);
      CHECK(p.out.element(kHidden + 9, false) == 8);
      // Nobody said where the gradients go.
      CHECK(p.run_backward() == VARMOE_E_NOT_BOUND);
      p.backward.weight_gradients = 0;
      CHECK_MESSAGE(p.run_backward() == VARMOE_OK, varmoe_last_error());
      p.backward.weight_gradients = 1;
      REQUIRE_MESSAGE(varmoe_training_layer_bind_gradients(layer, &gradients.weights) == VARMOE_OK,
                      varmoe_last_error());
      for (const int times : {1, 2, 3}) {  // written, then added to twice
        CAPTURE(times);
        p.backward.accumulate_weight_gradients = times > 1;
        REQUIRE_MESSAGE(p.run_backward() == VARMOE_OK, varmoe_last_error());
        // g = 0.5 of both; dz[1] = 1·0.5·2·4, dz[3] = 2·0.5·2·4.
        CHECK(p.dweights == std::vector<float>{0, 8, 8, 0});
        for (std::size_t i = 0; i < 2 * kHidden; ++i)
          CHECK(p.dx.element(i, false) == (i == 5 || i == kHidden + 6 ? 8 : 0));
        const std::size_t region = Stored::kRegion, up = (kWidths[0] + kWidths[1] + kWidths[2]) * kHidden;
        for (std::size_t i = 0; i < gradients.elements(); ++i) {
          float expected = std::numeric_limits<float>::quiet_NaN();
          if (i < up || (i >= region && i < region + up)) expected = 0;
          if (i == 1 * kHidden + 5) expected = 8;
          if (i == up1 + 3 * kHidden + 6) expected = 32;
          if (i == region + 7 * kWidths[0] + 1) expected = 16;
          if (i == region + down1 + 9 * kWidths[1] + 3) expected = 64;
          const float got = gradients[i];
          if (nan(expected) ? !nan(got) : got != expected * static_cast<float>(times))
            FAIL_CHECK("element " << i << " is " << got << ", expected " << times << " times " << expected);
        }
      }
      p.backward.accumulate_dx = 1;
      p.backward.weight_gradients = 0;
      p.backward.dtopk_weights = nullptr;
      p.dweights.assign(4, -1);
      REQUIRE(p.run_backward() == VARMOE_OK);
      CHECK(p.dx.element(5, false) == 16);
      CHECK(p.dweights == std::vector<float>(4, -1));
      p.backward.dx = nullptr;
      REQUIRE(p.run_backward() == VARMOE_OK);
      CHECK(p.dx.element(5, false) == 16);
      varmoe_training_layer_destroy(layer);
    }
}

TEST_CASE("C: gradients in fp32 lie where those of two bytes do, in every storage, and are these unrounded") {
  const CpuEngine cpu;
  struct Case {
    const char* name;
    int storage;
    int activation = VARMOE_ACTIVATION_SILU_MUL;
    int layout = VARMOE_LAYOUT_NK;
    int gate_order = VARMOE_GATE_FIRST;
    int bias = 0;
    bool shared = false, shared_pointers = false;
  };
  const Case cases[] = {
      {.name = "blocks", .storage = VARMOE_STORAGE_BLOCKS},
      {.name = "blocks, up first", .storage = VARMOE_STORAGE_BLOCKS, .gate_order = VARMOE_GATE_UP_FIRST},
      {.name = "blocks, interleaved",
       .storage = VARMOE_STORAGE_BLOCKS,
       .gate_order = VARMOE_GATE_INTERLEAVED},
      {.name = "padded", .storage = VARMOE_STORAGE_PADDED},
      {.name = "padded, kn, not gated",
       .storage = VARMOE_STORAGE_PADDED,
       .activation = VARMOE_ACTIVATION_RELU2,
       .layout = VARMOE_LAYOUT_KN},
      {.name = "packed", .storage = VARMOE_STORAGE_PACKED, .layout = VARMOE_LAYOUT_KN},
      {.name = "packed joint", .storage = VARMOE_STORAGE_PACKED_JOINT, .layout = VARMOE_LAYOUT_KN},
      {.name = "pointers", .storage = VARMOE_STORAGE_POINTERS},
      {.name = "experts", .storage = VARMOE_STORAGE_EXPERTS},
      {.name = "blocks, biases", .storage = VARMOE_STORAGE_BLOCKS, .bias = 1},
      {.name = "padded, biases", .storage = VARMOE_STORAGE_PADDED, .bias = 1},
      {.name = "pointers, biases", .storage = VARMOE_STORAGE_POINTERS, .bias = 1},
      {.name = "experts, biases", .storage = VARMOE_STORAGE_EXPERTS, .bias = 1},
      {.name = "blocks, shared", .storage = VARMOE_STORAGE_BLOCKS, .shared = true},
      {.name = "blocks, shared pointers",
       .storage = VARMOE_STORAGE_BLOCKS,
       .shared = true,
       .shared_pointers = true},
  };
  for (const Case& c : cases) {
    const std::string name = c.name;
    CAPTURE(name);
    varmoe_layer_spec spec = good_spec();
    spec.activation = c.activation;
    spec.fc1_layout = spec.fc2_layout = c.layout;
    spec.gate_order = c.gate_order;
    spec.bias = c.bias;
    if (c.shared) {
      spec.shared_widths = kShared.data();
      spec.num_shared = kShared.size();
      spec.shared_gate = 1;
    }
    Stored weights(spec, c.storage, false, c.shared_pointers);
    weights.fill();
    Stored narrow(spec, c.storage, false, c.shared_pointers), wide(spec, c.storage, true, c.shared_pointers);
    std::vector<std::string> dx;
    for (Stored* gradients : {&narrow, &wide}) {
      const varmoe_training_options options =
          options_of(gradients == &wide ? VARMOE_GRADIENT_FP32 : VARMOE_GRADIENT_LAYER_DTYPE);
      varmoe_training_layer* layer = nullptr;
      REQUIRE_MESSAGE(varmoe_training_layer_create(cpu.engine, &spec, &options, &layer) == VARMOE_OK,
                      varmoe_last_error());
      Pass p(layer);
      // An expert's matrices in the struct of its own are H elements a row, whichever they are.
      if (c.storage == VARMOE_STORAGE_EXPERTS)
        for (Stored* s : {&weights, gradients})
          for (std::size_t e = 0; e < kWidths.size(); ++e) s->experts[e].fc2_stride = kWidths[e];
      REQUIRE_MESSAGE(varmoe_training_layer_bind(layer, &weights.weights) == VARMOE_OK, varmoe_last_error());
      REQUIRE_MESSAGE(varmoe_training_layer_bind_gradients(layer, &gradients->weights) == VARMOE_OK,
                      varmoe_last_error());
      REQUIRE_MESSAGE(p.run_forward() == VARMOE_OK, varmoe_last_error());
      REQUIRE_MESSAGE(p.run_backward() == VARMOE_OK, varmoe_last_error());
      dx.emplace_back(reinterpret_cast<const char*>(p.dx.at(0)), p.dx.size());
      varmoe_training_layer_destroy(layer);
    }
    CHECK(dx[0] == dx[1]);
    std::size_t written = 0, zero = 0, differ = 0;
    for (std::size_t i = 0; i < narrow.elements(); ++i) {
      const float rounded = static_cast<float>(oracle::round_to(DType::bf16, wide[i]));
      if (nan(narrow[i]) != nan(wide[i]) || (!nan(wide[i]) && rounded != narrow[i])) ++differ;
      if (!nan(wide[i])) ++written, zero += wide[i] == 0;
    }
    CHECK(differ == 0);
    // Every element of every matrix, bias and gate, and no other.
    const std::size_t columns = kWidths[0] + kWidths[1] + kWidths[2],
                      halves = c.activation == VARMOE_ACTIVATION_SILU_MUL ? 2 : 1;
    std::size_t expected = columns * kHidden * (halves + 1);
    if (c.bias) expected += columns * halves + kWidths.size() * kHidden;
    if (c.shared) expected += (kShared[0] + kShared[1]) * kHidden * 3 + kHidden;
    CHECK(written == expected);
    CHECK(zero < written / 2);
  }
}

TEST_CASE("C: a training layer's defaults are those of the C++ API") {
  varmoe_training_options options;
  REQUIRE(varmoe_training_options_init(&options, sizeof options) == VARMOE_OK);
  const TrainingOptions cpp_options;
  CHECK((options.save_preactivation != 0) == cpp_options.save_preactivation);
  CHECK(options.gradient_type == static_cast<int>(cpp_options.gradient_type));
  CHECK(options.max_sms == cpp_options.max_sms);
  varmoe_backward_args args;
  REQUIRE(varmoe_backward_args_init(&args, sizeof args) == VARMOE_OK);
  const BackwardArgs cpp_args;
  CHECK((args.weight_gradients != 0) == cpp_args.weight_gradients);
  CHECK((args.accumulate_weight_gradients != 0) == cpp_args.accumulate_weight_gradients);
  CHECK((args.accumulate_dx != 0) == cpp_args.accumulate_dx);
  CHECK(args.id_type == static_cast<int>(cpp_args.id_type));
  CHECK((args.dx == nullptr));
}

TEST_CASE("C: what a training layer is not given or cannot mean is refused by name") {
  const CpuEngine cpu;
  varmoe_layer_spec spec = good_spec();
  varmoe_training_options options = options_of(VARMOE_GRADIENT_LAYER_DTYPE);
  varmoe_training_layer* layer = nullptr;
  varmoe_forward_args forward;
  varmoe_forward_args_init(&forward, sizeof forward);
  varmoe_backward_args backward;
  varmoe_backward_args_init(&backward, sizeof backward);
  std::size_t bytes = 7;
#define REFUSED(call, text)                   \
  CHECK((call) == VARMOE_E_INVALID_ARGUMENT); \
  CHECK_MESSAGE(last_error_has(text), varmoe_last_error())
  REFUSED(varmoe_training_options_init(nullptr, sizeof options), "varmoe_training_options");
  REFUSED(varmoe_backward_args_init(nullptr, sizeof backward), "varmoe_backward_args");
  REFUSED(varmoe_backward_args_init(&backward, sizeof backward - 8), "struct_size");
  REFUSED(varmoe_training_layer_create(nullptr, &spec, &options, &layer), "engine is null");
  REFUSED(varmoe_training_layer_create(cpu.engine, nullptr, &options, &layer), "varmoe_layer_spec is null");
  REFUSED(varmoe_training_layer_create(cpu.engine, &spec, &options, nullptr), "layer is null");
  REFUSED(varmoe_training_layer_prepare(nullptr, nullptr, nullptr), "layer is null");
  REFUSED(varmoe_training_layer_bind(nullptr, nullptr), "layer is null");
  REFUSED(varmoe_training_layer_bind_gradients(nullptr, nullptr), "layer is null");
  REFUSED(varmoe_training_layer_saved_bytes(nullptr, 1, &bytes), "layer is null");
  CHECK(bytes == 0);
  REFUSED(varmoe_training_layer_workspace_bytes(nullptr, 1, &bytes), "layer is null");
  REFUSED(varmoe_training_layer_forward(nullptr, &forward, nullptr, 0), "layer is null");
  REFUSED(varmoe_training_layer_backward(nullptr, &backward), "layer is null");
  for (const auto& [field, text] :
       {std::pair{&varmoe_training_options::save_preactivation, "save_preactivation = 2"},
        std::pair{&varmoe_training_options::gradient_type, "gradient_type = 2"}}) {
    options = options_of(VARMOE_GRADIENT_LAYER_DTYPE);
    options.*field = 2;
    REFUSED(varmoe_training_layer_create(cpu.engine, &spec, &options, &layer), text);
  }
  options = options_of(VARMOE_GRADIENT_LAYER_DTYPE);
  options.max_sms = -1;
  REFUSED(varmoe_training_layer_create(cpu.engine, &spec, &options, &layer), "max_sms = -1");
  options.max_sms = 0;
  spec = good_spec();
  spec.top_k = 0;
  CHECK(varmoe_training_layer_create(cpu.engine, &spec, nullptr, &layer) == VARMOE_E_INVALID_SPEC);
  CHECK(layer == nullptr);
  spec = good_spec();
  REQUIRE_MESSAGE(varmoe_training_layer_create(cpu.engine, &spec, nullptr, &layer) == VARMOE_OK,
                  varmoe_last_error());
  REFUSED(varmoe_training_layer_saved_bytes(layer, 1, nullptr), "bytes is null");
  REFUSED(varmoe_training_layer_saved_bytes(layer, -1, &bytes), "tokens = -1");
  REFUSED(varmoe_training_layer_workspace_bytes(layer, -1, &bytes), "tokens = -1");
  REFUSED(varmoe_training_layer_bind(layer, nullptr), "varmoe_weights is null");
  REFUSED(varmoe_training_layer_bind_gradients(layer, nullptr), "gradients: varmoe_weights is null");
  varmoe_weights none;
  REQUIRE(varmoe_weights_init(&none, sizeof none) == VARMOE_OK);
  REFUSED(varmoe_training_layer_bind_gradients(layer, &none), "gradients: ");
  REFUSED(varmoe_training_layer_forward(layer, nullptr, nullptr, 0), "args is null");
  REFUSED(varmoe_training_layer_backward(layer, nullptr), "args is null");
  Pass p(layer);
  CHECK(p.run_forward() == VARMOE_E_NOT_BOUND);
  CHECK(p.run_backward() == VARMOE_E_NOT_BOUND);
  CHECK(varmoe_training_layer_forward(layer, &p.forward, p.saved->at(0), p.saved->size() - 1) ==
        VARMOE_E_WORKSPACE_TOO_SMALL);
  REFUSED(varmoe_training_layer_forward(layer, &p.forward, nullptr, p.saved->size()), "saved");
  const struct {
    const char* text;
    std::int32_t varmoe_backward_args::*field;
  } flags[] = {{"id_type = 2", &varmoe_backward_args::id_type},
               {"weight_gradients = 2", &varmoe_backward_args::weight_gradients},
               {"accumulate_weight_gradients = 2", &varmoe_backward_args::accumulate_weight_gradients},
               {"accumulate_dx = 2", &varmoe_backward_args::accumulate_dx}};
  for (const auto& f : flags) {
    varmoe_backward_args args = p.backward;
    args.*f.field = 2;
    REFUSED(varmoe_training_layer_backward(layer, &args), f.text);
  }
  p.backward.struct_size = 8;
  REFUSED(p.run_backward(), "struct_size = 8");
#undef REFUSED
  varmoe_training_layer_destroy(layer);
  varmoe_training_layer_destroy(nullptr);
}
