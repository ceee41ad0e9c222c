#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "varmoe/layer_spec.hpp"

namespace oracle {

/// A golden file, read back. Weights are in the storage "blocks", nk, gate first.
struct GoldenFile {
  varmoe::LayerSpec spec;
  std::int64_t tokens = 0;
  bool accumulate = false;
  std::vector<std::uint16_t> fc1, fc2, x, old_out, out;
  std::vector<std::int64_t> ids;
  std::vector<float> weights;
};

/// Every *.json of a folder, sorted by name. Throws on anything unexpected.
std::vector<std::string> golden_files(const std::string& folder);
GoldenFile read_golden(const std::string& path);

}  // namespace oracle
