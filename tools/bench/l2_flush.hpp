#pragma once

#include <memory>
#include <string>

#include "cuda/memory.hpp"
#include "cuda/module.hpp"
#include "cuda/stream.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// Empties a GPU's L2 by reading a buffer larger than it. A flush by writing would leave lines to be written
/// back inside the timed region.
class L2Flush {
 public:
  /// `arch`: what to compile its kernel for; `nvrtc_lib`: where NVRTC is, as compile::load_nvrtc takes it.
  static Result<L2Flush> create(std::shared_ptr<cuda::Device> device, const std::string& arch,
                                const std::string& nvrtc_lib);
  /// Enqueues the read.
  Status enqueue(const cuda::Stream& stream);

 private:
  L2Flush(std::shared_ptr<cuda::Device> device, cuda::Module module, cuda::DeviceBuffer buffer);
  std::shared_ptr<cuda::Device> device_;
  cuda::Module module_;
  cuda::DeviceBuffer buffer_;
};

}  // namespace varmoe::tools
