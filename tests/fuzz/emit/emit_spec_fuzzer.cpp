// What checks closed texts is made for doctest, which is part of this program but runs nothing here.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <memory>

#include "compile/compiler.hpp"
#include "fuzz/emit/emit_fuzz.hpp"
#include "fuzz/libfuzzer.hpp"
#include "fuzz/random_bytes.hpp"

namespace varmoe::fuzz {
namespace {

/// Compiles one kernel of every n, VARMOE_FUZZ_COMPILE_EVERY; none without it or without an NVRTC.
class SomeCompiles {
 public:
  SomeCompiles() {
    const char* every = std::getenv("VARMOE_FUZZ_COMPILE_EVERY");
    every_ = every == nullptr ? 0 : std::strtoull(every, nullptr, 10);
    if (every_ == 0) return;
    const auto loaded = compile::load_nvrtc("");
    if (!loaded) {
      std::fprintf(stderr, "nothing is compiled: %s\n", loaded.error().message().c_str());
      return;
    }
    compiler_ = *loaded;
  }
  ~SomeCompiles() {
    if (compiler_ != nullptr) std::fprintf(stderr, "compiled kernels: %llu\n", compiled_);
  }

  void operator()(const emit::EmittedKernel& kernel) {
    if (compiler_ == nullptr || ++seen_ % every_ != 0) return;
    compile::CompileRequest request;
    request.text = kernel.text;
    request.headers = kernel.headers;
    request.options = kernel.options;
    request.arch = "sm_90a";
    request.entry_name = kernel.entry_name;
    const auto binary = compiler_->compile(request);
    ++compiled_;
    if (binary) return;
    std::fprintf(stderr, "a kernel does not compile: %s\n%s\n", binary.error().message().c_str(),
                 kernel.text.c_str());
    std::abort();
  }

 private:
  std::shared_ptr<compile::Compiler> compiler_;
  unsigned long long every_ = 0, seen_ = 0, compiled_ = 0;
};

}  // namespace

Outcome fuzz_one(std::span<const std::uint8_t> bytes) {
  static SomeCompiles some;
  return emit_spec(bytes, [](const emit::EmittedKernel& kernel) { some(kernel); });
}

std::vector<std::string> fuzz_seeds() {
  return random_byte_seeds(200, 160);
}

}  // namespace varmoe::fuzz
