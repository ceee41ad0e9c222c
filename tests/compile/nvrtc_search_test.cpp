#include "compile/nvrtc_search.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

using namespace varmoe::compile;
namespace fs = std::filesystem;

namespace {

/// A made-up machine.
class World {
 public:
  World() {
    std::string name = (fs::temp_directory_path() / "varmoe-search-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    root_ = fs::canonical(name);
  }
  ~World() { fs::remove_all(root_); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  std::string add(const std::string& path) {
    const fs::path full = root_.string() + path;
    fs::create_directories(full.parent_path());
    std::ofstream(full) << path;
    return full.string();
  }
  std::string path(const std::string& p) const { return root_.string() + p; }
  NvrtcSearch find(const std::string& explicit_path = "") const {
    return find_nvrtc(explicit_path, {[this](const char* name) {
                                        const auto it = environment.find(name);
                                        return it == environment.end() ? std::string() : it->second;
                                      },
                                      root_.string()});
  }
  std::map<std::string, std::string> environment;

 private:
  fs::path root_;
};

/// Libraries found by path, in order.
std::vector<std::string> found(const NvrtcSearch& search) {
  std::vector<std::string> out;
  for (const auto& candidate : search.candidates) {
    if (candidate.library.find('/') != std::string::npos) out.push_back(candidate.library);
  }
  return out;
}

bool looked_at(const NvrtcSearch& search, const std::string& text) {
  return std::any_of(search.looked_at.begin(), search.looked_at.end(),
                     [&](const std::string& line) { return line.find(text) != std::string::npos; });
}

}  // namespace

TEST_CASE("fault 28: where there is no NVRTC every place that was looked at is listed") {
  const World world;
  const auto search = world.find();
  CHECK(found(search).empty());
  REQUIRE(search.candidates.size() == 3);
  CHECK(search.candidates[0].library == "libnvrtc.so.13");
  CHECK(search.candidates[1].library == "libnvrtc.so.12");
  CHECK(search.candidates[2].library == "libnvrtc.so");
  for (const char* place :
       {"libnvrtc.so.13 by the loader", "CUDA_HOME: not set", "CUDA_PATH: not set", "/usr/local/cuda/lib64",
        "/opt/cuda/lib64", "/usr/lib64", "nvidia packages of Python below"}) {
    CHECK_MESSAGE(looked_at(search, place), place);
  }
}

TEST_CASE("an explicit path excludes every other place") {
  World world;
  world.add("/usr/local/cuda/lib64/libnvrtc.so.13");
  const auto file = world.add("/elsewhere/lib64/libnvrtc.so.12");
  world.add("/elsewhere/lib64/libnvrtc-builtins.so.12.4");
  world.add("/elsewhere/lib64/libnvrtc.alt.so.12");
  world.add("/elsewhere/lib64/libnvrtc_static.a");
  const std::vector<std::string> only{file};
  SUBCASE("file") {
    CHECK(found(world.find(file)) == only);
  }
  SUBCASE("folder") {
    CHECK(found(world.find(world.path("/elsewhere/lib64"))) == only);
  }
  SUBCASE("toolkit root") {
    CHECK(found(world.find(world.path("/elsewhere"))) == only);
  }
  SUBCASE("bare name, for the loader") {
    const auto search = world.find("libnvrtc.so.12");
    REQUIRE(search.candidates.size() == 1);
    CHECK(search.candidates[0].library == "libnvrtc.so.12");
  }
  SUBCASE("absent") {
    const auto search = world.find(world.path("/nowhere/libnvrtc.so.13"));
    CHECK(search.candidates.empty());
    CHECK(looked_at(search, "no such file or folder"));
  }
  SUBCASE("folder without it") {
    world.add("/empty/file");
    const auto search = world.find(world.path("/empty"));
    CHECK(search.candidates.empty());
    CHECK(looked_at(search, "no libnvrtc there"));
  }
}

TEST_CASE("environment, then usual folders, newest toolkit first, then pip packages") {
  World world;
  const auto home = world.add("/tools/lib64/libnvrtc.so.12");
  const auto path = world.add("/tools2/lib64/libnvrtc.so.13");
  const auto usual_12_9 = world.add("/usr/local/cuda-12.9/lib64/libnvrtc.so.12");
  const auto usual_12_10 = world.add("/usr/local/cuda-12.10/lib64/libnvrtc.so.12");
  const auto usual_13_0 = world.add("/usr/local/cuda-13.0/lib64/libnvrtc.so.13");
  const auto venv = world.add("/venv/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
  const auto venv_12 = world.add("/venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
  world.add("/opt/python/bin/python3.12");
  fs::create_directories(world.path("/bin"));
  fs::create_symlink(world.path("/opt/python/bin/python3.12"), world.path("/bin/python3"));
  const auto on_path =
      world.add("/opt/python/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
  const auto user = world.add("/home/me/.local/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
  const auto system =
      world.add("/usr/local/lib/python3.11/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
  world.environment = {{"CUDA_HOME", world.path("/tools")},
                       {"CUDA_PATH", world.path("/tools2")},
                       {"VIRTUAL_ENV", world.path("/venv")},
                       {"PATH", "relative::" + world.path("/nothing") + ":" + world.path("/bin")},
                       {"HOME", world.path("/home/me")}};
  CHECK(found(world.find()) == std::vector<std::string>{home, path, usual_13_0, usual_12_10, usual_12_9, venv,
                                                        venv_12, on_path, user, system});
}

TEST_CASE("several versions in one folder are tried newest first, and one library once") {
  World world;
  const auto newest = world.add("/cuda/lib64/libnvrtc.so.13");
  const auto older = world.add("/cuda/lib64/libnvrtc.so.12");
  fs::create_symlink("libnvrtc.so.13", world.path("/cuda/lib64/libnvrtc.so"));
  fs::create_directory_symlink(world.path("/cuda/lib64"), world.path("/cuda/lib"));
  world.environment = {{"CUDA_HOME", world.path("/cuda")}};
  CHECK(found(world.find()) == std::vector<std::string>{newest, older});
}

TEST_CASE("relative CUDA_HOME is not followed into the working directory") {
  World world;
  world.environment = {{"CUDA_HOME", "cuda"}};
  CHECK(looked_at(world.find(), "CUDA_HOME: not an absolute path"));
}
