#include "model/token_bucket.hpp"

#include <algorithm>
#include <bit>

namespace varmoe::model {

std::int64_t bucket_of(std::int64_t tokens) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 62;
  if (tokens <= 1) return 1;
  if (tokens > kLargest) return kLargest;
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(tokens)));
}

std::vector<std::int64_t> buckets_between(std::int64_t min_tokens, std::int64_t max_tokens) {
  std::vector<std::int64_t> buckets;
  if (min_tokens > max_tokens) return buckets;
  const std::int64_t last = bucket_of(max_tokens);
  for (std::int64_t bucket = bucket_of(min_tokens);; bucket *= 2) {
    buckets.push_back(bucket);
    if (bucket >= last) return buckets;
  }
}

std::int64_t choose_bucket(std::span<const std::int64_t> prepared, std::int64_t tokens) {
  if (prepared.empty()) return -1;
  const auto it = std::lower_bound(prepared.begin(), prepared.end(), tokens);
  return it != prepared.end() ? *it : prepared.back();
}

}  // namespace varmoe::model
