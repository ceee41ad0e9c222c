#pragma once

#include <cstdint>
#include <memory>

#include "varmoe/error.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_spec.hpp"

namespace varmoe::cpu {

/// The router on host pointers: what the kernel computes, in fp32, by the same rules. Thread-safe; allocates
/// nothing after create.
class CpuRouter {
 public:
  /// `threads` ≤ 0: one per core.
  static Result<std::unique_ptr<CpuRouter>> create(const RouterSpec& spec, int threads);
  ~CpuRouter();
  CpuRouter(const CpuRouter&) = delete;
  CpuRouter& operator=(const CpuRouter&) = delete;

  /// The arguments are valid (engine/routing.cpp checks them).
  void route(const RouteArgs& args) noexcept;

 private:
  struct Impl;
  explicit CpuRouter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// moe_align_block_size on host pointers, on the calling thread. The arguments are valid, sorted_size is set.
void align_rows(const AlignSpec& spec, const AlignArgs& args) noexcept;

}  // namespace varmoe::cpu
