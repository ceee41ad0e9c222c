#pragma once

#include <atomic>
#include <utility>

#include "c_api/convert.hpp"
#include "c_api/handles.hpp"
#include "c_api/last_error.hpp"
#include "c_api/structs.hpp"

namespace varmoe::c_api {

/// The prepare of a layer, router or block aligner: options and report may be null.
template <class Prepared>
int prepare(Prepared& object, const varmoe_prepare_options* options, varmoe_report** report) noexcept {
  return guarded([&] {
    varmoe_prepare_options given = default_prepare_options();
    if (options) {
      auto read = read_struct(options, "varmoe_prepare_options", given);
      if (!read) return fail(read.error());
      given = *read;
    }
    auto converted = to_cpp(given);
    if (!converted) return fail(converted.error());
    std::atomic<bool> cancel{false};
    converted->cancel = &cancel;
    if (given.progress)
      converted->progress = [&](std::size_t done, std::size_t total) {
        if (given.progress(given.progress_user, done, total) != 0)
          cancel.store(true, std::memory_order_relaxed);
      };
    auto prepared = object.prepare(*converted);
    if (!prepared) return fail(prepared.error());
    if (report) *report = new varmoe_report{*std::move(prepared)};
    return int{VARMOE_OK};
  });
}

}  // namespace varmoe::c_api
