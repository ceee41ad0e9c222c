#pragma once

#include <string>
#include <vector>

#include "kernels/families.hpp"
#include "model/device_profile.hpp"

/// Kernels beside the families, compiled side by side.
namespace kernels_test {

struct Job {
  Kernel kernel;
  const varmoe::model::DeviceProfile* device;
  std::string problem;
};

/// Compiles them; each must be without spills and findings, and fit its device.
void compile_all(std::vector<Job>& jobs);

}  // namespace kernels_test
