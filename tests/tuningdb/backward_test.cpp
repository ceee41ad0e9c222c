// Records of backward passes: what tells them from a forward's, and that neither is taken for the other.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "model/gradient_config.hpp"
#include "model/strict_json.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/fixture.hpp"
#include "tuningdb/misses.hpp"
#include "tuningdb/record_order.hpp"
#include "tuningdb/snapshot.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

StoredRecord read_text(const std::string& text) {
  const auto json = model::parse_strict_json(text);
  REQUIRE(json.ok());
  return read_record(*json, "here");
}
std::string refusal(const std::string& text) {
  try {
    read_text(text);
  } catch (const model::FieldError& error) {
    return error.what();
  }
  return {};
}

TuningSnapshot saved(const std::string& folder, const std::vector<TuningRecord>& records) {
  const auto report = open_store(folder).save(records);
  REQUIRE_MESSAGE(report.ok(), (report.ok() ? "" : report.error().message()));
  TuningSources sources;
  sources.paths = {folder};
  sources.shipped = {};
  return TuningSnapshot::load(sources, Log());
}

}  // namespace

TEST_CASE("a record of a backward pass is read as it is written") {
  LayerSpec on_input = uniform_layer();
  on_input.weight_on_input = on_input.bias = true;
  for (const LayerSpec& spec : {uniform_layer(), mixed_layer(), on_input}) {
    for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
      const TuningRecord record = backward_record_of(spec, 4096, type);
      REQUIRE(check_record(record).ok());
      REQUIRE(check_config(record).ok());
      const std::string text = record_text(record);
      CHECK(read_text(text).record == record);
      CHECK(read_text(text).unknown.empty());
      CHECK(text.find(type == GradientType::fp32 ? R"("gradient_dtype": "fp32")"
                                                 : R"("gradient_dtype": "bf16")") != std::string::npos);
      // A library that knows no backward passes must not take it for a forward: it asks for these.
      for (const char* field : {"\"fc1\":", "\"fc2\":", "\"sort\":"})
        CHECK(text.find(field) == std::string::npos);
      const auto key = read_key_text(key_text(record.key), "here");
      REQUIRE(key.ok());
      CHECK(*key == record.key);
    }
  }
}

TEST_CASE("fault 22: a wrong field of a backward pass's record is told by name, value and choices") {
  const std::string text = record_text(backward_record_of(uniform_layer(), 4096));
  const struct {
    const char *from, *to, *says;
  } faults[] = {
      {R"("pass": "backward")", R"("pass": "sideways")", "pass is \"sideways\"; must be one of backward"},
      {R"("gradient_dtype": "bf16")", R"("gradient_dtype": "fp16")",
       "gradient_dtype is \"fp16\"; must be bf16, as dtype, or fp32"},
      {R"("pass": "backward", )", "", "gradient_dtype is \"bf16\"; is of records whose pass is backward"},
      {R"(, "gradient_dtype": "bf16")", "", "gradient_dtype is missing"},
      {R"("dh": {)", R"("dh": {"speed": 1, )", "speed"},
      {R"("fc1_gradient": {"schedule": "wgmma")", R"("fc1_gradient": {"schedule": "wgmma_pingpong")",
       "fc1_gradient: schedule is \"wgmma_pingpong\"; must be one of mma_sync, wgmma"},
      {R"("fc2_gradient": {"schedule")", R"("fc2_gradient": {"split": 2, "schedule")", "split"},
      {R"("err_dx": 0)", R"("err_dx": 2)", "err_dx is 2"},
      {R"("us_dh": )", R"("us_dh": -)", "us_dh is -"},
      {R"("epochs": {"dh": 3, )", R"("epochs": {)", "epochs: dh is missing"},
      {R"("epochs": {)", R"("epochs": {"fc1": 1, )", "fc1"},
  };
  for (const auto& fault : faults) {
    CAPTURE(fault.to);
    const std::string said = refusal(replaced(text, fault.from, fault.to));
    CHECK_MESSAGE(said.find(fault.says) != std::string::npos, said);
  }
  CHECK(refusal(replaced(record_text(record_of(uniform_layer(), 64)), R"("batch_invariant": false)",
                         R"("batch_invariant": false, "gradient_dtype": "fp32")"))
            .find("is of records whose pass is backward") != std::string::npos);
}

TEST_CASE("what cannot be written of a backward pass is refused") {
  TuningRecord record = backward_record_of(uniform_layer(), 64);
  record.of_products.us_dx = NAN;
  CHECK_FALSE(check_record(record).ok());
  record = backward_record_of(uniform_layer(), 64);
  record.of_products.err_dh = 1.5;
  CHECK_FALSE(check_record(record).ok());
  // What the pass has no fields for would be lost.
  record = backward_record_of(uniform_layer(), 64);
  record.us1 = 5;
  const Status other = check_record(record);
  REQUIRE_FALSE(other.ok());
  CHECK(other.error().message() == "a record of a backward pass has config or figures of the other");
  record = record_of(uniform_layer(), 64);
  record.of_products.us_dh = 5;
  CHECK_FALSE(check_record(record).ok());
  record = record_of(uniform_layer(), 64);
  record.key.gradient_type = GradientType::fp32;
  const Status forward = check_record(record);
  REQUIRE_FALSE(forward.ok());
  CHECK(forward.error().message().find("a forward has no gradients") != std::string::npos);
}

TEST_CASE("forward and backward of a layer, and each type of gradients, are records of their own") {
  const TuningRecord forward = record_of(uniform_layer(), 4096), later = record_of(uniform_layer(), 8192),
                     backward = backward_record_of(uniform_layer(), 4096),
                     fp32 = backward_record_of(uniform_layer(), 4096, GradientType::fp32),
                     smaller = backward_record_of(uniform_layer(), 1024, GradientType::fp32);
  const std::string text = file_text({fp32, smaller, backward, later, forward});
  CHECK(text == file_text({forward, later, backward, smaller, fp32}));
  CHECK(check_record_file(text, "f.json").empty());
  const auto file = parse_record_file(text, "f.json");
  REQUIRE(file.ok());
  REQUIRE(file->records.size() == 5);
  CHECK(file->records[0].record == forward);
  CHECK(file->records[1].record == later);
  CHECK(file->records[2].record == backward);
  CHECK(file->records[3].record == smaller);
  CHECK(file->records[4].record == fp32);
  CHECK(to_string(fp32.key).find("; backward, fp32 gradients") != std::string::npos);

  // Merged like others: the later one stays.
  TuningRecord newer = fp32;
  newer.date = "2027-01-01T00:00:00Z";
  newer.us *= 2;
  CHECK(file_text({fp32, newer}) == file_text({newer}));
  CHECK(file_text({newer, fp32}) == file_text({newer}));
}

TEST_CASE("a look-up answers with the pass and the gradients that it is asked for") {
  TempDir folder;
  TuningRecord backward = backward_record_of(uniform_layer(), 4096);
  backward.backward.dh.raster = 13;
  const TuningSnapshot records = saved(folder.path(), {record_of(uniform_layer(), 4096), backward});
  CHECK(records.size() == 2);
  const auto find = [&](std::int64_t tokens, GradientType type, const LayerSpec& spec = uniform_layer()) {
    return records.find_backward(spec, profile(), tokens, type);
  };
  const auto exact = find(4000, GradientType::layer_dtype);
  REQUIRE(exact);
  CHECK(exact->quality == MatchQuality::exact);
  CHECK(exact->backward == backward.backward);
  CHECK(exact->record->us == backward.us);
  const auto near = find(2048, GradientType::layer_dtype);
  REQUIRE(near);
  CHECK(near->quality == MatchQuality::near_bucket);
  CHECK_FALSE(find(512, GradientType::layer_dtype));
  CHECK_FALSE(find(4096, GradientType::fp32));
  LayerSpec other = uniform_layer();
  other.fc1_layout = WeightLayout::kn;
  CHECK_FALSE(find(4096, GradientType::layer_dtype, other));
  const auto forward = records.find(uniform_layer(), profile(), 4096);
  REQUIRE(forward);
  CHECK(forward->record->key.pass == TuningPass::forward);
  CHECK_FALSE(TuningSnapshot().find_backward(uniform_layer(), profile(), 4096, GradientType::fp32));
}

TEST_CASE("a backward pass measured with kernels of another epoch is second choice, and why is said") {
  TuningRecord record = backward_record_of(uniform_layer(), 4096);
  CHECK(staleness(record).empty());
  const struct {
    std::int32_t TuningEpochs::*epoch;
    const char* says;
  } cases[] = {{&TuningEpochs::dh, "dh was measured at epoch 99 of fc1_wgmma"},
               {&TuningEpochs::dx, "dx was measured at epoch 99 of fc2_wgmma"},
               {&TuningEpochs::fc1_gradient, "fc1_gradient was measured at epoch 99 of gradient_wgmma"},
               {&TuningEpochs::fc2_gradient, "fc2_gradient was measured at epoch 99 of gradient_wgmma"}};
  for (const auto& c : cases) {
    TuningRecord stale = record;
    stale.epochs.*c.epoch = 99;
    CHECK_MESSAGE(staleness(stale).rfind(c.says, 0) == 0, staleness(stale));
  }
  // A forward's epochs do not enter.
  record.epochs.fc1 = record.epochs.combine = 99;
  CHECK(staleness(record).empty());

  TempDir folder;
  TuningRecord old = backward_record_of(uniform_layer(), 4096);
  old.epochs.fc2_gradient = 99;
  const auto match =
      saved(folder.path(), {old}).find_backward(uniform_layer(), profile(), 4096, GradientType::layer_dtype);
  REQUIRE(match);
  CHECK(match->quality == MatchQuality::stale_epoch);
}

TEST_CASE("fault 24: products outside the config space, or that do not go together, are not saved") {
  TempDir folder;
  const auto refused = [&](const TuningRecord& record) {
    const auto saved = open_store(folder.path()).save({&record, 1});
    return saved.ok() ? std::string() : saved.error().message();
  };
  TuningRecord record = backward_record_of(uniform_layer(), 4096);
  record.backward.fc1_gradient.block_n = 96;
  CHECK(refused(record).find("fc1_gradient: schedule=wgmma,block_m=128,block_n=96") != std::string::npos);
  record = backward_record_of(uniform_layer(), 4096);
  record.backward.fc2_gradient = {Schedule::wgmma, 128, 128, 4, GatherMode::copy};
  record.backward.dh.gather = GatherMode::fused;
  CHECK(refused(record).find("dh: gather is fused; must be copy") != std::string::npos);
  record.backward = model::with_copies(record.backward);
  CHECK(refused(record) == "");
  record.backward.dh.block_n = 17;
  CHECK(refused(record).find("dh: ") != std::string::npos);
}

TEST_CASE("the CSV of another library has no rows of backward passes, and says so") {
  const std::vector<TuningRecord> records = {record_of(uniform_layer(), 64),
                                             backward_record_of(uniform_layer(), 64)};
  const CsvExport csv = export_aiter_csv(records);
  CHECK(std::count(csv.text.begin(), csv.text.end(), '\n') == 2);
  CHECK(std::any_of(csv.dropped.begin(), csv.dropped.end(), [](const std::string& text) {
    return text.find("backward, bf16 gradients: no row: the CSV has forwards alone") != std::string::npos;
  }));
}

TEST_CASE("a miss of a backward pass is kept as such") {
  TempDir folder;
  const std::string path = folder.path() + "/misses";
  const TuningKey key = backward_record_of(uniform_layer(), 4096, GradientType::fp32).key;
  {
    MissFile file(path, Log());
    file.add(key);
    file.add(record_of(uniform_layer(), 4096).key);
    file.add(key);
  }
  const auto read = read_misses(path);
  REQUIRE(read.ok());
  CHECK(read->problems.empty());
  CHECK(read->keys == std::vector<TuningKey>{key, record_of(uniform_layer(), 4096).key});
  const std::string command = tune_training_command(uniform_layer(), 64, GradientType::fp32);
  CHECK(command == tune_command(uniform_layer(), 64) + " --training --fp32-gradients");
  CHECK(tune_training_command(uniform_layer(), 64, GradientType::layer_dtype) ==
        tune_command(uniform_layer(), 64) + " --training");
}
