#include "c_api/last_error.hpp"

#include <fmt/format.h>

#include <string>

#include "varmoe/varmoe.h"
#include "varmoe/version.hpp"

namespace varmoe::c_api {
namespace {

/// What is shown when not even the sentence could be stored; static storage.
constexpr const char* kNoMemory = "out of memory while the error message was stored";

struct LastError {
  std::string text;
  bool lost = false;
};

LastError& last_error() noexcept {
  thread_local LastError error;
  return error;
}

}  // namespace

int fail(ErrorCode code, std::string_view message) noexcept {
  LastError& last = last_error();
  try {
    last.text.assign(message);
    last.lost = false;
  } catch (...) {
    last.lost = true;
  }
  return static_cast<int>(code);
}

int fail(const Error& error) noexcept {
  return fail(error.code(), error.message());
}

int fail_null(const char* what) noexcept {
  return guarded([&] { return fail(ErrorCode::invalid_argument, fmt::format("{} is null", what)); });
}

}  // namespace varmoe::c_api

extern "C" {

const char* varmoe_last_error(void) {
  const auto& last = varmoe::c_api::last_error();
  return last.lost ? varmoe::c_api::kNoMemory : last.text.c_str();
}

const char* varmoe_status_name(int status) {
  if (status < VARMOE_OK || status > VARMOE_E_INTERNAL) return "unknown";
  return varmoe::to_string(static_cast<varmoe::ErrorCode>(status));
}

const char* varmoe_version(void) {
  return varmoe::version();
}
}
