#include "oracle/golden.hpp"

#include <cstdio>
#include <sstream>

namespace oracle {

namespace {

using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

std::string hex_row(const std::uint16_t* data, std::int64_t count, std::int64_t step) {
  std::string text = "\"";
  char digits[8];
  for (std::int64_t i = 0; i < count; ++i) {
    std::snprintf(digits, sizeof digits, "%04x", static_cast<unsigned>(data[i * step]));
    text += digits;
  }
  return text + "\"";
}

std::string hex_rows(const std::uint16_t* data, std::int64_t rows, std::int64_t count, std::int64_t row_step,
                     std::int64_t step, const char* indent) {
  std::string text = "[\n";
  for (std::int64_t r = 0; r < rows; ++r) {
    text += std::string(indent) + "  " + hex_row(data + r * row_step, count, step) +
            (r + 1 < rows ? ",\n" : "\n");
  }
  return text + indent + "]";
}

std::string matrix(const OracleMatrix& m, std::int64_t outputs, std::int64_t depth) {
  return hex_rows(m.data, outputs, depth, m.out_stride, m.k_stride, "      ");
}

const char* name_of(Activation a) {
  switch (a) {
    case Activation::silu_mul:
      return "silu_mul";
    case Activation::gelu_tanh_mul:
      return "gelu_tanh_mul";
    case Activation::gelu_erf_mul:
      return "gelu_erf_mul";
    case Activation::swiglu_oai:
      return "swiglu_oai";
    case Activation::silu:
      return "silu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::gelu_erf:
      return "gelu_erf";
    case Activation::relu:
      return "relu";
    case Activation::relu2:
      return "relu2";
    case Activation::identity:
      return "identity";
  }
  throw std::logic_error("oracle: unknown activation");
}

// Floats as their bits too: decimal text would have to be parsed back exactly.
std::string float_bits(float f) {
  char text[16];
  std::snprintf(text, sizeof text, "\"%08x\"", static_cast<unsigned>(std::bit_cast<std::uint32_t>(f)));
  return text;
}

}  // namespace

std::vector<GoldenCase> golden_cases() {
  std::vector<GoldenCase> cases;
  const auto add = [&](const char* name, std::vector<std::int64_t> widths, std::int64_t top_k,
                       Activation activation, DType dtype) -> GoldenCase& {
    GoldenCase g;
    g.name = name;
    g.spec.hidden_size = 64;
    g.spec.expert_widths = std::move(widths);
    g.spec.top_k = top_k;
    g.spec.activation = activation;
    g.spec.dtype = dtype;
    g.options.tokens = 4;
    g.options.seed = cases.size() + 1;
    cases.push_back(std::move(g));
    return cases.back();
  };
  add("uniform_silu_mul_bf16", {16, 16, 16}, 2, Activation::silu_mul, DType::bf16);
  add("uneven_silu_mul_fp16", {8, 24, 16}, 2, Activation::silu_mul, DType::fp16);
  {
    GoldenCase& g = add("uneven_relu2_bf16", {24, 8, 16, 8}, 2, Activation::relu2, DType::bf16);
    g.options.invalid_fraction = 0.25;
  }
  {
    GoldenCase& g = add("duplicates_gelu_erf_mul_bf16", {16, 8}, 3, Activation::gelu_erf_mul, DType::bf16);
    g.options.duplicate_fraction = 0.5;
    g.options.accumulate = true;
  }
  add("uneven_gelu_tanh_mul_fp16", {8, 16}, 1, Activation::gelu_tanh_mul, DType::fp16);
  add("uniform_swiglu_oai_bf16", {16, 16}, 2, Activation::swiglu_oai, DType::bf16).spec.activation_params = {
      1.702f, 1.25f};
  add("uneven_silu_fp16", {16, 8}, 1, Activation::silu, DType::fp16);
  add("uneven_gelu_tanh_bf16", {16, 8}, 1, Activation::gelu_tanh, DType::bf16);
  add("uneven_gelu_erf_fp16", {16, 8}, 1, Activation::gelu_erf, DType::fp16);
  add("uneven_relu_bf16", {16, 8}, 1, Activation::relu, DType::bf16);
  add("uneven_identity_fp16", {16, 8}, 2, Activation::identity, DType::fp16).options.routing =
      Routing::one_expert;
  return cases;
}

std::string golden_text(const GoldenCase& golden) {
  const RandomCase c = make_case(golden.spec, golden.options);
  const OracleLayer layer = c.oracle_layer();
  const std::int64_t H = golden.spec.hidden_size, T = golden.options.tokens, k = golden.spec.top_k;
  const std::vector<double> reference = c.reference(1);
  std::vector<std::uint16_t> out;
  for (const double v : reference) out.push_back(encode(golden.spec.dtype, v));

  std::ostringstream s;
  s << "{\n  \"name\": \"" << golden.name << "\",\n";
  s << "  \"hidden_size\": " << H << ",\n  \"top_k\": " << k << ",\n  \"tokens\": " << T << ",\n";
  s << "  \"dtype\": \"" << (golden.spec.dtype == DType::bf16 ? "bf16" : "fp16") << "\",\n";
  s << "  \"activation\": \"" << name_of(golden.spec.activation) << "\",\n";
  s << "  \"alpha_bits\": " << float_bits(golden.spec.activation_params.alpha)
    << ",\n  \"limit_bits\": " << float_bits(golden.spec.activation_params.limit) << ",\n";
  s << "  \"experts\": [\n";
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    const OracleExpert& x = layer.experts[e];
    s << "    {\n      \"width\": " << x.width << ",\n";
    if (is_gated(golden.spec.activation)) s << "      \"gate\": " << matrix(x.gate, x.width, H) << ",\n";
    s << "      \"up\": " << matrix(x.up, x.width, H) << ",\n";
    s << "      \"down\": " << matrix(x.down, H, x.width) << "\n    }"
      << (e + 1 < layer.experts.size() ? "," : "") << "\n";
  }
  s << "  ],\n  \"x\": " << hex_rows(c.x.data(), T, H, c.x_stride, 1, "  ") << ",\n";
  s << "  \"topk_ids\": [";
  for (std::size_t i = 0; i < c.ids64.size(); ++i) s << (i != 0 ? ", " : "") << c.ids64[i];
  s << "],\n  \"topk_weight_bits\": [";
  for (std::size_t i = 0; i < c.topk_weights.size(); ++i)
    s << (i != 0 ? ", " : "") << float_bits(c.topk_weights[i]);
  s << "],\n";
  if (golden.options.accumulate)
    s << "  \"old_out\": " << hex_rows(c.out.data(), T, H, c.out_stride, 1, "  ") << ",\n";
  s << "  \"out\": " << hex_rows(out.data(), T, H, H, 1, "  ") << "\n}\n";
  return s.str();
}

}  // namespace oracle
