#pragma once

#include "model/device_profile.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tuner {

/// search_item of a backward pass: the fastest configs of its four products. Steps, each going on with what
/// was right so far:
///
/// 1. The baseline (the cost model's choice), the hints, and the candidates of the four products side by
/// side:
///    in each trial one of each, judged by its own time; successive halving, quick first. Products that
///    gather rows on the way and those that read copies race apart (the copies' own time is no product's). Of
///    a trial that fails, each product that was never right gets a second chance beside three that work.
/// 2. With either way of reading, and with both mixed, the best of each together; and the others of the best
/// few
///    of each product, one at a time beside the best of the others. By the time of the whole backward.
/// 3. The fastest, with each product replaced that was better in step 2 by more than can be measured.
/// 4. The fastest few and the baseline again, interleaved; when one fails there, the others once more.
///
/// Equal ones are taken in a fixed order: the baseline, then by the products' places among hints and
/// candidates: dh, dx, fc1_gradient, fc2_gradient. Errors as of search_item.
Result<SearchOutcome> search_backward(Measurer& measurer, const TuningItem& item,
                                      const model::DeviceProfile& device, const SearchOptions& options);

}  // namespace varmoe::tuner
