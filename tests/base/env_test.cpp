#include "base/env.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

using namespace varmoe;

namespace {

Result<Environment> read(const std::vector<std::string>& entries) {
  std::vector<const char*> block;
  for (const std::string& entry : entries) block.push_back(entry.c_str());
  block.push_back(nullptr);
  return Environment::read(block.data());
}

/// A good value of each variable, and values that are none.
struct Sample {
  std::string name, good;
  std::vector<std::string> bad;
};

const std::vector<Sample>& samples() {
  static const std::vector<Sample> all = {
      {"VARMOE_CACHE_DIR", "/c", {"relative", "./c", "~/c"}},
      {"VARMOE_CACHE", "ro", {"RW", "rw ", "readonly", "1"}},
      {"VARMOE_CACHE_MAX_SIZE", "10GiB", {"-1", "10 GiB", "1.5G", "lots", "99999999999999999999"}},
      {"VARMOE_CUBIN_PATH", "/a:/b", {"a", "/a:b", "/a:./b"}},
      {"VARMOE_JIT", "cached_only", {"off", "On", "cached-only"}},
      {"VARMOE_NVRTC_LIB", "libnvrtc.so.12", {"./libnvrtc.so", "lib/libnvrtc.so"}},
      {"VARMOE_COMPILE_THREADS", "8", {"-1", "1025", "8.0", "4294967296", "true", "0x8"}},
      {"VARMOE_LOG", "debug", {"DEBUG", "verbose", "2"}},
      {"VARMOE_ARCH",
       "sm_90a",
       {"90a", "sm_", "sm_9", "sm_90b", "sm_090", "sm_1000", "compute_90", "sm_90a\n", "sm_90aa"}},
      {"VARMOE_DEVICE_PROFILE", "h200", {}},
      {"VARMOE_CONFIG", "block_m=64", {}},
      {"VARMOE_FC1_CONFIG", "block_m=128", {}},
      {"VARMOE_FC2_CONFIG", "block_m=256", {}},
      {"VARMOE_DH_CONFIG", "stages=2", {}},
      {"VARMOE_DX_CONFIG", "stages=3", {}},
      {"VARMOE_DW1_CONFIG", "stages=4", {}},
      {"VARMOE_DW2_CONFIG", "stages=5", {}},
      {"VARMOE_DUMP_DIR", "dump", {}},
      {"VARMOE_KERNELS_DIR", "kernels_src", {}},
      {"VARMOE_LINEINFO", "1", {"yes", "ON", "2"}},
      {"VARMOE_TUNING_DB", "/d", {"d"}},
      {"VARMOE_TUNE", "replay", {"on", "1"}},
      {"VARMOE_RECORD_MISSES", "misses", {}},
  };
  return all;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("the table: names are unique, every entry has its texts, and each is sampled here") {
  std::set<std::string> names, sampled;
  for (const EnvVariable& variable : env_table()) {
    CHECK(std::string(variable.name).starts_with("VARMOE_"));
    CHECK(names.insert(variable.name).second);
    CHECK(std::string(variable.choices) != "");
    CHECK(std::string(variable.help) != "");
  }
  for (const Sample& sample : samples()) sampled.insert(sample.name);
  CHECK(names == sampled);
}

TEST_CASE("the defaults that the table shows are values that would be accepted") {
  for (const EnvVariable& variable : env_table()) {
    if (*variable.default_value == '\0') continue;
    CAPTURE(variable.name);
    CHECK(read({std::string(variable.name) + "=" + variable.default_value}).ok());
  }
  CHECK(read({"VARMOE_CACHE_MAX_SIZE=5GiB"})->cache_max_size == kDefaultCacheMaxBytes);
  CHECK(read({"VARMOE_LOG=warn"})->log == kDefaultLogLevel);
}

TEST_CASE("fault 42: every variable good") {
  std::vector<std::string> entries = {"PATH=/bin", "XDG_CACHE_HOME=/x", "HOME=/h",
                                      "VARMOE=1",  "NOT_VARMOE_X=1",    "odd"};
  for (const Sample& sample : samples()) entries.push_back(sample.name + "=" + sample.good);
  const Result<Environment> environment = read(entries);
  REQUIRE(environment.ok());
  const Environment& e = *environment;
  CHECK(e.cache_dir == "/c");
  CHECK(e.cache == CacheMode::ro);
  CHECK(e.cache_max_size == std::uint64_t{10} << 30);
  CHECK(e.cubin_path == std::vector<std::string>{"/a", "/b"});
  CHECK(e.jit == JitMode::cached_only);
  CHECK(e.nvrtc_lib == "libnvrtc.so.12");
  CHECK(e.compile_threads == 8);
  CHECK(e.log == LogLevel::debug);
  CHECK(e.arch == "sm_90a");
  CHECK(e.device_profile == "h200");
  CHECK(e.config == "block_m=64");
  CHECK(e.fc1_config == "block_m=128");
  CHECK(e.fc2_config == "block_m=256");
  CHECK(e.dh_config == "stages=2");
  CHECK(e.dx_config == "stages=3");
  CHECK(e.dw1_config == "stages=4");
  CHECK(e.dw2_config == "stages=5");
  CHECK(e.dump_dir == "dump");
  CHECK(e.kernels_dir == "kernels_src");
  CHECK(e.lineinfo == true);
  CHECK(e.tuning_db == std::vector<std::string>{"/d"});
  CHECK(e.tune == TuneMode::replay);
  CHECK(e.record_misses == "misses");
  CHECK(e.xdg_cache_home == "/x");
  CHECK(e.home == "/h");
  CHECK(e.settings.size() == env_table().size());
  CHECK(e.warnings.empty());
}

TEST_CASE("fault 42: every variable bad: an error that names variable, value and choices") {
  for (const Sample& sample : samples()) {
    for (const std::string& bad : sample.bad) {
      CAPTURE(sample.name);
      CAPTURE(bad);
      const Result<Environment> environment = read({sample.name + "=" + bad});
      REQUIRE_FALSE(environment.ok());
      CHECK(environment.error().code() == ErrorCode::invalid_environment);
      const std::string& message = environment.error().message();
      CHECK(contains(message, sample.name + "="));
      const auto variable = std::find_if(env_table().begin(), env_table().end(),
                                         [&](const EnvVariable& v) { return v.name == sample.name; });
      CHECK(contains(message, variable->choices));
      CHECK_FALSE(contains(message, "\n"));
    }
  }
  CHECK(contains(read({"VARMOE_JIT=off"}).error().message(),
                 "VARMOE_JIT='off' is not valid; expected: on, cached_only"));
}

TEST_CASE("fault 42: every variable empty is as good as unset") {
  for (const Sample& sample : samples()) {
    const Result<Environment> environment = read({sample.name + "="});
    REQUIRE(environment.ok());
    CHECK(environment->settings.empty());
    CHECK(environment->warnings.empty());
  }
}

TEST_CASE("fault 42: every variable twice: the first counts, as for getenv, with a warning") {
  for (const Sample& sample : samples()) {
    const Result<Environment> environment =
        read({sample.name + "=" + sample.good, sample.name + "=\x01 bad"});
    REQUIRE(environment.ok());
    REQUIRE(environment->settings.size() == 1);
    CHECK(environment->settings[0].value == sample.good);
    CHECK(std::count_if(environment->warnings.begin(), environment->warnings.end(),
                        [&](const std::string& warning) {
                          return contains(warning, sample.name + " is in the environment more than once");
                        }) == 1);
  }
}

TEST_CASE("fault 42: every variable of 1 MiB: an error, short") {
  for (const Sample& sample : samples()) {
    const Result<Environment> environment = read({sample.name + "=/" + std::string(1 << 20, 'x')});
    REQUIRE_FALSE(environment.ok());
    CHECK(environment.error().code() == ErrorCode::invalid_environment);
    CHECK(environment.error().message().size() < 500);
    CHECK(contains(environment.error().message(), "too long"));
  }
}

TEST_CASE("fault 42: an unknown name warns with the nearest one, however long and odd it is") {
  const auto nearest_of = [](const std::string& name) {
    const Result<Environment> environment = read({name + "=1"});
    REQUIRE(environment.ok());
    REQUIRE(environment->warnings.size() == 1);
    CHECK(environment->settings.empty());
    const std::string& warning = environment->warnings[0];
    CHECK(warning.size() < 400);
    return warning.substr(warning.rfind(' ') + 1);
  };
  CHECK(nearest_of("VARMOE_CACHEDIR") == "VARMOE_CACHE_DIR");
  CHECK(nearest_of("VARMOE_NVRTC") == "VARMOE_NVRTC_LIB");
  CHECK(nearest_of("VARMOE_cache") == "VARMOE_CACHE");  // case is no distance, though the name is unknown
  CHECK(nearest_of("VARMOE_LGO") == "VARMOE_LOG");
  nearest_of("VARMOE_");
  nearest_of("VARMOE_" + std::string(1 << 20, 'x'));
  nearest_of("VARMOE_\x1b[2J\xff");

  std::vector<std::string> many;
  for (int i = 0; i < 1000; ++i) many.push_back("VARMOE_X" + std::to_string(i) + "=1");
  many.push_back(many.front());
  const Result<Environment> environment = read(many);
  REQUIRE(environment.ok());
  CHECK(environment->warnings.size() == 17);
  CHECK(contains(environment->warnings.back(), "984 more"));
}

TEST_CASE("lists skip empty parts, and a library may be a path or a bare name") {
  CHECK(read({"VARMOE_CUBIN_PATH=:/a::/b:"})->cubin_path == std::vector<std::string>{"/a", "/b"});
  CHECK(read({"VARMOE_NVRTC_LIB=/opt/cuda/lib64"})->nvrtc_lib == "/opt/cuda/lib64");
  CHECK(read({"VARMOE_CACHE_MAX_SIZE=0"})->cache_max_size == 0u);
  CHECK(read({"VARMOE_COMPILE_THREADS=0"})->compile_threads == 0);
  for (const char* arch : {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_100f", "sm_120a"}) {
    CHECK(read({std::string("VARMOE_ARCH=") + arch})->arch == arch);
  }
}

TEST_CASE("the process's own environment is read, and later changes do not show") {
  ::setenv("VARMOE_DEVICE_PROFILE", "first", 1);
  const Result<Environment> environment = Environment::read();
  ::setenv("VARMOE_DEVICE_PROFILE", "second", 1);
  REQUIRE(environment.ok());
  CHECK(environment->device_profile == "first");
  ::unsetenv("VARMOE_DEVICE_PROFILE");
  CHECK(Environment::read(nullptr)->settings.empty());
}
