#pragma once

#include <string>

#include "varmoe/tuning.hpp"

/// How records are ordered in files, and which of two with one key is kept.
namespace varmoe::tuningdb {

/// "bf16", "fp16", "fp32": what the gradients of a backward pass's key are made of.
const char* gradient_dtype(const TuningKey& key) noexcept;

/// A text that orders keys as files do: by device, then layer, then token bucket, so that a layer's buckets
/// lie side by side. Equal exactly for equal keys.
std::string sort_key(const TuningKey& key);

/// Whether `a` rather than `b` is kept of two records with one key. In this order:
///  1. a verified record beats one that is not: a config that was never checked must not push out one that
///  was;
///  2. the later version of the config space, so that two library versions that save in turn settle on the
///  newer one's;
///  3. the later date: the newer measurement is of the newer kernels. (Epochs do not enter: those of
///  different families
///     cannot be compared, and a record of a raised epoch has the later date anyway);
///  4. the smaller us;
///  5. the text of the record, which decides nothing that matters, but the same way whoever merges.
/// A strict total order on records of different contents: merging in any order, and again, gives the same.
bool better(const TuningRecord& a, const TuningRecord& b);

}  // namespace varmoe::tuningdb
