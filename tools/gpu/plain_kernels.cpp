#include "tools/gpu/plain_kernels.hpp"

#include <utility>

#include "tools/gpu/reference_text.hpp"

namespace varmoe::tools {

Result<PlainKernels> PlainKernels::create(std::shared_ptr<cuda::Device> device, compile::Compiler& compiler,
                                          const std::string& arch, const char* text,
                                          std::span<const char* const> entries) {
  auto target = compile::target_arch(compiler.architectures(), arch);
  if (!target) return target.error();
  compile::CompileRequest request;
  request.text = std::string(kReferenceCommon) + text;
  request.options = {"--std=c++17"};
  request.arch = *target;
  request.entry_name = entries.front();
  auto binary = compiler.compile(request);
  if (!binary) return binary.error();
  PlainKernels kernels(std::move(device));
  for (const char* entry : entries) {
    binary->entry_name = entry;
    auto module = cuda::Module::load(kernels.device_, *binary, 0);
    if (!module) return module.error();
    kernels.modules_.push_back(*std::move(module));
  }
  return kernels;
}

}  // namespace varmoe::tools
