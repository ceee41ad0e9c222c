#include "tuningdb/misses.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/capture_log.hpp"
#include "support/processes.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;

namespace {

const TuningDevice kH200{"sm_90a", 132, "NVIDIA H200"};

TuningKey key_of(std::int64_t tokens, std::int64_t width = 768) {
  return make_tuning_key(uniform_spec(2048, 128, width, 8), kH200, tokens);
}

}  // namespace

TEST_CASE("misses are appended once each and read back") {
  test::TempDir folder;
  const std::string path = folder.path() + "/misses";
  test::CaptureLog lines;
  {
    tuningdb::MissFile file(path, lines);
    CHECK(::access(path.c_str(), F_OK) != 0);
    file.add(key_of(64));
    file.add(key_of(64));
    file.add(key_of(128));
  }
  tuningdb::MissFile another(path, lines);
  another.add(key_of(128));
  another.add(key_of(64, 512));
  const auto read = tuningdb::read_misses(path);
  REQUIRE(read.ok());
  CHECK(read->problems.empty());
  CHECK(read->keys == std::vector<TuningKey>{key_of(64), key_of(128), key_of(64, 512)});
  CHECK(lines.lines().empty());
}

TEST_CASE("fault 01: a line cut by a kill costs itself alone") {
  test::TempDir folder;
  const std::string path = folder.path() + "/misses";
  { tuningdb::MissFile(path, Log()).add(key_of(64)); }
  REQUIRE(::truncate(path.c_str(), static_cast<off_t>(test::slurp(path).size() - 20)) == 0);
  { tuningdb::MissFile(path, Log()).add(key_of(128)); }
  const auto read = tuningdb::read_misses(path);
  REQUIRE(read.ok());
  CHECK(read->keys == std::vector<TuningKey>{key_of(128)});
  REQUIRE(read->problems.size() == 1);
  CHECK(read->problems[0].find("line 1") != std::string::npos);
}

TEST_CASE("fault 19: a FIFO, a link or a folder in the place of the file is one warning") {
  test::TempDir folder;
  const std::string fifo = folder.path() + "/fifo", link = folder.path() + "/link",
                    target = folder.path() + "/target";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  REQUIRE(::symlink(target.c_str(), link.c_str()) == 0);
  for (const std::string& path : {fifo, link, folder.path(), folder.path() + "/no/such/folder/file"}) {
    test::CaptureLog lines;
    tuningdb::MissFile file(path, lines);
    file.add(key_of(64));
    file.add(key_of(128));
    CHECK_MESSAGE(lines.lines().size() == 1, path);
  }
  CHECK(::access(target.c_str(), F_OK) != 0);
}

TEST_CASE("fault 22: lines that are no keys are told by line and field") {
  test::TempDir folder;
  const std::string path = folder.path() + "/misses";
  { tuningdb::MissFile(path, Log()).add(key_of(64)); }
  std::string text = test::slurp(path);
  std::string bad = text;
  bad.replace(bad.find("\"token\": 64"), 11, "\"token\": 65");
  test::spit(path, "not JSON\n" + bad + "\n" + text);
  const auto read = tuningdb::read_misses(path);
  REQUIRE(read.ok());
  CHECK(read->keys.size() == 1);
  REQUIRE(read->problems.size() == 2);
  CHECK(read->problems[1].find("token is 65") != std::string::npos);
  CHECK_FALSE(tuningdb::read_misses(folder.path() + "/absent").ok());
}

TEST_CASE("the command names the layer in full") {
  CHECK(tuningdb::tune_command(uniform_spec(2048, 128, 768, 8), 64) ==
        "varmoe-tune tune --hidden-size 2048 --experts 128 --width 768 --top-k 8 --tokens 64");
  LayerSpec spec = uniform_spec(256, 3, 128, 2, Activation::swiglu_oai, DType::fp16);
  spec.expert_widths = {256, 128, 128};
  spec.fc1_layout = WeightLayout::kn;
  spec.gate_order = GateOrder::interleaved;
  spec.batch_invariant = spec.bias = spec.weight_on_input = true;
  CHECK(tuningdb::tune_command(spec, 1) ==
        "varmoe-tune tune --hidden-size 256 --widths 128x2,256x1 --top-k 2 --activation swiglu_oai --alpha "
        "1.702 "
        "--limit 7 --dtype fp16 --fc1-layout kn --gate-order interleaved --batch-invariant --bias "
        "--weight-on-input "
        "--tokens 1");
  LayerSpec shared = uniform_spec(2048, 60, 1408, 4);
  shared.shared_widths = {64, 5632, 64};
  shared.shared_gate = true;
  CHECK(tuningdb::tune_command(shared, 64) ==
        "varmoe-tune tune --hidden-size 2048 --experts 60 --width 1408 --top-k 4 "
        "--shared-widths 64x2,5632x1 --shared-gate --tokens 64");
}
