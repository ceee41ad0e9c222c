#include "varmoe/layer_spec.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <string>

using namespace varmoe;

namespace {

LayerSpec small() {
  LayerSpec spec;
  spec.hidden_size = 256;
  spec.expert_widths = {128, 64, 128, 192};
  spec.top_k = 2;
  return spec;
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a sound spec is valid, at the edges of every range too") {
  CHECK(small().validate());
  LayerSpec spec = uniform_spec(kMinHidden, 1, kWidthMultiple, 1);
  CHECK(spec.validate());
  spec = uniform_spec(kMaxHidden, kMaxExperts, kMaxWidth, kMaxTopK, Activation::relu2, DType::fp16);
  CHECK(spec.validate());
  CHECK(spec.total_width() == kMaxExperts * kMaxWidth);
  CHECK(uniform_spec(256, 2, 64, 4).validate());  // top_k may exceed E
}

TEST_CASE("fault 22: every numeric field out of range is refused by name") {
  const std::int64_t bad_sizes[] = {std::int64_t{4294967296},
                                    -1,
                                    1,
                                    0,
                                    63,
                                    65,
                                    100,
                                    std::numeric_limits<std::int64_t>::max(),
                                    std::numeric_limits<std::int64_t>::min()};
  for (const std::int64_t value : bad_sizes) {
    CAPTURE(value);
    LayerSpec spec = small();
    spec.hidden_size = value;
    REQUIRE_FALSE(spec.validate());
    CHECK(spec.validate().error().code() == ErrorCode::invalid_spec);
    CHECK(contains(spec.validate().error().message(), "hidden_size"));
    CHECK(contains(spec.validate().error().message(), std::to_string(value).c_str()));
    spec = small();
    spec.expert_widths[2] = value;
    REQUIRE_FALSE(spec.validate());
    CHECK(contains(spec.validate().error().message(), "expert_widths[2]"));
    CHECK(contains(spec.validate().error().message(), std::to_string(value).c_str()));
  }
  for (const std::int64_t value :
       {std::int64_t{0}, std::int64_t{-1}, kMaxTopK + 1, std::int64_t{4294967297}}) {
    LayerSpec spec = small();
    spec.top_k = value;
    REQUIRE_FALSE(spec.validate());
    CHECK(contains(spec.validate().error().message(), "top_k"));
  }
  LayerSpec spec = small();
  spec.expert_widths.clear();
  CHECK_FALSE(spec.validate());
  CHECK_FALSE(uniform_spec(256, kMaxExperts + 1, 64, 1).validate());
  CHECK_FALSE(uniform_spec(256, -5, 64, 1).validate());
  CHECK_FALSE(uniform_spec(256, std::numeric_limits<std::int64_t>::max(), 64, 1).validate());
}

TEST_CASE("numbers that are no enumerators are refused by name") {
  const auto message = [](const LayerSpec& spec) {
    const Status status = spec.validate();
    return status ? std::string() : status.error().message();
  };
  LayerSpec spec = small();
  spec.activation = static_cast<Activation>(10);
  CHECK(contains(message(spec), "activation is 10"));
  CHECK(std::string(to_string(spec.activation)) == "invalid");
  spec = small();
  spec.dtype = static_cast<DType>(2);
  CHECK(contains(message(spec), "dtype is 2"));
  spec = small();
  spec.fc1_layout = static_cast<WeightLayout>(7);
  CHECK(contains(message(spec), "fc1_layout"));
  spec = small();
  spec.fc2_layout = static_cast<WeightLayout>(255);
  CHECK(contains(message(spec), "fc2_layout"));
  spec = small();
  spec.gate_order = static_cast<GateOrder>(3);
  CHECK(contains(message(spec), "gate_order"));
}

TEST_CASE("activation parameters are checked where they are used, and only there") {
  LayerSpec spec = small();
  spec.activation_params.limit = -1;
  CHECK(spec.validate());
  spec.activation = Activation::swiglu_oai;
  CHECK_FALSE(spec.validate());
  spec.activation_params.limit = std::numeric_limits<float>::infinity();
  CHECK_FALSE(spec.validate());
  spec.activation_params.limit = 7;
  CHECK(spec.validate());
  spec.activation_params.alpha = std::numeric_limits<float>::quiet_NaN();
  REQUIRE_FALSE(spec.validate());
  CHECK(contains(spec.validate().error().message(), "alpha"));
}

TEST_CASE("width classes ascend and count") {
  CHECK(width_classes(small()) == std::vector<WidthClass>{{64, 1}, {128, 2}, {192, 1}});
  CHECK(width_classes(LayerSpec{}).empty());
  CHECK(LayerSpec{}.max_width() == 0);
  CHECK(small().max_width() == 192);
  CHECK(small().total_width() == 512);
}

TEST_CASE("signatures: what kernels share, what tuning records tell apart") {
  const LayerSpec spec = small();
  LayerSpec shuffled = spec;
  std::reverse(shuffled.expert_widths.begin(), shuffled.expert_widths.end());
  std::rotate(shuffled.expert_widths.begin(), shuffled.expert_widths.begin() + 1,
              shuffled.expert_widths.end());
  CHECK(kernel_signature(shuffled) == kernel_signature(spec));
  CHECK(tuning_signature(shuffled) == tuning_signature(spec));

  LayerSpec recounted = spec;
  recounted.expert_widths = {64, 64, 128, 192};
  CHECK(kernel_signature(recounted) == kernel_signature(spec));
  CHECK(tuning_signature(recounted) != tuning_signature(spec));

  const auto changed = [&spec](auto change) {
    LayerSpec other = spec;
    change(other);
    CHECK(kernel_signature(other) != kernel_signature(spec));
    CHECK(tuning_signature(other) != tuning_signature(spec));
  };
  changed([](LayerSpec& s) { s.hidden_size = 512; });
  changed([](LayerSpec& s) { s.expert_widths[0] = 136; });
  changed([](LayerSpec& s) { s.expert_widths.push_back(128); });
  changed([](LayerSpec& s) { s.top_k = 3; });
  changed([](LayerSpec& s) { s.activation = Activation::gelu_tanh_mul; });
  changed([](LayerSpec& s) { s.dtype = DType::fp16; });
  changed([](LayerSpec& s) { s.fc1_layout = WeightLayout::kn; });
  changed([](LayerSpec& s) { s.fc2_layout = WeightLayout::kn; });
  changed([](LayerSpec& s) { s.gate_order = GateOrder::up_first; });
  changed([](LayerSpec& s) { s.batch_invariant = true; });
  changed([](LayerSpec& s) { s.bias = true; });
  changed([](LayerSpec& s) { s.weight_on_input = true; });
}

TEST_CASE("signatures: what a layer does not read does not tell it apart") {
  LayerSpec a = small(), b = small();
  b.activation_params.alpha = 2;
  CHECK(kernel_signature(a) == kernel_signature(b));
  a.activation = b.activation = Activation::swiglu_oai;
  CHECK(kernel_signature(a) != kernel_signature(b));
  a.activation_params.alpha = 0.0f;
  b.activation_params.alpha = -0.0f;
  CHECK(kernel_signature(a) == kernel_signature(b));
  a.activation = b.activation = Activation::relu2;
  b.gate_order = GateOrder::interleaved;
  CHECK(kernel_signature(a) == kernel_signature(b));
}

TEST_CASE("a class set too rich is the runtime-width kernels' whatever it holds") {
  LayerSpec a = small(), b = small();
  a.expert_widths.clear();
  b.expert_widths.clear();
  for (std::int64_t i = 1; i <= static_cast<std::int64_t>(kMaxWidthClasses) + 1; ++i) {
    a.expert_widths.push_back(8 * i);
    b.expert_widths.push_back(16 * i);
  }
  CHECK(kernel_signature(a) == kernel_signature(b));
  CHECK(tuning_signature(a) != tuning_signature(b));
  a.expert_widths.back() = b.expert_widths.back() = 16;  // one class fewer: specialised kernels again
  CHECK(kernel_signature(a) != kernel_signature(b));
}

TEST_CASE("names of enumerators read back, others are refused with the choices") {
  for (int i = 0; i < 10; ++i) {
    const auto activation = static_cast<Activation>(i);
    CHECK(activation_info(activation).activation == activation);
    REQUIRE(parse_activation(to_string(activation)));
    CHECK(*parse_activation(to_string(activation)) == activation);
  }
  CHECK(*parse_dtype("fp16") == DType::fp16);
  CHECK(*parse_weight_layout("kn") == WeightLayout::kn);
  CHECK(*parse_gate_order("interleaved") == GateOrder::interleaved);
  const auto bad = parse_activation("silu_mull");
  REQUIRE_FALSE(bad);
  CHECK(contains(bad.error().message(), "silu_mull"));
  CHECK(contains(bad.error().message(), "swiglu_oai"));
  CHECK(contains(parse_gate_order("").error().message(), "up_first"));
}

TEST_CASE("fault 23: names from outside are shown cut and escaped") {
  const std::string hostile = "*/\n#include \"/etc/passwd\"\x01" + std::string(1 << 20, 'A');
  for (const std::string& message :
       {parse_dtype(hostile).error().message(), parse_activation(hostile).error().message(),
        parse_weight_layout(hostile).error().message(), parse_gate_order(hostile).error().message()}) {
    CHECK(message.size() < 1000);
    CHECK_FALSE(contains(message, "\n"));
    CHECK_FALSE(contains(message, "\x01"));
  }
}
