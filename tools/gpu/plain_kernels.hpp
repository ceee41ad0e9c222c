#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "compile/compiler.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/module.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// The kernels of one text, by their places in a list of entries: what the tuner's references are made of.
/// Blocks have kThreads threads.
class PlainKernels {
 public:
  static constexpr std::int64_t kThreads = 256, kWarps = kThreads / 32;
  /// Of kernels that walk over memory.
  static constexpr std::int64_t kStreamBlocks = 2048;

  /// Compiles kReferenceCommon and `text` for `arch`; nothing is cached. `entries`: their names in the text.
  static Result<PlainKernels> create(std::shared_ptr<cuda::Device> device, compile::Compiler& compiler,
                                     const std::string& arch, const char* text,
                                     std::span<const char* const> entries);

  /// Enqueues one; nothing where it has no blocks.
  template <class Params>
  Status launch(std::size_t entry, std::int64_t blocks_x, std::int64_t blocks_y, const Params& params,
                void* stream) const {
    if (blocks_x <= 0 || blocks_y <= 0) return {};
    Params copy = params;
    void* arguments[] = {&copy};
    return cuda::launch(device_->driver(), modules_[entry].function(),
                        {static_cast<std::uint32_t>(blocks_x), static_cast<std::uint32_t>(blocks_y)},
                        {static_cast<std::uint32_t>(kThreads)}, 0, stream, arguments);
  }
  /// Blocks for so many outputs, of which each has a warp, or a thread.
  static std::int64_t blocks_of(std::int64_t outputs, bool warp_each) noexcept {
    const std::int64_t per_block = warp_each ? kWarps : kThreads;
    return (outputs + per_block - 1) / per_block;
  }

 private:
  explicit PlainKernels(std::shared_ptr<cuda::Device> device) : device_(std::move(device)) {}
  std::shared_ptr<cuda::Device> device_;
  std::vector<cuda::Module> modules_;
};

}  // namespace varmoe::tools
