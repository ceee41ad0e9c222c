#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// Token counts that share a configuration.
namespace varmoe::model {

/// 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, …
std::int64_t bucket_of(std::int64_t tokens);
/// Buckets that cover [min_tokens, max_tokens].
std::vector<std::int64_t> buckets_between(std::int64_t min_tokens, std::int64_t max_tokens);
/// The smallest prepared bucket ≥ tokens, else the largest; −1 when none. `prepared` ascends.
std::int64_t choose_bucket(std::span<const std::int64_t> prepared, std::int64_t tokens);

}  // namespace varmoe::model
