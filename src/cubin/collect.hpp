#pragma once

#include <cstdint>

#include "base/log.hpp"
#include "cubin/cache.hpp"
#include "cubin/entry_folder.hpp"

namespace varmoe::cubin {

/// One garbage collection of an own folder: evicts entries until at most `max_bytes` (0: no bound) are left,
/// and sweeps what killed processes left behind.
///
/// It may run beside readers (an open file stays readable; a reader who comes too late misses), writers (a
/// file that changed since it was listed is spared; temporaries younger than an hour are) and other
/// collections (one at a time where locks work; elsewhere two remove the same old files). The clock decides
/// only the order of eviction, never whether anything is evicted: while there is room everything stays,
/// whatever the clock says.
///
/// Order: last used more than an hour ago, oldest first; then dated in the future (the clock was set back, so
/// their age is unknown; they are re-dated to now); then used within the hour, oldest first.
GcReport collect_garbage(const EntryFolder& folder, std::uint64_t max_bytes, const Log& log);

}  // namespace varmoe::cubin
