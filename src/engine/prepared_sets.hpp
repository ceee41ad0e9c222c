#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/stream.hpp"
#include "engine/engine_impl.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "model/token_bucket.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// The kernels of a layer, a layer that learns, or building blocks, by token bucket. Calls find theirs
/// without a lock; a bucket that nobody prepared is made at its first use. A set that was published stays:
/// captured graphs and running calls may use it.
template <class Set>
class PreparedSets {
 public:
  /// For a call of so many tokens: null where it is its bucket's first use.
  const Set* serving(std::int64_t tokens) const noexcept {
    const Published* published = published_.load(std::memory_order_acquire);
    if (!published) return nullptr;
    return published->by_prepare ? published->nearest(tokens) : published->exact(model::bucket_of(tokens));
  }

  /// Before a prepare: what failed at first use is tried again.
  void forget_failures() {
    std::lock_guard lock(first_use_mutex_);
    failed_.clear();
  }

  /// Adds sets by bucket. `by_prepare`: a prepare made them, which says which buckets to serve from: calls
  /// compile no more. One for which `same(old, new)` holds leaves its bucket as it is.
  template <class Same>
  void publish(std::vector<std::pair<std::int64_t, Set>> sets, bool by_prepare, const Same& same) {
    std::lock_guard lock(publish_mutex_);
    const Published* old = published_.load(std::memory_order_relaxed);
    std::map<std::int64_t, const Set*> all;
    if (old)
      for (std::size_t i = 0; i < old->buckets.size(); ++i) all.emplace(old->buckets[i], old->sets[i]);
    by_prepare = (by_prepare && !sets.empty()) || (old && old->by_prepare);
    bool changed = false;
    for (auto& [bucket, set] : sets) {
      if (const auto found = all.find(bucket); found != all.end() && same(*found->second, set)) continue;
      sets_.push_back(std::move(set));
      all.insert_or_assign(bucket, &sets_.back());
      changed = true;
    }
    if (!changed && (!old || old->by_prepare == by_prepare)) return;
    auto next = std::make_unique<Published>();
    next->by_prepare = by_prepare;
    for (const auto& [bucket, set] : all) {
      next->buckets.push_back(bucket);
      next->sets.push_back(set);
    }
    history_.push_back(std::move(next));
    published_.store(history_.back().get(), std::memory_order_release);
  }

  /// For a call that none is meant for: `make(bucket)` → Result<std::vector<KernelReport>> prepares and
  /// publishes its bucket, with one log line that begins with `done`; while `stream` is captured, any that is
  /// there serves. `name`: of the layer, for messages.
  template <class Make>
  Result<const Set*> first_use(const Engine::Impl& engine, std::int64_t tokens, void* stream,
                               const std::string& done, const std::string& name, const Make& make) {
    auto capture = cuda::capture_status(engine.device->driver(), stream);
    if (!capture) return std::move(capture).error();
    const std::int64_t bucket = model::bucket_of(tokens);
    if (*capture != cuda::CaptureStatus::none) {
      const Published* published = published_.load(std::memory_order_acquire);
      if (const Set* any = published ? published->nearest(tokens) : nullptr) return any;
      return Error(
          ErrorCode::not_prepared,
          fmt::format("no kernels are prepared for {} and none may be made while a stream is captured: call "
                      "prepare before capturing (token bucket {})",
                      name, bucket));
    }
    std::lock_guard lock(first_use_mutex_);
    // Another thread may have been first.
    if (const Set* found = exact(bucket)) return found;
    if (const auto failed = failed_.find(bucket); failed != failed_.end()) return failed->second;
    const auto start = std::chrono::steady_clock::now();
    Result<std::vector<KernelReport>> kernels = make(bucket);
    if (!kernels) {
      failed_.insert_or_assign(bucket, kernels.error());
      engine.log.error("first use of {} at {} tokens: {}", name, bucket, kernels.error().message());
      return std::move(kernels).error();
    }
    const auto compiled =
        std::count_if(kernels->begin(), kernels->end(), [](const KernelReport& k) { return !k.hit; });
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    engine.log.warn(
        "{} for {} tokens at first use: {} kernels, {} compiled, {:.0f} ms; call prepare to do this "
        "beforehand",
        done, bucket, kernels->size(), compiled, ms);
    if (const Set* found = exact(bucket)) return found;
    return Error(ErrorCode::internal, "a bucket was prepared and is not there");
  }

 private:
  /// Immutable; calls read it through one atomic pointer.
  struct Published {
    bool by_prepare = false;
    std::vector<std::int64_t> buckets;  ///< ascending
    std::vector<const Set*> sets;

    /// Of the smallest bucket ≥ tokens, else of the largest; null when there is none.
    const Set* nearest(std::int64_t tokens) const noexcept {
      if (buckets.empty()) return nullptr;
      const auto at = std::lower_bound(buckets.begin(), buckets.end(), tokens);
      return at == buckets.end() ? sets.back() : sets[static_cast<std::size_t>(at - buckets.begin())];
    }
    const Set* exact(std::int64_t bucket) const noexcept {
      const auto at = std::lower_bound(buckets.begin(), buckets.end(), bucket);
      return at == buckets.end() || *at != bucket ? nullptr
                                                  : sets[static_cast<std::size_t>(at - buckets.begin())];
    }
  };

  const Set* exact(std::int64_t bucket) const noexcept {
    const Published* published = published_.load(std::memory_order_acquire);
    return published ? published->exact(bucket) : nullptr;
  }

  std::atomic<const Published*> published_{nullptr};

  std::mutex publish_mutex_;
  /// What was ever published. One small entry for each prepare that brought something new.
  std::vector<std::unique_ptr<const Published>> history_;
  std::deque<Set> sets_;

  std::mutex first_use_mutex_;
  std::map<std::int64_t, Error> failed_;  ///< the next call is told at once
};

/// The kernel sets of a build's buckets whose kernels are all resident; `place(set, part)` → where in the set
/// the kernel of a part belongs. `problem` gets the first thing that is wrong with another.
template <class Set, class Build, class Place>
std::vector<std::pair<std::int64_t, Set>> resident_sets(const Engine::Impl& engine, const Build& build,
                                                        const Place& place, std::optional<Error>& problem) {
  std::vector<std::pair<std::int64_t, Set>> sets;
  for (const auto& bucket : build.buckets) {
    Set set = bucket.kernels;
    bool ready = true;
    for (const auto& part : bucket.parts) {
      const BuiltKernel& kernel = build.built[part.kernel];
      const ResidentKernel* resident = kernel.error ? nullptr : engine.kernels->find(kernel.unit->key);
      if (!resident) {
        ready = false;
        if (!problem)
          problem = kernel.error ? *kernel.error
                                 : Error(ErrorCode::internal, fmt::format("{} is built and not resident",
                                                                          kernel.unit->emitted.entry_name));
        continue;
      }
      place(set, part) = resident->launch;
    }
    if (ready) sets.emplace_back(bucket.bucket, std::move(set));
  }
  return sets;
}

}  // namespace varmoe::engine
