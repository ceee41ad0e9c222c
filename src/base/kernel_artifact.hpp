#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Values that travel between the rooms that emit, compile, cache and load kernels.
namespace varmoe {

/// A header handed to NVRTC by name; `text` has static storage or outlives the use.
struct SourceHeader {
  std::string name;  ///< as included, e.g. "tile/swizzle.cuh"
  std::string text;
};

/// NVRTC's version. 13.0 alone is not enough: builds of one minor version differ.
struct CompilerVersion {
  int major = 0, minor = 0, build = 0;
  bool operator==(const CompilerVersion&) const = default;
  auto operator<=>(const CompilerVersion&) const = default;
};

/// What ptxas reported of one kernel.
struct ResourceUsage {
  std::int32_t registers = 0;     ///< per thread
  std::int32_t spill_stores = 0;  ///< bytes
  std::int32_t spill_loads = 0;   ///< bytes
  std::int32_t stack_bytes = 0;
  std::int32_t static_smem = 0;  ///< bytes
  bool operator==(const ResourceUsage&) const = default;
};

/// Machine code (or PTX, for a GPU newer than the compiler) of one kernel and what is known of its making.
struct KernelBinary {
  std::vector<std::byte> image;
  bool is_ptx = false;
  std::string arch;  ///< e.g. "sm_90a"
  std::string entry_name;
  CompilerVersion compiler;
  ResourceUsage resources;
  double compile_ms = 0;
  std::string log;  ///< the compiler's log, warnings included
};

}  // namespace varmoe
