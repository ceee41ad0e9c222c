#include "fuzz/tuningdb/tuningdb_fuzz.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "fuzz/mutator.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/record_file.hpp"

using namespace varmoe;
using namespace varmoe::fuzz;

namespace {

TuningRecord record_of(const LayerSpec& spec, std::int64_t tokens) {
  const auto device = *model::find_profile("h200");
  TuningRecord record;
  record.key = make_tuning_key(spec, tuningdb::tuning_device(device), tokens);
  record.config = model::predict_layer_config(spec, tokens, device);
  record.us = 12.5;
  record.verified = true;
  record.epochs = tuningdb::current_epochs(record.config);
  record.config_space = 1;
  record.date = "2026-11-21T15:04:05Z";
  return record;
}

std::vector<TuningRecord> records() {
  LayerSpec mixed = uniform_spec(1024, 8, 512, 2);
  mixed.expert_widths = {768, 512, 1024, 512, 768, 512, 768, 512};
  return {record_of(uniform_spec(2048, 64, 1024, 8), 64), record_of(mixed, 16),
          record_of(uniform_spec(256, 8, 128, 2, Activation::relu2), 4096)};
}

std::string file_text(const std::vector<TuningRecord>& all) {
  tuningdb::RecordFile file;
  for (const TuningRecord& record : all) tuningdb::merge_record(file, record);
  return *tuningdb::record_file_text(file);
}

/// Mutates the seeds, keeps what is accepted, and fails on any promise that is not kept.
void mutate_all(std::vector<std::string> seeds, Outcome (*read)(std::string_view), int rounds) {
  for (const std::string& seed : seeds) {
    CAPTURE(seed);
    const Outcome outcome = read(seed);
    CHECK(outcome.accepted);
    CHECK(outcome.broken == nullptr);
  }
  Mutator mutator(41);
  int accepted = 0;
  for (int i = 0; i < rounds; ++i) {
    std::string text = mutator.mutate(seeds[mutator.below(seeds.size())], seeds);
    const Outcome outcome = read(text);
    if (outcome.broken != nullptr) {
      CAPTURE(text);
      FAIL_CHECK(outcome.broken);
    }
    accepted += outcome.accepted ? 1 : 0;
    if (outcome.accepted && seeds.size() < 400 && text.size() < 8192) seeds.push_back(std::move(text));
  }
  // Both outcomes are common, or the mutations reach only one side of the readers.
  CHECK(accepted > rounds / 20);
  CHECK(accepted < rounds * 19 / 20);
}

}  // namespace

TEST_CASE("fault 41: files of tuning records, mutated") {
  std::vector<std::string> seeds = {file_text(records())};
  for (const TuningRecord& record : records()) seeds.push_back(file_text({record}));
  mutate_all(std::move(seeds), tuning_records, 4000);
}

TEST_CASE("fault 41: other libraries' files of tuned configs, mutated") {
  std::vector<TuningRecord> uniform = {record_of(uniform_spec(2048, 64, 1024, 8), 64)};
  std::vector<std::string> seeds = {tuningdb::export_aiter_csv(uniform).text};
  seeds.push_back(
      "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,impl,splitK,pad_m,pad_n\n132,64,2048,1024,"
      "64,8,ActivationType.Silu,torch.bfloat16,asm,1,16,0\n");
  seeds.push_back(
      R"({"64": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 8, "num_warps": 4, "num_stages": 3}})");
  mutate_all(std::move(seeds), tuning_csv, 4000);
}
