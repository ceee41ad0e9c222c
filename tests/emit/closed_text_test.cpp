#include <bit>
#include <cfloat>
#include <cmath>
#include <filesystem>
#include <limits>

#include "emit/closed_text.hpp"
#include "emit/emit_case.hpp"
#include "model/model_config.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

/// Strings that would do harm in source, options or comments, as a JSON file spells them.
std::vector<std::string> hostile_json_strings() {
  return {"*/ int x; /*",
          "\\n#include \\\"/etc/passwd\\\"\\n",
          "\\\"); asm(\\\"trap;\\\"); (\\\"",
          "--include-path=/tmp",
          "%n%s{}{0}",
          "?"
          "?/\\n\\\\",  // a trigraph, kept from this file's own compiler
          "\\u0000\\u202e\\r",
          std::string(1 << 20, 'A')};
}

LayerSpec layer_file(const std::string& name) {
  const std::string text = R"({"varmoe_layer": 1, "name": ")" + name +
                           R"(", "hidden_size": 512, "expert_widths": [128, 256, 128], "top_k": 2})";
  auto model = model::read_model_text(text, name);
  REQUIRE_MESSAGE(model.ok(), (model.ok() ? "" : model.error().message().substr(0, 300)));
  return model->layers.at(0).spec;
}

LayerSpec hugging_face_file(const std::string& string) {
  std::string text = slurp(std::string(VARMOE_SOURCE_DIR) + "/models/mixtral-8x7b.json");
  const auto brace = text.find('{');
  REQUIRE(brace != std::string::npos);
  text.insert(brace + 1, "\"_name_or_path\": \"" + string + "\", \"x" + string + "\": \"" + string + "\",");
  auto model = model::read_model_text(text, "config.json");
  REQUIRE_MESSAGE(model.ok(), (model.ok() ? "" : model.error().message().substr(0, 300)));
  return model->layers.at(0).spec;
}

std::string activation_line(float alpha, float limit) {
  LayerSpec spec = pruned_spec();
  spec.activation = Activation::swiglu_oai;
  spec.activation_params = {alpha, limit};
  const std::string text = must_emit(spec, Stage::fc1).text;
  const auto begin = text.find("using Activation = ");
  REQUIRE(begin != std::string::npos);
  return text.substr(begin, text.find('\n', begin) - begin);
}

/// What the emitted width(c) returns for c = 0, 1, ….
std::vector<std::int64_t> width_table(const std::string& text) {
  static const std::regex kFunction("static constexpr int width\\((int|int c)\\) \\{ return (.*); \\}");
  std::smatch function;
  REQUIRE(std::regex_search(text, function, kFunction));
  std::vector<std::int64_t> widths;
  std::string rest = function[2];
  static const std::regex kCase("c == ([0-9]+) \\? ([0-9]+) : (.*)");
  for (std::smatch match; std::regex_match(rest, match, kCase); rest = std::string(match[3])) {
    CHECK(match[1] == std::to_string(widths.size()));
    widths.push_back(std::stoll(match[2]));
  }
  CHECK(rest.find_first_not_of("0123456789") == std::string::npos);
  widths.push_back(std::stoll(rest));
  CHECK((function[1] == "int") == (widths.size() == 1));  // no unused parameter's name
  return widths;
}

}  // namespace

TEST_CASE("fault 23: no string of a layer file or of a config.json reaches a kernel's text or options") {
  const LayerSpec clean = layer_file("clean"), clean_hf = hugging_face_file("clean");
  for (const std::string& hostile : hostile_json_strings()) {
    CAPTURE(hostile.substr(0, 40));
    const LayerSpec spec = layer_file(hostile), spec_hf = hugging_face_file(hostile);
    for (const Stage stage : kStages) {
      CHECK(same_kernel(must_emit(spec, stage), must_emit(clean, stage)));
      CHECK(same_kernel(must_emit(spec_hf, stage), must_emit(clean_hf, stage)));
    }
  }
}

TEST_CASE("fault 23: text and options of every kind of layer are made of known words alone") {
  for (int activation = 0; activation <= static_cast<int>(Activation::identity); ++activation) {
    for (int bits = 0; bits < 12; ++bits) {
      LayerSpec spec = pruned_spec();
      spec.activation = static_cast<Activation>(activation);
      spec.dtype = (bits & 1) != 0 ? DType::fp16 : DType::bf16;
      spec.fc1_layout = spec.fc2_layout = (bits & 2) != 0 ? WeightLayout::kn : WeightLayout::nk;
      spec.gate_order = static_cast<GateOrder>(bits / 4);
      for (const Stage stage : kStages) check_closed(must_emit(spec, stage));
    }
  }
}

TEST_CASE("fault 23: so are those of Hopper's main loop") {
  for (const Schedule schedule : kHopperSchedules) {
    for (int bits = 0; bits < 48; ++bits) {
      LayerSpec spec = pruned_spec();
      spec.activation = (bits & 1) != 0 ? Activation::relu2 : Activation::swiglu_oai;
      spec.dtype = (bits & 2) != 0 ? DType::fp16 : DType::bf16;
      spec.fc1_layout = spec.fc2_layout = (bits & 4) != 0 ? WeightLayout::kn : WeightLayout::nk;
      spec.gate_order = static_cast<GateOrder>(bits / 16);
      for (const Stage stage : {Stage::fc1, Stage::fc2}) {
        KernelRequest request = wgmma_request(stage, schedule);
        request.runtime_width = (bits & 8) != 0;
        request.gemm.row_step = 8 << bits % 3;
        request.gemm.gather = bits % 2 == 0 ? GatherMode::copy : GatherMode::fused;
        check_closed(must_emit(spec, request));
      }
    }
  }
}

TEST_CASE("fault 23: so are those of the largest and smallest layers") {
  LayerSpec most = uniform_spec(kMaxHidden, kMaxExperts, kMaxWidth, kMaxTopK, Activation::swiglu_oai);
  for (std::size_t e = 0; e < 16; ++e) most.expert_widths[e] = kMaxWidth - 8 * static_cast<std::int64_t>(e);
  most.activation_params = {-std::numeric_limits<float>::denorm_min(), FLT_MAX};
  const LayerSpec least = uniform_spec(kMinHidden, 1, 8, 1);
  for (const Stage stage : kStages) {
    for (const bool runtime : {false, true}) {
      KernelRequest request = request_of(stage);
      request.runtime_width = runtime;
      request.gemm.gather = GatherMode::copy;
      check_closed(must_emit(most, request));
      check_closed(must_emit(least, request));
    }
  }
}

TEST_CASE("fault 23: an enumerator out of its range is refused, not printed") {
  const auto refused = [](const LayerSpec& spec) {
    for (const Stage stage : kStages) {
      const auto kernel = emit::emit_kernel(spec, request_of(stage));
      REQUIRE_FALSE(kernel.ok());
      CHECK(kernel.error().code() == ErrorCode::invalid_spec);
    }
  };
  LayerSpec activation = pruned_spec(), dtype = activation, layout = activation, order = activation;
  activation.activation = static_cast<Activation>(200);
  dtype.dtype = static_cast<DType>(7);
  layout.fc1_layout = static_cast<WeightLayout>(9);
  order.gate_order = static_cast<GateOrder>(3);
  refused(activation);
  refused(dtype);
  refused(layout);
  refused(order);
  KernelRequest request = request_of(Stage::fc1);
  request.gemm.gather = static_cast<GatherMode>(5);
  CHECK_FALSE(emit::emit_kernel(pruned_spec(), request).ok());
  request = request_of(Stage::fc1);
  request.gemm.schedule = static_cast<Schedule>(5);
  CHECK_FALSE(emit::emit_kernel(pruned_spec(), request).ok());
}

TEST_CASE("float parameters travel as bit patterns") {
  CHECK(activation_line(1.702f, 7.0f) ==
        "using Activation = varmoe::activation::SwigluOai<0x3fd9db23u, 0x40e00000u>;");
  CHECK(activation_line(0.1f, 0.1f) ==
        "using Activation = varmoe::activation::SwigluOai<0x3dcccccdu, 0x3dcccccdu>;");
  CHECK(activation_line(-0.0f, FLT_MAX) ==
        "using Activation = varmoe::activation::SwigluOai<0x80000000u, 0x7f7fffffu>;");
  // Neighbouring floats, denormals among them, stay apart and come back as the bits that went in.
  static const std::regex kLine(
      "using Activation = varmoe::activation::SwigluOai<0x([0-9a-f]{8})u, 0x([0-9a-f]{8})u>;");
  for (const float value :
       {std::numeric_limits<float>::denorm_min(), 2 * std::numeric_limits<float>::denorm_min(), FLT_MIN,
        std::nextafterf(FLT_MIN, 0.0f), 1.0f, std::nextafterf(1.0f, 2.0f)}) {
    const std::string line = activation_line(-value, value);
    std::smatch match;
    REQUIRE(std::regex_match(line, match, kLine));
    CHECK(std::stoul(match[1], nullptr, 16) == std::bit_cast<std::uint32_t>(-value));
    CHECK(std::stoul(match[2], nullptr, 16) == std::bit_cast<std::uint32_t>(value));
  }
}

TEST_CASE("the emitted widths are the layer's classes, widest first") {
  LayerSpec spec = uniform_spec(256, 1, 8, 1);
  for (std::int64_t classes = 1; classes <= 16; ++classes) {
    spec.expert_widths.clear();
    std::vector<std::int64_t> widest_first;
    for (std::int64_t c = 0; c < classes; ++c) {
      spec.expert_widths.push_back(8 * ((c * 7) % 16 + 1));  // 7 and 16 have no common factor
      spec.expert_widths.push_back(8 * ((c * 7) % 16 + 1));
    }
    widest_first = spec.expert_widths;
    std::sort(widest_first.rbegin(), widest_first.rend());
    widest_first.erase(std::unique(widest_first.begin(), widest_first.end()), widest_first.end());
    for (const Stage stage : {Stage::fc1, Stage::fc2}) {
      const std::string text = must_emit(spec, stage).text;
      CHECK(width_table(text) == widest_first);
      CHECK(contains(text, "static constexpr int kClasses = " + std::to_string(classes) + ";"));
    }
  }
}
