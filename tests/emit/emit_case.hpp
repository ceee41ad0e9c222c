#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "emit/emitter.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::test {

using emit::EmittedKernel;
using emit::KernelRequest;
using emit::Stage;

/// The stages that every layer has; whole_layer_test.cpp is about the other.
inline constexpr Stage kStages[] = {Stage::sort_single, Stage::sort_count, Stage::sort_scatter, Stage::gather,
                                    Stage::fc1,         Stage::fc2,        Stage::combine};
static_assert(std::size(kStages) + 1 == emit::kStageCount);

inline bool is_gemm(Stage stage) {
  return stage == Stage::fc1 || stage == Stage::fc2;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Three classes, gated.
inline LayerSpec pruned_spec() {
  LayerSpec spec = uniform_spec(1024, 6, 128, 2);
  spec.expert_widths = {256, 128, 512, 256, 512, 128};
  return spec;
}

inline KernelRequest request_of(Stage stage) {
  KernelRequest request;
  request.stage = stage;
  if (!is_gemm(stage)) request.block_threads = 256;
  return request;
}

inline constexpr Schedule kHopperSchedules[] = {Schedule::wgmma, Schedule::wgmma_pingpong};

/// A GEMM of one of Hopper's schedules, of a shape that every layout takes.
inline KernelRequest wgmma_request(Stage stage, Schedule schedule) {
  const bool pingpong = schedule == Schedule::wgmma_pingpong;
  KernelRequest request = request_of(stage);
  request.gemm.schedule = schedule;
  request.gemm.block_n = pingpong ? 128 : 256;
  request.gemm.warps_m = pingpong ? 2 : 1;
  request.gemm.warps_n = pingpong ? 4 : 8;
  return request;
}

inline EmittedKernel must_emit(const LayerSpec& spec, const KernelRequest& request) {
  auto kernel = emit::emit_kernel(spec, request);
  REQUIRE_MESSAGE(kernel.ok(), (kernel.ok() ? "" : kernel.error().message()));
  return *std::move(kernel);
}
inline EmittedKernel must_emit(const LayerSpec& spec, Stage stage) {
  return must_emit(spec, request_of(stage));
}

/// Everything that the compiler and the cache see of a kernel.
inline bool same_kernel(const EmittedKernel& a, const EmittedKernel& b) {
  const auto same_header = [](const SourceHeader& x, const SourceHeader& y) {
    return x.name == y.name && x.text == y.text;
  };
  return a.stage == b.stage && a.entry_name == b.entry_name && a.text == b.text && a.options == b.options &&
         std::equal(a.headers.begin(), a.headers.end(), b.headers.begin(), b.headers.end(), same_header) &&
         a.block_threads == b.block_threads && a.dynamic_smem_bytes == b.dynamic_smem_bytes &&
         a.ctas_per_sm == b.ctas_per_sm;
}

}  // namespace varmoe::test
