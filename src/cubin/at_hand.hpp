#pragma once

#include <concepts>
#include <functional>
#include <optional>
#include <utility>

#include "base/kernel_artifact.hpp"

namespace varmoe::cubin {

/// The answer to "which NVRTC is at hand?", asked only when it matters: when the user's own cache holds an
/// entry for the key, whose build is then compared. nullopt: none is installed, so entries are taken as they
/// are.
///
/// Learning the version by loading NVRTC would defeat a full cache, so the callable is expected to answer
/// from CompilerStamps (compiler_stamps.hpp) first and to load NVRTC only where the stamps know nothing, and
/// to remember its answer. It may be called from any thread, often.
class AtHand {
 public:
  AtHand() = default;  ///< none
  AtHand(std::nullopt_t) {}
  AtHand(CompilerVersion version) : AtHand(std::optional<CompilerVersion>(version)) {}
  AtHand(std::optional<CompilerVersion> version) {
    if (version) ask_ = [version] { return version; };
  }
  template <class F>
  requires(std::invocable<F&> && !std::same_as<std::remove_cvref_t<F>, AtHand>) AtHand(F&& ask)
      : ask_(std::forward<F>(ask)) {}

  std::optional<CompilerVersion> operator()() const {
    if (!ask_) return std::nullopt;
    return ask_();
  }

 private:
  std::function<std::optional<CompilerVersion>()> ask_;
};

}  // namespace varmoe::cubin
