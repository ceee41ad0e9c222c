#pragma once

#include <functional>
#include <string>
#include <vector>

/// Where NVRTC may lie. Finding places is apart from opening them, so that it can be tested on a made-up file
/// tree.
namespace varmoe::compile {

struct NvrtcCandidate {
  std::string library;  ///< what to dlopen: a path, or a bare file name for the loader's own search
  std::string place;    ///< why it is tried, for people: "CUDA_HOME", "pip package", …
};

struct NvrtcSearch {
  std::vector<NvrtcCandidate> candidates;  ///< in order of preference; those with a path exist
  std::vector<std::string> looked_at;      ///< every place that was searched, for people, in order
};

/// The world as the search sees it.
struct SearchWorld {
  std::function<std::string(const char*)> get_environment;  ///< empty when unset
  std::string root;  ///< put before every absolute path looked at; "" outside of tests
};
SearchWorld real_world();

/// An explicit path (file or folder) excludes all other places: what the user names is taken or refused,
/// never replaced.
NvrtcSearch find_nvrtc(const std::string& explicit_path, const SearchWorld& world);

}  // namespace varmoe::compile
