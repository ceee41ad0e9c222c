#pragma once

#include <string_view>

#include "tuningdb/hint.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tuningdb {

/// Reads one of the files that vLLM and SGLang keep of tuned MoE kernels, one per layer shape and board:
/// "E=8,N=14336,device_name=NVIDIA_H200.json", from token counts to block sizes. The file's name says what
/// its contents do not: E experts of N columns (a tensor-parallel rank's share), on which board. Files of
/// quantised kernels (with a dtype in their name) and names of another form are refused: invalid_argument.
/// `path` may have folders before the name.
Result<HintImport> import_vllm_config(std::string_view text, std::string_view path);

}  // namespace varmoe::tuningdb
