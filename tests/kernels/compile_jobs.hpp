#pragma once

#include <set>
#include <string>
#include <vector>

#include "emit/emitter.hpp"
#include "kernels/families.hpp"
#include "model/device_profile.hpp"
#include "varmoe/error.hpp"

/// Kernels beside the families, compiled side by side.
namespace kernels_test {

struct Job {
  Kernel kernel;
  const varmoe::model::DeviceProfile* device;
  std::string problem;
};

/// Adds a kernel that was not `seen` (entry names) for the device yet; one that could not be emitted fails
/// the test.
void add_job(std::vector<Job>& jobs, std::set<std::string>& seen, const varmoe::model::DeviceProfile& device,
             varmoe::Result<varmoe::emit::EmittedKernel> kernel, const std::string& what);

/// Compiles them; each must be without spills and findings, and fit its device.
void compile_all(std::vector<Job>& jobs);

}  // namespace kernels_test
