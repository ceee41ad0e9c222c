#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuner/candidates.hpp"
#include "tuner/measurer.hpp"
#include "varmoe/error.hpp"
#include "varmoe/tuning.hpp"

/// The search for the best config of one layer and token bucket.
namespace varmoe::tuner {

/// One thing to tune: a pass of a layer on a device at a token bucket. The key is make_tuning_key's or
/// make_backward_tuning_key's, made by the caller, since what a key is belongs to the store of records;
/// `key.token` is the bucket that is measured.
struct TuningItem {
  LayerSpec spec;
  TuningKey key;
};

/// One config measured once.
struct Trial {
  LayerConfig config;
  Effort effort = Effort::quick;
  Measurement measurement;
  std::string failure;  ///< why it may not be chosen (fault_of); empty: it may
  TuningPass pass = TuningPass::forward;
  BackwardConfig products = {};  ///< of a backward pass, in place of `config`
};

struct SearchOptions {
  CandidateLimits candidates;
  /// Configs a request at most, but that the final ones stay together; at least 1.
  std::size_t batch = 32;
  /// Share of a GEMM's configs that stay after a round.
  double keep = 0.25;
  /// Configs of each GEMM that are tried together, and of the layer that are measured at the end.
  std::size_t finalists = 3;
  /// Share of the skewed routing's time in what is compared; the rest is the uniform one's.
  double skew_weight = 0.25;
  /// The baseline stays unless it is beaten by this share of its time.
  double min_improvement = 0;
  /// Configs that differ by less than their spread, and by no more than this share, are equal.
  double max_tie = 0.01;
  /// Configs to try beside the candidates, e.g. of a near record; those outside the config space are passed
  /// over.
  std::vector<LayerConfig> hints;
  std::vector<BackwardConfig> backward_hints;  ///< likewise, for an item whose pass is backward
  std::function<void(const Trial&)> on_trial;  ///< each trial, as soon as its batch is done; may be null
  std::function<bool()> stop;                  ///< asked before each batch: true ends the search; may be null
};

struct SearchOutcome {
  bool found = false;
  /// Where found: key, config, figures, config_space and candidates are set; epochs and provenance are the
  /// caller's.
  TuningRecord record;
  std::size_t tried = 0;   ///< distinct configs
  std::size_t failed = 0;  ///< of these, those that may not be chosen
  std::string failure;     ///< where none was found: why
};

/// Finds the fastest config that is right on uniform and on skewed routing. What is compared is (1 −
/// skew_weight)·us + skew_weight·skewed_us. Steps, each going on with what was right so far:
///
/// 1. The baseline (the cost model's choice), the hints, and the candidates of fc1 and fc2 in pairs,
///    each GEMM judged by its own time: successive halving, quick first. Of a pair that fails each half gets
///    a second chance beside a GEMM that works.
/// 2. The best few of fc1 with each of the best few of fc2, beside baseline and hints, by the layer's time.
/// 3. Block sizes of sort, gather and combine around the fastest.
/// 4. The fastest few and the baseline again, interleaved; when one fails there, the others once more.
///
/// Equal ones (SearchOptions::max_tie) are taken in a fixed order: the baseline, then by fc1's and then
/// fc2's place among hints and candidates, then by the block sizes, smaller ones first. The same
/// measurements give the same outcome.
///
/// A backward pass is searched by search_backward (backward_search.hpp).
///
/// Finding nothing is an outcome. Errors: the measurer's own; cancelled when `stop` said so;
/// invalid_argument for a spec that is not valid or a bucket that is no power of two.
Result<SearchOutcome> search_item(Measurer& measurer, const TuningItem& item,
                                  const model::DeviceProfile& device, const SearchOptions& options);

}  // namespace varmoe::tuner
