#pragma once

#include <string>

#include "base/kernel_artifact.hpp"
#include "emit/emitter.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// VARMOE_DUMP_DIR: writes <entry>.cu (with its headers below include/), <entry>.cubin or .ptx, and
/// <entry>.txt with options, resource use and compiler log. Makes the folder; replaces what is there.
Status dump_kernel(const std::string& folder, const emit::EmittedKernel& emitted, const KernelBinary& binary);

}  // namespace varmoe::engine
