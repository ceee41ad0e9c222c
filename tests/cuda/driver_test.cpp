#include "cuda/driver.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include "cuda/device.hpp"
#include "cuda/fake_gpu.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::Driver;

TEST_CASE("a driver is loaded, started and asked") {
  fake_cuda::reset();
  fake_cuda::set_devices({{}, {}});
  const auto driver = load_fake_driver();
  CHECK(driver->version() == 13000);
  CHECK(driver->device_count() == 2);
  CHECK(driver->usable());
  CHECK(cuda::version_text(12040) == "12.4");
  CHECK(cuda::version_text(13000) == "13.0");
}

TEST_CASE("fault 30: no driver library is no_device, with its name") {
  const auto driver = Driver::load("libvarmoe-no-such-driver.so.1");
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::no_device);
  CHECK(contains(driver.error().message(), "libvarmoe-no-such-driver.so.1"));
}

TEST_CASE("fault 30: a library that is no driver is no_device") {
  const auto driver = Driver::load("libm.so.6");
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::no_device);
}

TEST_CASE("fault 30: a driver without a GPU is no_device") {
  fake_cuda::reset();
  fake_cuda::set_devices({});
  const auto driver = Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::no_device);
  CHECK(contains(driver.error().message(), "CUDA_VISIBLE_DEVICES"));
  CHECK(contains(driver.error().message(), "CUDA_ERROR_NO_DEVICE"));
}

TEST_CASE("fault 29: an old driver is driver_too_old, with both versions") {
  fake_cuda::reset();
  fake_cuda::set_version(11080);
  const auto driver = Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::driver_too_old);
  CHECK(contains(driver.error().message(), "11.8"));
  CHECK(contains(driver.error().message(), "12.0"));
}

TEST_CASE("a driver that lacks a function is refused by its name; cuFuncLoad may be missing") {
  fake_cuda::reset();
  fake_cuda::hide("cuLibraryLoadData");
  const auto lacking = Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE(!lacking.ok());
  CHECK(lacking.error().code() == ErrorCode::device_error);
  CHECK(contains(lacking.error().message(), "lacks cuLibraryLoadData"));
  fake_cuda::reset();
  fake_cuda::hide("cuFuncLoad");
  CHECK(Driver::load(VARMOE_FAKE_CUDA).ok());
  fake_cuda::reset();
  fake_cuda::set_version(12000);
  CHECK(Driver::load(VARMOE_FAKE_CUDA).ok());
}

TEST_CASE("a driver that does not start is an error with the driver's words") {
  fake_cuda::reset();
  fake_cuda::fail("cuInit", CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
  auto driver = Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::driver_too_old);
  CHECK(contains(driver.error().message(), "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"));
  fake_cuda::fail("cuInit", CUDA_ERROR_UNKNOWN);
  driver = Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE(!driver.ok());
  CHECK(driver.error().code() == ErrorCode::device_error);
  CHECK(contains(driver.error().message(), "cuInit failed: CUDA_ERROR_UNKNOWN (999)"));
  CHECK(Driver::load(VARMOE_FAKE_CUDA).ok());
}

TEST_CASE("results map to error codes") {
  fake_cuda::reset();
  const auto driver = load_fake_driver();
  CHECK(driver->check(0, "cuX").ok());
  const auto code = [&](CUresult result) {
    return driver->check(static_cast<int>(result), "cuX").error().code();
  };
  CHECK(code(CUDA_ERROR_OUT_OF_MEMORY) == ErrorCode::out_of_memory);
  CHECK(code(CUDA_ERROR_NO_DEVICE) == ErrorCode::no_device);
  CHECK(code(CUDA_ERROR_INVALID_DEVICE) == ErrorCode::no_device);
  CHECK(code(CUDA_ERROR_UNSUPPORTED_PTX_VERSION) == ErrorCode::driver_too_old);
  CHECK(code(CUDA_ERROR_ILLEGAL_ADDRESS) == ErrorCode::device_error);
  const auto unknown = driver->check(12345, "cuX");
  CHECK(contains(unknown.error().message(), "cuX failed: unknown error (12345)"));
}
