#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "emit/emitter.hpp"
#include "fuzz/outcome.hpp"

/// Entry point of the fuzzer of spec → config → kernels' text.
namespace varmoe::fuzz {

/// The bytes as a layer spec and configs: a spec that is not valid is refused for every stage; of a valid one
/// the predicted config's kernels are emitted, all of them, and those of configs of the bytes exactly where
/// the config space has them. Every text is closed and has one spelling. `each` is called with every kernel
/// that was emitted.
Outcome emit_spec(std::span<const std::uint8_t> bytes,
                  const std::function<void(const emit::EmittedKernel&)>& each = {});

}  // namespace varmoe::fuzz
