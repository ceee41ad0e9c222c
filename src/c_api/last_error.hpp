#pragma once

#include <exception>
#include <new>
#include <string_view>

#include "varmoe/error.hpp"

namespace varmoe::c_api {

/// Keeps the sentence of a failure for varmoe_last_error() of this thread. Returns the code as a number.
int fail(ErrorCode code, std::string_view message) noexcept;
int fail(const Error& error) noexcept;
/// "<what> is null".
int fail_null(const char* what) noexcept;

/// Runs `f`, which returns a code; what it throws becomes one.
template <class F>
int guarded(F&& f) noexcept try {
  return f();
} catch (const std::bad_alloc&) {
  return fail(ErrorCode::out_of_memory, "out of memory");
} catch (const std::exception& e) {
  return fail(ErrorCode::internal, e.what());
} catch (...) {
  return fail(ErrorCode::internal, "unknown exception");
}

}  // namespace varmoe::c_api
