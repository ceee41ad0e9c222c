#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/digest.hpp"
#include "base/kernel_artifact.hpp"

namespace varmoe::cubin {

/// Bumped when the meaning of a key changes, so that old and new libraries never read each other's entries as
/// their own.
inline constexpr std::uint64_t kKeySchema = 1;

/// The cubin key: a digest over length-prefixed fields (key schema, emitted text, reachable headers by name
/// and text, canonical options, arch) and nothing else. Not in it: the compiler's version (the entry records
/// it), any path, host name, driver. So a cache may be copied to another machine and stay good.
///
/// - `headers` are a set: their order in the span does not matter.
/// - `options` are in canonical order (the emitter's) and without the arch. Whatever changes the machine code
/// belongs in
///   them: a request with line info has "--generate-line-info" here.
/// - `arch` is "sm_90a", or "compute_90" for PTX.
Digest cubin_key(std::string_view text, std::span<const SourceHeader> headers,
                 std::span<const std::string> options, std::string_view arch);

}  // namespace varmoe::cubin
