#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cpu {

/// The layer on the CPU: what a GPU engine computes, on host pointers, with the same conventions and rounding
/// points.
///
/// Deterministic: a token's output bits depend on the layer, on the token and on the machine's instruction
/// set, and neither on the number of threads nor on the token's neighbours nor on how tokens are split into
/// chunks.
///
/// Thread-safe: concurrent forwards (distinct workspaces) take turns at the threads. `bind` must not run
/// concurrently with `forward`. After fork() a child makes its own layers.
class CpuLayer {
 public:
  /// `threads` ≤ 0: one per core. The calling thread of `forward` is one of them; the others are started here
  /// and sleep between forwards. `instruction_set`: one of instruction_sets(), empty for the best; another is
  /// `unsupported`.
  static Result<std::unique_ptr<CpuLayer>> create(const LayerSpec& spec, int threads = 0,
                                                  std::string_view instruction_set = {});
  ~CpuLayer();
  CpuLayer(const CpuLayer&) = delete;
  CpuLayer& operator=(const CpuLayer&) = delete;

  const LayerSpec& spec() const noexcept;
  int threads() const noexcept;
  /// The one in use.
  const char* instruction_set() const noexcept;

  /// Records where the weights lie (host pointers). May be repeated.
  Status bind(const Weights& weights);

  /// Bytes that process `tokens` tokens at once; monotonic in `tokens`.
  std::size_t workspace_bytes(std::int64_t tokens) const noexcept;

  /// The up-projection alone (Layer::up), before it returns. `args` are sound but for the size of the
  /// workspace, which must hold all tokens at once.
  Status up(const UpArgs& args) noexcept;

  /// Computes the layer before it returns; `stream` is ignored. With a workspace, nothing is allocated: one
  /// smaller than workspace_bytes(tokens) makes it work in chunks, one smaller than workspace_bytes(1) is
  /// `workspace_too_small`. Without (null), a bounded one is allocated for the call.
  Status forward(const ForwardArgs& args) noexcept;

 private:
  struct Impl;
  explicit CpuLayer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What the loops can run with here, best first: of "avx512", "avx2" and "generic".
std::vector<std::string> instruction_sets();

}  // namespace varmoe::cpu
