#include "emit/wgmma_text.hpp"

#include <fmt/format.h>

#include <iterator>

namespace varmoe::emit {
namespace {

/// m64nNk16 with fp32 sums: N/2 registers a thread, two descriptors, and a predicate that says whether the
/// old sum counts.
void append_instruction(std::string& text, DType dtype, bool transpose, bool transpose_b, std::int32_t n) {
  const bool bf16 = dtype == DType::bf16;
  const std::int32_t registers = n / 2;
  const auto out = std::back_inserter(text);
  fmt::format_to(out,
                 "template <>\nstruct varmoe::ptx::Wgmma<{}, varmoe::Element::{}, {}{}> {{\n"
                 "  template <int kRegisters>\n"
                 "  VARMOE_DEVICE static void run(float (&d)[kRegisters], u64 a, u64 b, u32 accumulate) {{\n"
                 "    asm volatile(\"{{.reg .pred p; setp.ne.u32 p, %{}, 0; "
                 "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{",
                 n, bf16 ? "bf16" : "fp16", transpose ? "true" : "false", transpose_b ? ", true" : "",
                 registers + 2, n, bf16 ? "bf16" : "f16", bf16 ? "bf16" : "f16");
  for (std::int32_t i = 0; i < registers; ++i) fmt::format_to(out, "{}%{}", i == 0 ? "" : ",", i);
  fmt::format_to(out, "}}, %{}, %{}, p, 1, 1, {}, {};}}\\n\" :", registers, registers + 1, transpose ? 1 : 0,
                 transpose_b ? 1 : 0);
  for (std::int32_t i = 0; i < registers; ++i) fmt::format_to(out, "{}\"+f\"(d[{}])", i == 0 ? " " : ", ", i);
  text += " : \"l\"(a), \"l\"(b), \"r\"(accumulate));\n  }\n};\n";
}

}  // namespace

std::string wgmma_instructions(DType dtype, bool transpose_weights, std::int32_t max_n, std::int32_t step) {
  std::string text;
  for (std::int32_t n = step; n <= max_n; n += step)
    append_instruction(text, dtype, transpose_weights, false, n);
  return text;
}

std::string wgmma_outer_instruction(DType dtype, std::int32_t n) {
  std::string text;
  append_instruction(text, dtype, true, true, n);
  return text;
}

}  // namespace varmoe::emit
