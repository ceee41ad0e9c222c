#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "base/kernel_artifact.hpp"

namespace varmoe::compile {

/// The resources of one entry, read from a cubin's ELF sections (.nv.info: REGCOUNT and FRAME_SIZE,
/// .nv.shared.<entry>). Spills are not recorded there. Bounds-checked: nothing comes of a damaged image, or
/// one without that entry.
std::optional<ResourceUsage> cubin_resources(std::span<const std::byte> image, std::string_view entry_name);

}  // namespace varmoe::compile
