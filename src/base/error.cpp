#include "varmoe/error.hpp"

namespace varmoe {

const char* to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::ok:
      return "ok";
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::invalid_spec:
      return "invalid_spec";
    case ErrorCode::invalid_config:
      return "invalid_config";
    case ErrorCode::invalid_environment:
      return "invalid_environment";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::not_prepared:
      return "not_prepared";
    case ErrorCode::not_bound:
      return "not_bound";
    case ErrorCode::no_device:
      return "no_device";
    case ErrorCode::driver_too_old:
      return "driver_too_old";
    case ErrorCode::no_compiler:
      return "no_compiler";
    case ErrorCode::compile_failed:
      return "compile_failed";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
    case ErrorCode::workspace_too_small:
      return "workspace_too_small";
    case ErrorCode::io_error:
      return "io_error";
    case ErrorCode::device_error:
      return "device_error";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::internal:
      return "internal";
  }
  // A number from outside (the C API takes codes back) need not be an enumerator.
  return "unknown";
}

}  // namespace varmoe
