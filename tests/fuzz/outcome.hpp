#pragma once

#include <algorithm>
#include <string>

namespace varmoe::fuzz {

/// How far an input got: what a mutation fuzzer keeps.
struct Outcome {
  const char* broken = nullptr;  ///< the promise that was not kept
  bool accepted = false;
};

/// Fit for a log line, whatever the input was.
inline bool presentable(const std::string& message) {
  constexpr std::size_t kLongestMessage = 2000;
  return !message.empty() && message.size() <= kLongestMessage &&
         std::all_of(message.begin(), message.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0x20; });
}

}  // namespace varmoe::fuzz
