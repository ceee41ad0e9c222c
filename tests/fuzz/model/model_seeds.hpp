#pragma once

#include <string>
#include <vector>

/// Inputs that the fuzzers of src/model begin with.
namespace varmoe::fuzz {

/// Every small shipped file, and texts that name what those leave out; each is accepted.
std::vector<std::string> text_seeds();

/// Texts that the readers refuse, each at a place that mutations of the others seldom come to.
std::vector<std::string> refused_text_seeds();

}  // namespace varmoe::fuzz
