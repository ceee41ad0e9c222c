#pragma once

#include <cstdint>

#include "varmoe/error.hpp"

namespace varmoe::engine {

/// An engine is for the process that made it: CUDA contexts and threads do not survive fork. Every call on an
/// engine or layer in a child forked after create returns `unsupported` with a sentence that says so;
/// destroying them there leaks what belongs to the parent and is otherwise harmless.
class ForkGuard {
 public:
  /// Remembers this process.
  ForkGuard();
  /// False in a child. One relaxed load; no system call.
  bool same_process() const noexcept;
  Error error() const;

 private:
  std::uint32_t generation_;
  long pid_;
};

}  // namespace varmoe::engine
