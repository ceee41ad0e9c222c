#pragma once

#include <string>

#include "compile/compiler.hpp"

namespace varmoe::test {

/// A small kernel named `entry` for `arch`.
inline compile::CompileRequest small_request(const std::string& entry, const std::string& arch = "sm_90a") {
  compile::CompileRequest request;
  request.text = "extern \"C\" __global__ void __launch_bounds__(128) " + entry +
                 "(float* p) { p[blockIdx.x * 128 + threadIdx.x] += 1.0f; }\n";
  request.options = {"--std=c++17"};
  request.arch = arch;
  request.entry_name = entry;
  return request;
}

}  // namespace varmoe::test
