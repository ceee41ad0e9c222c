#include "cuda/module.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include "cuda/fake_gpu.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::LoadFailure;
using cuda::Module;

TEST_CASE("a module is loaded eagerly, with its attributes and shared memory allowed") {
  const auto device = fake_device();
  {
    LoadFailure why = LoadFailure::other;
    const auto module = Module::load(device, fake_binary(), 100'000, &why);
    REQUIRE(module.ok());
    CHECK(why == LoadFailure::none);
    CHECK(module->function() != nullptr);
    CHECK(module->attributes().registers == 40);
    CHECK(module->attributes().local_bytes == 16);
    CHECK(module->attributes().static_smem == 256);
    CHECK(module->attributes().max_threads == 512);
    CHECK(module->image_bytes() == fake_binary().image.size());
    CHECK(fake_cuda::calls("cuFuncLoad") == 1);
    CHECK(fake_cuda::calls("cuFuncSetAttribute") == 1);
    CHECK(fake_cuda::live_libraries() == 1);
    CHECK(fake_cuda::context_depth() == 0);
    const auto blocks = module->blocks_per_sm(512, 100'000);
    REQUIRE(blocks.ok());
    CHECK(*blocks == 2);
    CHECK(*module->blocks_per_sm(1024, 0) == 0);  // more threads than it was compiled for
  }
  CHECK(fake_cuda::live_libraries() == 0);
}

TEST_CASE("moving a module leaves one owner") {
  const auto device = fake_device();
  auto first = Module::load(device, fake_binary(), 0);
  auto second = Module::load(device, fake_binary("other"), 0);
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  void* const function = second->function();
  *first = std::move(*second);
  CHECK(first->function() == function);
  CHECK(second->function() == nullptr);
  CHECK(fake_cuda::live_libraries() == 1);
}

TEST_CASE("fault 29: an invalid image never reaches the driver and asks for a rebuild") {
  const auto device = fake_device();
  const auto whole = fake_binary();
  for (std::size_t n = 0; n < whole.image.size(); ++n) {
    auto cut = whole;
    cut.image.resize(n);
    LoadFailure why = LoadFailure::none;
    const auto module = Module::load(device, cut, 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::damaged);
    CHECK(module.error().code() == ErrorCode::device_error);
  }
  CHECK(fake_cuda::calls("cuLibraryLoadData") == 0);
}

TEST_CASE("fault 29: an image that the driver refuses as invalid asks for a rebuild") {
  const auto device = fake_device();
  for (const int result : {CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_SOURCE}) {
    fake_cuda::fail("cuLibraryLoadData", result);
    LoadFailure why = LoadFailure::none;
    const auto module = Module::load(device, fake_binary(), 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::damaged);
    CHECK(module.error().code() == ErrorCode::device_error);
    CHECK(contains(module.error().message(), "kernel kernel (sm_90)"));
  }
  CHECK(Module::load(device, fake_binary(), 0).ok());
}

TEST_CASE("fault 29: an image without the entry asks for a rebuild") {
  const auto device = fake_device();
  auto binary = fake_binary();
  binary.entry_name = "another";
  LoadFailure why = LoadFailure::none;
  const auto module = Module::load(device, binary, 0, &why);
  REQUIRE(!module.ok());
  CHECK(why == LoadFailure::damaged);
  CHECK(contains(module.error().message(), "no kernel of this name"));
  CHECK(fake_cuda::live_libraries() == 0);
}

TEST_CASE("fault 29: no binary for this GPU") {
  const auto device = fake_device();
  for (const int arch : {80, 100, 120}) {
    LoadFailure why = LoadFailure::none;
    const auto module = Module::load(device, fake_binary("kernel", arch), 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::wrong_device);
    CHECK(module.error().code() == ErrorCode::unsupported);
    CHECK(contains(module.error().message(), "sm_" + std::to_string(arch)));
    CHECK(contains(module.error().message(), "Fake H200 (compute capability 9.0)"));
  }
  SUBCASE("of the right architecture, from a newer compiler: the driver is too old") {
    fake_cuda::set_version(12020);
    const auto old_device = cuda::Device::open(load_fake_driver(), 0);
    REQUIRE(old_device.ok());
    fake_cuda::fail("cuLibraryLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU);
    LoadFailure why = LoadFailure::none;
    const auto module = Module::load(*old_device, fake_binary("kernel", 90, {12, 8, 1}), 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::too_new);
    CHECK(module.error().code() == ErrorCode::driver_too_old);
  }
  SUBCASE("of the right architecture, from an older compiler: damaged") {
    fake_cuda::fail("cuLibraryLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU);
    LoadFailure why = LoadFailure::none;
    REQUIRE(!Module::load(device, fake_binary("kernel", 90, {12, 8, 1}), 0, &why).ok());
    CHECK(why == LoadFailure::damaged);
  }
}

TEST_CASE("fault 29: too new for the driver is driver_too_old, with both versions") {
  fake_cuda::reset();
  fake_cuda::set_version(12040);
  const auto device = cuda::Device::open(load_fake_driver(), 0);
  REQUIRE(device.ok());
  LoadFailure why = LoadFailure::none;
  SUBCASE("machine code of the next major version") {
    const auto module = Module::load(*device, fake_binary("kernel", 90, {13, 0, 88}), 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::too_new);
    CHECK(module.error().code() == ErrorCode::driver_too_old);
    CHECK(contains(module.error().message(), "NVRTC 13.0.88"));
    CHECK(contains(module.error().message(), "CUDA 12.4"));
  }
  SUBCASE("machine code of a newer minor version loads") {
    CHECK(Module::load(*device, fake_binary("kernel", 90, {12, 9, 86}), 0, &why).ok());
    CHECK(why == LoadFailure::none);
  }
  SUBCASE("PTX of a newer version") {
    const auto module = Module::load(*device, fake_ptx("9.0", 90, {13, 0, 88}), 0, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::too_new);
    CHECK(module.error().code() == ErrorCode::driver_too_old);
    CHECK(contains(module.error().message(), "Unsupported .version"));  // the driver's own log
  }
}

TEST_CASE("PTX of an older architecture loads, without its terminating zero too") {
  const auto device = fake_device();
  CHECK(Module::load(device, fake_ptx("8.0", 80, {12, 4, 1}), 0).ok());
  LoadFailure why = LoadFailure::none;
  REQUIRE(!Module::load(device, fake_ptx("8.0", 100, {12, 4, 1}), 0, &why).ok());
  CHECK(why == LoadFailure::wrong_device);
}

TEST_CASE("fault 29: out of memory at any step of a load keeps the image and leaves nothing behind") {
  const auto device = fake_device();
  for (const char* call : {"cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction", "cuFuncLoad",
                           "cuFuncGetAttribute", "cuFuncSetAttribute"}) {
    fake_cuda::fail(call, CUDA_ERROR_OUT_OF_MEMORY);
    LoadFailure why = LoadFailure::none;
    const auto module = Module::load(device, fake_binary(), 1000, &why);
    REQUIRE(!module.ok());
    CHECK(why == LoadFailure::out_of_memory);
    CHECK(module.error().code() == ErrorCode::out_of_memory);
    CHECK(contains(module.error().message(), call));
    CHECK(fake_cuda::live_libraries() == 0);
    CHECK(fake_cuda::context_depth() == 0);
  }
}

TEST_CASE("a load that fails at any call leaves nothing behind") {
  const auto device = fake_device();
  int failures = 0;
  for (int n = 0;; ++n) {
    fake_cuda::fail_any(CUDA_ERROR_UNKNOWN, n);
    const auto module = Module::load(device, fake_binary(), 1000);
    CHECK(fake_cuda::live_libraries() == (module.ok() ? 1 : 0));
    const bool happened = fake_cuda::failed_any();
    fake_cuda::fail_any(CUDA_SUCCESS, 0);  // unloading is not to fail
    if (!happened) break;
    failures += module.ok() ? 0 : 1;
  }
  CHECK(failures >= 8);
  CHECK(fake_cuda::live_libraries() == 0);
}

TEST_CASE("fault 24: more shared memory than the device has is refused with the numbers") {
  const auto device = fake_device();
  const auto module = Module::load(device, fake_binary(), 232'448);
  REQUIRE(!module.ok());
  CHECK(module.error().code() == ErrorCode::invalid_config);
  CHECK(contains(module.error().message(), "232704 bytes of shared memory (256 static + 232448 dynamic)"));
  CHECK(contains(module.error().message(), "232448 a block"));
  CHECK(Module::load(device, fake_binary(), 232'448 - 256).ok());
}

TEST_CASE("without cuFuncLoad the kernel is resident all the same") {
  fake_cuda::reset();
  fake_cuda::set_version(12000);
  const auto device = cuda::Device::open(load_fake_driver(), 0);
  REQUIRE(device.ok());
  const auto module = Module::load(*device, fake_binary("kernel", 90, {12, 4, 1}), 0);
  REQUIRE(module.ok());
  CHECK(fake_cuda::calls("cuFuncLoad") == 0);
  CHECK(fake_cuda::calls("cuFuncGetAttribute") > 0);
}
