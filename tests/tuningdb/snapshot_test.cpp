#include <doctest/doctest.h>
#include <sys/stat.h>

#include <thread>

#include "support/faulty_file_system.hpp"
#include "tuningdb/fixture.hpp"
#include "tuningdb/snapshot.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

const std::string kFile = "nvidia-h200.json";

/// A layer of these records in a folder of its own.
std::string make_layer(const TempDir& dir, const std::string& name,
                       const std::vector<TuningRecord>& records) {
  const std::string folder = dir / name;
  std::filesystem::create_directory(folder);
  ::chmod(folder.c_str(), 0755);
  spit(folder + "/" + kFile, file_text(records));
  ::chmod((folder + "/" + kFile).c_str(), 0644);
  return folder;
}

/// Records alone, as a shipped file.
TuningSnapshot snapshot_of(const std::vector<TuningRecord>& records, const Log& log = Log()) {
  const std::string text = file_text(records);
  const ShippedFile file{"a.json", text};
  TuningSources sources;
  sources.shipped = {&file, 1};
  return TuningSnapshot::load(sources, log);
}

TuningSources no_shipped() {
  TuningSources sources;
  sources.shipped = {};
  return sources;
}

/// A record whose config tells it from others.
TuningRecord marked(TuningRecord record, std::int32_t raster) {
  record.config.fc1.raster = raster;
  return record;
}

TuningRecord stale(TuningRecord record) {
  record.epochs.fc1 += 1;
  return record;
}

/// mixed_layer with other experts per width.
LayerSpec other_counts(int moved) {
  LayerSpec spec = mixed_layer();
  for (int i = 0; i < moved; ++i) {
    *std::find(spec.expert_widths.begin(), spec.expert_widths.end(), 512) = 768;
  }
  return spec;
}

}  // namespace

TEST_CASE("no records: nothing is found, and nothing is wrong") {
  CHECK(!TuningSnapshot().find(uniform_layer(), profile(), 64));
  CHECK(TuningSnapshot().problems().empty());
  TempDir dir;
  TuningSources sources;
  sources.user_folder = dir / "not/there";
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log());
  CHECK(snapshot.problems().empty());
  CHECK(!snapshot.find(uniform_layer(), profile(), 64));
  CHECK(snapshot.searched() == "user " + dir.path() + "/not/there, shipped");
}

TEST_CASE("the shipped records are sound") {
  const TuningSnapshot snapshot = TuningSnapshot::load(TuningSources(), Log());
  CHECK(snapshot.problems().empty());
}

TEST_CASE("an exact record is found, with all that says where it came from") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.user_folder = make_layer(dir, "user", {marked(record_of(mixed_layer(), 64), 5)});
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log());
  CHECK(snapshot.size() == 1);
  for (const std::int64_t tokens : {33, 64}) {
    const auto match = snapshot.find(mixed_layer(), profile(), tokens);
    REQUIRE(match);
    CHECK(match->quality == MatchQuality::exact);
    CHECK(match->config.fc1.raster == 5);
    CHECK(match->layer == "user " + dir.path() + "/user");
    CHECK(match->file == dir.path() + "/user/" + kFile);
    CHECK(match->key.find("64 tokens") != std::string::npos);
    CHECK(match->record->us == 100);
  }
}

TEST_CASE("records of another layer do not answer") {
  const TuningSnapshot snapshot = snapshot_of({record_of(uniform_layer(), 64)});
  const auto differs = [&](auto change) {
    LayerSpec spec = uniform_layer();
    change(spec);
    return !snapshot.find(spec, profile(), 64);
  };
  CHECK(!differs([](LayerSpec&) {}));
  CHECK(differs([](LayerSpec& s) { s.hidden_size += 64; }));
  CHECK(differs([](LayerSpec& s) { s.top_k += 1; }));
  CHECK(differs([](LayerSpec& s) { s.expert_widths.push_back(1024); }));
  CHECK(differs([](LayerSpec& s) { s.expert_widths.assign(64, 512); }));
  CHECK(differs([](LayerSpec& s) { s.expert_widths[0] = 512; }));
  CHECK(differs([](LayerSpec& s) { s.activation = Activation::gelu_erf_mul; }));
  CHECK(differs([](LayerSpec& s) { s.dtype = DType::fp16; }));
  CHECK(differs([](LayerSpec& s) { s.fc1_layout = WeightLayout::kn; }));
  CHECK(differs([](LayerSpec& s) { s.fc2_layout = WeightLayout::kn; }));
  CHECK(differs([](LayerSpec& s) { s.gate_order = GateOrder::interleaved; }));
  CHECK(differs([](LayerSpec& s) { s.batch_invariant = true; }));
  CHECK(!snapshot.find(uniform_layer(), profile("a100-80gb"), 64));
}

TEST_CASE("a near bucket answers within a factor of 2, the larger one first") {
  const TuningSnapshot both =
      snapshot_of({marked(record_of(uniform_layer(), 32), 3), marked(record_of(uniform_layer(), 128), 4)});
  auto match = both.find(uniform_layer(), profile(), 64);
  REQUIRE(match);
  CHECK(match->quality == MatchQuality::near_bucket);
  CHECK(match->config.fc1.raster == 4);
  CHECK(both.find(uniform_layer(), profile(), 128)->quality == MatchQuality::exact);
  CHECK(both.find(uniform_layer(), profile(), 16)->config.fc1.raster == 3);
  CHECK(both.find(uniform_layer(), profile(), 256)->config.fc1.raster == 4);
  CHECK(!both.find(uniform_layer(), profile(), 8));
  CHECK(!both.find(uniform_layer(), profile(), 512));
}

TEST_CASE("the qualities in their order: each answers only where no better one does") {
  const LayerSpec asked = mixed_layer();
  const TuningRecord here = record_of(asked, 64);
  const std::vector<std::pair<MatchQuality, TuningRecord>> all = {
      {MatchQuality::exact, marked(here, 1)},
      {MatchQuality::near_bucket, marked(record_of(asked, 128), 2)},
      {MatchQuality::near_widths, marked(record_of(other_counts(1), 64), 3)},
      {MatchQuality::stale_epoch, marked(stale(record_of(other_counts(2), 64)), 4)},
      {MatchQuality::same_device_class, marked(record_of(asked, 64, 100, profile("h100-sxm")), 5)},
      {MatchQuality::same_arch, marked(record_of(asked, 64, 100, profile("h100-pcie")), 6)},
  };
  for (std::size_t first = 0; first < all.size(); ++first) {
    CAPTURE(first);
    std::vector<TuningRecord> records;
    for (std::size_t i = first; i < all.size(); ++i) records.push_back(all[i].second);
    const auto match = snapshot_of(records).find(asked, profile(), 64);
    REQUIRE(match);
    CHECK(match->quality == all[first].first);
    CHECK(match->config.fc1.raster == static_cast<int>(first) + 1);
  }
}

TEST_CASE("a match is as good as its worst side, then as the next worst") {
  const LayerSpec asked = mixed_layer();
  // Both stale; one is of a near bucket besides.
  auto match = snapshot_of({marked(stale(record_of(asked, 128)), 2), marked(stale(record_of(asked, 64)), 3)})
                   .find(asked, profile(), 64);
  REQUIRE(match);
  CHECK(match->quality == MatchQuality::stale_epoch);
  CHECK(match->config.fc1.raster == 3);
  // Of two with other counts the closer one.
  match = snapshot_of({marked(record_of(other_counts(3), 64), 2), marked(record_of(other_counts(1), 64), 3)})
              .find(asked, profile(), 64);
  REQUIRE(match);
  CHECK(match->quality == MatchQuality::near_widths);
  CHECK(match->config.fc1.raster == 3);
}

TEST_CASE("a board that a profile counts among its aliases is that device") {
  for (const model::DeviceProfile& p : model::shipped_profiles()) {
    if (p.aliases.empty()) continue;
    TuningRecord record = record_of(uniform_layer(), 64, 100, p);
    record.key.device.name = p.aliases[0];
    const auto match = snapshot_of({record}).find(uniform_layer(), p, 64);
    REQUIRE(match);
    CHECK(match->quality == MatchQuality::exact);
    return;
  }
  MESSAGE("no shipped profile has aliases");
}

TEST_CASE("fault 24: a record outside the config space is never used, and says so") {
  TuningRecord outside = record_of(uniform_layer(), 64);
  outside.config.fc1.stages = 8;
  outside.config.fc1.block_n = 256;
  outside.config.fc1.warps_n = 4;
  REQUIRE(check_record(outside).ok());  // each field alone is in range
  CaptureLog log;
  const TuningSnapshot snapshot = snapshot_of({outside, record_of(uniform_layer(), 128)}, log);
  CHECK(snapshot.size() == 1);
  REQUIRE(snapshot.problems().size() == 1);
  CHECK(snapshot.problems()[0].find("a.json: the record of sm_90a, 132 SMs") == 0);
  CHECK(snapshot.problems()[0].find("shared memory") != std::string::npos);
  CHECK(snapshot.find(uniform_layer(), profile(), 64)->quality == MatchQuality::near_bucket);
  CHECK(log.count(LogLevel::warn) == 1);
}

TEST_CASE("fault 24: a file of records outside the config space gives a bounded number of messages") {
  std::vector<TuningRecord> records;
  for (int i = 0; i < 300; ++i) {
    records.push_back(record_number(i));
    records.back().config.fc1.stages = 8;
    records.back().config.fc1.block_n = 256;
    records.back().config.fc1.warps_n = 4;
  }
  const TuningSnapshot snapshot = snapshot_of(records);
  CHECK(snapshot.size() == 0);
  CHECK(snapshot.problems().size() == 21);
  CHECK(snapshot.problems().back().find("280 more") != std::string::npos);
}

TEST_CASE(
    "fault 24: a record of a larger GPU is passed over where the asked one's limits exclude its config") {
  // An A100's block may use more shared memory than that of a GPU of its own make-up, with 100 KiB.
  TuningRecord large = record_of(uniform_layer(), 64, 100, profile("a100-80gb"));
  large.config.fc1.stages = 5;
  model::DeviceProfile small = profile("a100-80gb");
  small.name = "A cut-down A100";
  small.smem_per_block = 100 << 10;
  small.smem_per_sm = 101 << 10;
  CaptureLog log;
  const TuningSnapshot snapshot = snapshot_of({large}, log);
  CHECK(snapshot.find(uniform_layer(), profile("a100-80gb"), 64)->quality == MatchQuality::exact);
  CHECK(log.lines().empty());
  for (int i = 0; i < 3; ++i) CHECK(!snapshot.find(uniform_layer(), small, 64));
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(log.contains("not used on A cut-down A100"));
}

TEST_CASE(
    "layers shadow each other per record: given paths, then the environment, then the user, then shipped") {
  TempDir dir;
  const auto at = [](std::int64_t tokens, int raster) {
    return marked(record_of(uniform_layer(), tokens), raster);
  };
  // Buckets 4 apart, so that none is near another.
  const std::string shipped_text = file_text({at(1, 1), at(4, 1), at(16, 1), at(64, 1)});
  const ShippedFile shipped{"shipped.json", shipped_text};
  TuningSources sources;
  sources.shipped = {&shipped, 1};
  sources.user_folder = make_layer(dir, "user", {at(4, 2), at(16, 2), at(64, 2)});
  sources.environment = {make_layer(dir, "env", {at(16, 3), at(64, 3)}),
                         make_layer(dir, "env2", {at(16, 4)})};
  sources.paths = {make_layer(dir, "given", {at(64, 5)}) + "/" + kFile};
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log());
  CHECK(snapshot.problems().empty());
  CHECK(snapshot.find(uniform_layer(), profile(), 1)->config.fc1.raster == 1);
  CHECK(snapshot.find(uniform_layer(), profile(), 4)->config.fc1.raster == 2);
  CHECK(snapshot.find(uniform_layer(), profile(), 16)->config.fc1.raster == 3);
  CHECK(snapshot.find(uniform_layer(), profile(), 64)->config.fc1.raster == 5);
  CHECK(snapshot.find(uniform_layer(), profile(), 1)->layer == "shipped");
  CHECK(snapshot.find(uniform_layer(), profile(), 16)->layer == "VARMOE_TUNING_DB " + dir.path() + "/env");
  CHECK(snapshot.find(uniform_layer(), profile(), 64)->layer == "given " + dir.path() + "/given/" + kFile);
}

TEST_CASE("fault 33: a stale record of the user's against a fresh shipped one: the fresh one, said once") {
  TempDir dir;
  const std::string text = file_text({marked(record_of(uniform_layer(), 64), 2)});
  const ShippedFile shipped{"shipped.json", text};
  TuningSources sources;
  sources.shipped = {&shipped, 1};
  sources.user_folder = make_layer(dir, "user", {marked(stale(record_of(uniform_layer(), 64)), 3)});
  CaptureLog log;
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, log);
  for (int i = 0; i < 3; ++i) {
    const auto match = snapshot.find(uniform_layer(), profile(), 64);
    REQUIRE(match);
    CHECK(match->quality == MatchQuality::exact);
    CHECK(match->config.fc1.raster == 2);
    CHECK(match->layer == "shipped");
  }
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(log.contains("passed over"));
  CHECK(log.contains("epoch"));
}

TEST_CASE("fault 34: of three layers one is unreadable: it is told, and the others serve") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.environment = {make_layer(dir, "a", {marked(record_of(uniform_layer(), 1), 1)}),
                         make_layer(dir, "b", {marked(record_of(uniform_layer(), 8), 2)}),
                         make_layer(dir, "c", {marked(record_of(uniform_layer(), 64), 3)})};
  const std::string file = dir / ("b/" + kFile);
  FaultyFileSystem fs;
  std::string said;
  SUBCASE("not there") {
    std::filesystem::remove_all(dir / "b"), said = "ENOENT";
  }
  SUBCASE("writable by others") {
    ::chmod((dir / "b").c_str(), 0777), said = "chmod go-w";
  }
  SUBCASE("a file writable by others") {
    ::chmod(file.c_str(), 0666), said = "chmod go-w";
  }
  SUBCASE("of another user") {
    fs.set_owner(dir / "b", 4711), said = "4711";
  }
  SUBCASE("damaged") {
    spit(file, slurp(file).substr(0, 300)), said = "not JSON";
  }
  SUBCASE("fault 25: of a newer schema") {
    spit(file, replaced(slurp(file), "\"varmoe_tuning\": 1", "\"varmoe_tuning\": 3")), said = "update varmoe";
  }
  SUBCASE("fault 19: a symlink") {
    std::filesystem::rename(file, dir / "real");
    std::filesystem::create_symlink(dir / "real", file);
    said = "symbolic link";
  }
  SUBCASE("fault 19: a FIFO") {
    std::filesystem::remove(file);
    REQUIRE(::mkfifo(file.c_str(), 0644) == 0);
    said = "FIFO";
  }
  SUBCASE("a relative path") {
    sources.environment[1] = "b", said = "absolute";
  }
  SUBCASE("fault 11: EIO while listing") {
    fs.fail_op(Op::list, 2, EIO);
    said = "EIO";
  }
  CaptureLog log;
  for (int i = 0; i < 2; ++i) {
    const TuningSnapshot snapshot = TuningSnapshot::load(sources, log, nullptr, &fs);
    if (i == 1 && said == "EIO") break;  // it failed once
    REQUIRE(snapshot.problems().size() == 1);
    CHECK(snapshot.problems()[0].find(said) != std::string::npos);
    CHECK(snapshot.find(uniform_layer(), profile(), 1)->config.fc1.raster == 1);
    CHECK(!snapshot.find(uniform_layer(), profile(), 8));
    CHECK(snapshot.find(uniform_layer(), profile(), 64)->config.fc1.raster == 3);
  }
  CHECK(log.count(LogLevel::warn) == 1);
}

TEST_CASE("faults 10 and 11: loading with any one call failing never fails as a whole") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.environment = {make_layer(dir, "a", {record_of(uniform_layer(), 1)}),
                         make_layer(dir, "b", {record_of(uniform_layer(), 8)})};
  bool finished = false;
  for (std::uint64_t n = 1; !finished && n < 100; ++n) {
    CAPTURE(n);
    FaultyFileSystem fs;
    fs.fail_call(n, EIO);
    const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log(), nullptr, &fs);
    finished = !fs.fired();
    CHECK(snapshot.size() + snapshot.problems().size() >= 2);
    CHECK(snapshot.size() >= 1);
  }
  CHECK(finished);
}

TEST_CASE("fault 36: layers read from a read-only mount serve as they are") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.environment = {make_layer(dir, "a", {record_of(uniform_layer(), 64)})};
  FaultyFileSystem fs;
  for (const Op op :
       {Op::write, Op::rename, Op::unlink, Op::mkdir, Op::link, Op::set_mtime, Op::flock, Op::fsync}) {
    fs.fail_op(op, FaultyFileSystem::kAll, EROFS);
  }
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log(), nullptr, &fs);
  CHECK(snapshot.problems().empty());
  CHECK(snapshot.find(uniform_layer(), profile(), 64));
  CHECK(!fs.fired());
  CHECK(names_in(dir / "a") == std::vector<std::string>{kFile});
}

TEST_CASE("a layer's locks, leftovers, damaged files and folders beside the records are passed over") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.user_folder = make_layer(dir, "user", {record_of(uniform_layer(), 64)});
  spit(dir / ("user/" + kFile + ".lock"), "");
  spit(dir / ("user/" + kFile + ".damaged-0"), "{");
  spit(dir / "user/.varmoe-1-0123456789abcdef.tmp", "{");
  spit(dir / "user/README.md", "words");
  std::filesystem::create_directory(dir / "user/devices");
  const TuningSnapshot snapshot = TuningSnapshot::load(sources, Log());
  CHECK(snapshot.problems().empty());
  CHECK(snapshot.size() == 1);
}

TEST_CASE("what the store saves, the next snapshot finds, and an earlier one does not") {
  TempDir dir;
  TuningSources sources = no_shipped();
  sources.user_folder = dir / "tuning";
  const TuningSnapshot before = TuningSnapshot::load(sources, Log());
  REQUIRE(save(open_store(dir / "tuning"), record_of(uniform_layer(), 64)).ok());
  CHECK(!before.find(uniform_layer(), profile(), 64));
  CHECK(TuningSnapshot::load(sources, Log()).find(uniform_layer(), profile(), 64)->quality ==
        MatchQuality::exact);
}

TEST_CASE("threads ask one snapshot at once") {
  const TuningSnapshot snapshot = snapshot_of({record_of(uniform_layer(), 64), record_of(mixed_layer(), 64)});
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, copy = snapshot] {
      for (int i = 0; i < 200; ++i) {
        const auto match = copy.find(i % 2 == 0 ? uniform_layer() : mixed_layer(), profile(), 64);
        if (!match || match->quality != MatchQuality::exact) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}
