#include <doctest/doctest.h>

#include <fstream>

#include "tuningdb/fixture.hpp"
#include "tuningdb/shipped.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

std::string only(const std::vector<std::string>& faults) {
  REQUIRE(faults.size() == 1);
  return faults[0];
}

}  // namespace

TEST_CASE("fault 44: the shipped records have no duplicates, are in range, in space, sorted") {
  for (const ShippedFile& file : shipped_files()) {
    CAPTURE(file.name);
    const std::vector<std::string> faults = check_record_file(file.text, file.name);
    for (const std::string& fault : faults) MESSAGE(fault);
    CHECK(faults.empty());
  }
}

TEST_CASE("fault 44: every record file of the repository is embedded") {
  std::size_t on_disk = 0;
  for (const auto& item : std::filesystem::directory_iterator(VARMOE_SOURCE_DIR "/tuning_db")) {
    on_disk += item.path().extension() == ".json" ? 1 : 0;
  }
  CHECK(shipped_files().size() == on_disk);
}

TEST_CASE("fault 44: sound records have no faults") {
  CHECK(check_records({}, "a").empty());
  CHECK(check_records(std::vector<TuningRecord>{record_number(0), record_number(1), record_number(12)}, "a")
            .empty());
  CHECK(check_record_file(file_text({record_number(0), record_number(12)}), "a").empty());
}

TEST_CASE("fault 44: each kind of fault is told by record") {
  const TuningRecord a = record_number(0), b = record_number(1);
  CHECK(only(check_records(std::vector{a, a}, "x")).find("x: record 1: has the key of record 0") == 0);
  CHECK(only(check_records(std::vector{b, a}, "x")).find("x: record 1: is out of order") == 0);
  TuningRecord bad = b;
  bad.us = -1;
  CHECK(only(check_records(std::vector{a, bad}, "x")).find("x: record 1: a figure is -1") == 0);
  bad = b;
  bad.key.token = 3;
  CHECK(only(check_records(std::vector{a, bad}, "x")).find("token") != std::string::npos);
  bad = b;
  bad.config.fc1.stages = 8;
  bad.config.fc1.block_n = 256;
  bad.config.fc1.warps_n = 4;
  CHECK(only(check_records(std::vector{a, bad}, "x")).find("shared memory") != std::string::npos);
  // A GPU that no profile describes is held to its arch's limits alone.
  bad.key.device.name = "NVIDIA H999";
  CHECK(check_config(bad).ok());
  bad.key.device.arch = "sm_80";
  bad.config = {};
  bad.config.fc1.schedule = Schedule::wgmma;
  CHECK(!check_config(bad).ok());
}

TEST_CASE("fault 44: a file's faults: what was skipped, its order, its bytes") {
  const std::string text = file_text({record_number(0), record_number(1)});
  CHECK(only(check_record_file(text + "\n", "x")).find("x: not as varmoe writes it") == 0);
  CHECK(only(check_record_file(replaced(text, "\"topk\": 2", "\"topk\": 99"), "x"))
            .find("x: records[0]: topk is 99") == 0);
  CHECK(only(check_record_file("{", "x")).find("x: not JSON") == 0);
  std::string turned = text;
  const std::string first = record_text(record_number(0)), second = record_text(record_number(1));
  turned = replaced(turned, first, "#");
  turned = replaced(turned, second, first);
  turned = replaced(turned, "#", second);
  CHECK(only(check_record_file(turned, "x")).find("out of order") != std::string::npos);
}
