#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "base/kernel_artifact.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "support/fake_cubin.hpp"
#include "support/fake_cuda.hpp"

namespace varmoe::test {

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline std::shared_ptr<cuda::Driver> load_fake_driver() {
  auto driver = cuda::Driver::load(VARMOE_FAKE_CUDA);
  REQUIRE_MESSAGE(driver.ok(), (driver.ok() ? "" : driver.error().message()));
  return *driver;
}

/// The fake driver reset, and its device 0.
inline std::shared_ptr<cuda::Device> fake_device() {
  fake_cuda::reset();
  auto device = cuda::Device::open(load_fake_driver(), 0);
  REQUIRE(device.ok());
  fake_cuda::clear_calls();
  return *device;
}

/// A cubin of one kernel that takes a pointer and an int.
inline KernelBinary fake_binary(const std::string& entry = "kernel", int arch = 90,
                                CompilerVersion compiler = {13, 0, 88}) {
  FakeCubin cubin;
  cubin.arch = arch;
  cubin.compiler_major = compiler.major;
  cubin.kernels = {{entry, 40, 16, 256, 512, {8, 4}}};
  KernelBinary binary;
  binary.image = make_fake_cubin(cubin);
  binary.arch = "sm_" + std::to_string(arch);
  binary.entry_name = entry;
  binary.compiler = compiler;
  return binary;
}

inline KernelBinary fake_ptx(const std::string& version, int arch, CompilerVersion compiler) {
  const std::string text =
      ".version " + version + "\n.target sm_" + std::to_string(arch) + "\n.visible .entry kernel(\n)\n{\n}\n";
  KernelBinary binary;
  binary.is_ptx = true;
  for (const char c : text) binary.image.push_back(static_cast<std::byte>(c));
  binary.arch = "compute_" + std::to_string(arch);
  binary.entry_name = "kernel";
  binary.compiler = compiler;
  return binary;
}

}  // namespace varmoe::test
