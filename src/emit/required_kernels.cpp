#include "emit/emitter.hpp"
#include "emit/sort_shape.hpp"

namespace varmoe::emit {

std::vector<KernelRequest> required_kernels(const LayerSpec& spec, const LayerConfig& config,
                                            std::int64_t bucket, bool runtime_width) {
  std::vector<KernelRequest> requests;
  const auto add = [&](Stage stage, std::int32_t block_threads) {
    KernelRequest r;
    r.stage = stage;
    r.block_threads = block_threads;
    requests.push_back(r);
  };
  const auto add_gemm = [&](Stage stage, const GemmConfig& gemm) {
    KernelRequest r;
    r.stage = stage;
    r.gemm = gemm;
    if (stage == Stage::fc2) r.gemm.gather = GatherMode::fused;  // not fc2's; one spelling for one kernel
    r.runtime_width = runtime_width;
    requests.push_back(r);
  };

  const std::int32_t sort_threads = sort_block_threads(spec.all_experts(), config.sort.block_threads);
  // Any T may run on any bucket's kernels, small ones on a large bucket's too: the single-block sort is
  // always there.
  add(Stage::sort_single, sort_threads);
  if (bucket * spec.slots_per_token() > config.sort.single_block_rows) {
    add(Stage::sort_count, sort_threads);
    add(Stage::sort_scatter, sort_threads);
  }
  if (config.fc1.gather == GatherMode::copy) add(Stage::gather, config.gather.block_threads);
  add_gemm(Stage::fc1, config.fc1);
  add_gemm(Stage::fc2, config.fc2);
  add(Stage::combine, config.combine.block_threads);
  if (config.one_launch.max_tokens > 0) {
    KernelRequest r;
    r.stage = Stage::whole_layer;
    r.one_launch = config.one_launch;
    requests.push_back(r);
  }
  return requests;
}

}  // namespace varmoe::emit
