#include "model/device_profile.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

using namespace varmoe;
using namespace varmoe::model;

namespace {

const char kGood[] =
    R"({"varmoe_device": 1, "name": "Test GPU", "compute_major": 9, "compute_minor": 0, "sm_count": 132,
  "smem_per_block": 232448, "smem_per_sm": 233472, "threads_per_sm": 2048, "l2_bytes": 52428800, "bandwidth": 3e12,
  "tensor_flops": 7e14, "mma_sync_flops": 4e14, "sm_clock": 1.7e9})";

/// kGood with the value of one field replaced.
std::string with(const std::string& field, const std::string& value) {
  std::string text = kGood;
  const auto at = text.find("\"" + field + "\": ") + field.size() + 4;
  return text.replace(at, text.find_first_of(",}", at) - at, value);
}

}  // namespace

TEST_CASE("every shipped profile reads, and knows its arch's limits") {
  std::size_t files = 0;
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(VARMOE_SOURCE_DIR "/tuning_db/devices")) {
    ++files;
    const auto profile = find_profile(entry.path().string());
    REQUIRE_MESSAGE(profile, (profile ? "" : profile.error().message()));
    const auto shipped = find_profile(entry.path().stem().string());
    REQUIRE(shipped);
    CHECK(shipped->name == profile->name);
    CHECK(shipped->id == entry.path().stem().string());
  }
  CHECK(files >= 25);
  CHECK(shipped_profiles().size() == files);
  for (const DeviceProfile& p : shipped_profiles()) {
    CAPTURE(p.id);
    CHECK(names.insert(p.name).second);
    for (const std::string& alias : p.aliases) CHECK(names.insert(alias).second);
    const bool large = p.compute_minor == 0 && p.compute_major != 12;
    const bool ampere = p.compute_major == 8 && large;
    const bool hopper_or_later = large && !ampere;
    if (ampere) CHECK(p.smem_per_block == 166912);
    if (hopper_or_later) CHECK(p.smem_per_block == 232448);
    if (p.arch == "sm_86" || p.arch == "sm_89" || p.arch == "sm_120") {
      CHECK(p.smem_per_block == 101376);
      CHECK(p.threads_per_sm == 1536);
    }
    CHECK(p.smem_per_sm == p.smem_per_block + 1024);
    CHECK(p.mma_sync_flops <= p.tensor_flops);
  }
  std::set<std::string> archs;
  for (const DeviceProfile& p : shipped_profiles()) archs.insert(p.arch);
  for (const char* arch : {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"})
    CHECK(archs.count(arch) == 1);
}

TEST_CASE("profiles are found by id and by every name the driver gives, in any case") {
  CHECK(find_profile("h200")->sm_count == 132);
  CHECK(find_profile("NVIDIA H200")->id == "h200");
  CHECK(find_profile("nvidia a100 80gb pcie")->id == "a100-80gb");
  const auto missing = find_profile("h2000");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message().find("did you mean h200") != std::string::npos);
  CHECK(missing.error().message().find("rtx-4090") != std::string::npos);
  CHECK_FALSE(find_profile(""));
  CHECK_FALSE(find_profile("/nowhere/at/all.json"));
  CHECK_FALSE(find_profile(VARMOE_SOURCE_DIR "/tuning_db/devices/"));
}

TEST_CASE("arch names") {
  CHECK(arch_name(8, 0) == "sm_80");
  CHECK(arch_name(8, 9) == "sm_89");
  CHECK(arch_name(9, 0) == "sm_90a");
  CHECK(arch_name(10, 0) == "sm_100");
  CHECK(arch_name(12, 1) == "sm_121");
}

TEST_CASE("a generic profile is sound whatever the attributes are") {
  const DeviceProfile p = generic_profile(9, 0, 114, 232448, 233472, 50 << 20);
  CHECK(p.arch == "sm_90a");
  CHECK(p.sm_count == 114);
  CHECK(p.smem_per_block == 232448);
  CHECK(p.mma_sync_flops > 0);
  CHECK(p.mma_sync_flops <= p.tensor_flops);
  for (const std::int32_t bad : {INT32_MIN, -1, 0, INT32_MAX}) {
    const DeviceProfile q = generic_profile(8, 6, bad, bad, bad, bad);
    CHECK(q.sm_count >= 1);
    CHECK(q.smem_per_block >= 48 << 10);
    CHECK(q.smem_per_sm > q.smem_per_block);
    CHECK(q.l2_bytes >= 1 << 20);
    CHECK(q.bandwidth > 0);
  }
}

TEST_CASE("fault 22: every number of a profile out of range or of another type is refused by name") {
  REQUIRE(parse_profile(kGood, "test", "test.json"));
  for (const char* field :
       {"varmoe_device", "compute_major", "compute_minor", "sm_count", "smem_per_block", "smem_per_sm",
        "threads_per_sm", "l2_bytes", "bandwidth", "tensor_flops", "mma_sync_flops", "sm_clock"}) {
    for (const char* value :
         {"-1", "true", "\"64\"", "9223372036854775807", "null", "[1]", "{}", "99999999999999999999"}) {
      CAPTURE(field);
      CAPTURE(value);
      const auto result = parse_profile(with(field, value), "test", "test.json");
      REQUIRE_FALSE(result);
      CHECK(result.error().message().find(field) != std::string::npos);
      CHECK(result.error().message().find("test.json") != std::string::npos);
    }
  }
  for (const char* field : {"sm_count", "smem_per_block", "l2_bytes"}) {
    for (const char* value : {"1.9", "0", "4294967296e3"}) {
      CHECK_FALSE(parse_profile(with(field, value), "test", "test.json"));
    }
  }
  CHECK_FALSE(parse_profile(with("name", "5"), "test", "test.json"));
  CHECK_FALSE(parse_profile(with("mma_sync_flops", "8e14"), "test", "test.json"));  // above tensor_flops
  const auto unknown = parse_profile(with("sm_clock", "1e9, \"sm_clok\": 1"), "test", "test.json");
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().message().find("did you mean sm_clock") != std::string::npos);
}
