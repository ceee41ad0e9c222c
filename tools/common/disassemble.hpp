#pragma once

#include <string>

#include "varmoe/error.hpp"

namespace varmoe::tools {

/// The disassembler at hand: nvdisasm or cuobjdump of PATH, CUDA_HOME or /usr/local/cuda. Empty: none.
std::string find_disassembler();

/// A cubin → its machine code as text, by that disassembler.
Result<std::string> disassemble(const std::string& cubin);

}  // namespace varmoe::tools
