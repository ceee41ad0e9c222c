#include <doctest/doctest.h>

#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/csv_text.hpp"
#include "tuningdb/fixture.hpp"
#include "tuningdb/vllm_hints.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

const std::string kShort =
    "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,impl,splitK,pad_m,pad_n\n";

bool mentions(const std::vector<std::string>& sentences, const std::string& words) {
  return std::any_of(sentences.begin(), sentences.end(),
                     [&](const std::string& s) { return s.find(words) != std::string::npos; });
}

/// What the CSV keeps of a record.
TuningRecord kept(TuningRecord record) {
  TuningRecord rest;
  rest.key = record.key;
  rest.config.fc1 = record.config.fc1;
  rest.config.fc2 = record.config.fc2;
  rest.us1 = record.us1, rest.us2 = record.us2, rest.err1 = record.err1, rest.err2 = record.err2;
  rest.us = record.us, rest.tflops = record.tflops, rest.bw = record.bw;
  return rest;
}

}  // namespace

TEST_CASE("CSV cells: quotes, commas, line ends, blank lines, CRLF, a missing last newline") {
  const auto table = parse_csv("a, b ,\"c\"\r\n1,\"x,\"\"y\"\"\",\"two\nlines\"\r\n\r\n3,,");
  REQUIRE(table.ok());
  CHECK(table->columns == std::vector<std::string>{"a", "b", "c"});
  REQUIRE(table->rows.size() == 2);
  CHECK(table->rows[0].cells == std::vector<std::string>{"1", "x,\"y\"", "two\nlines"});
  CHECK(table->rows[0].line == 2);
  CHECK(table->rows[1].cells == std::vector<std::string>{"3", "", ""});
  CHECK(table->rows[1].line == 5);
  for (const std::string text : {"plain", "a,b", "say \"so\"", "two\r\nlines", ""}) {
    const auto again = parse_csv("h,g\n" + csv_cell(text) + ",1\n");
    REQUIRE(again.ok());
    CHECK(again->rows[0].cells[0] == text);
  }
}

TEST_CASE("fault 21: hostile CSV is refused with a message") {
  for (const std::string& text : {std::string(), std::string("\n\n"), std::string("a,\"b"),
                                  std::string("a,\"b\"c\n"), std::string("a,a\n"), std::string("a\0b\n", 4),
                                  "a\n" + std::string(17u << 20, 'x'), std::string(1000, ',')}) {
    const auto table = parse_csv(text);
    REQUIRE(!table.ok());
    CHECK(table.error().message().size() < 200);
  }
  std::string rows = "a\n";
  for (int i = 0; i < 70000; ++i) rows += "1\n";
  CHECK(!parse_csv(rows).ok());
}

TEST_CASE("records survive export and import as far as the CSV goes") {
  TuningRecord plain = record_of(uniform_layer(), 64), gelu = record_of(uniform_layer(), 128), oai = plain;
  gelu.key = make_tuning_key(uniform_spec(1024, 8, 512, 2, Activation::gelu_erf, DType::fp16),
                             tuning_device(profile()), 1);
  oai.key = make_tuning_key(uniform_spec(2880, 32, 2880, 4, Activation::swiglu_oai), tuning_device(profile()),
                            4096);
  gelu.config.fc1.block_m = 32;
  gelu.config.fc1.gather = GatherMode::copy;
  gelu.err1 = 0.5;
  gelu.key.doweight_stage1 = true;
  oai.config.fc2.raster = 3;
  const std::vector<TuningRecord> records = {plain, gelu, oai};
  const CsvExport exported = export_aiter_csv(records);
  CHECK(exported.text.rfind(
            "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,"
            "doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,"
            "bw\n",
            0) == 0);
  CHECK(exported.text.find(
            "\n132,64,2048,1024,64,8,ActivationType.Silu,torch.bfloat16,torch.bfloat16,torch.bfloat16,"
            "QuantType.No,1,0,128,0,") != std::string::npos);
  const auto imported = import_aiter_csv(exported.text, "a.csv", profile());
  REQUIRE(imported.ok());
  CHECK(imported->dropped.empty());
  CHECK(imported->hints.empty());
  REQUIRE(imported->records.size() == 3);
  for (std::size_t i = 0; i < records.size(); ++i) {
    CHECK(imported->records[i] == kept(records[i]));
    CHECK(!imported->records[i].verified);
    CHECK(!staleness(imported->records[i]).empty());
  }
  CHECK(export_aiter_csv(imported->records).text == exported.text);
}

TEST_CASE("what a CSV cannot hold is told") {
  const auto changed = [](auto change) {
    LayerSpec spec = uniform_layer();
    change(spec);
    return record_of(spec, 64);
  };
  const std::vector<std::pair<TuningRecord, std::string>> all = {
      {record_of(mixed_layer(), 64), "several widths"},
      {changed([](LayerSpec& s) { s.fc1_layout = WeightLayout::kn; }), "kn weights"},
      {changed([](LayerSpec& s) { s.gate_order = GateOrder::up_first; }), "up_first"},
      {changed([](LayerSpec& s) { s.batch_invariant = true; }), "batch invariance"},
      {changed([](LayerSpec& s) { s.bias = true; }), "biases"},
      {changed([](LayerSpec& s) { s.activation = Activation::relu2; }), "relu2"},
      {changed([](LayerSpec& s) { s.activation = Activation::gelu_tanh_mul; }), "gelu_tanh_mul"},
      {changed([](LayerSpec& s) { s.activation = Activation::swiglu_oai, s.activation_params.limit = 5; }),
       "parameters"},
  };
  for (const auto& [record, why] : all) {
    CAPTURE(why);
    const CsvExport exported = export_aiter_csv({&record, 1});
    CHECK(std::count(exported.text.begin(), exported.text.end(), '\n') == 1);
    REQUIRE(exported.dropped.size() == 1);
    CHECK(exported.dropped[0].find(why) != std::string::npos);
  }
  TuningRecord record = record_of(uniform_layer(), 64);
  record.config.sort.block_threads = 512;
  const CsvExport exported = export_aiter_csv({&record, 1});
  CHECK(exported.dropped.size() == 2);
  CHECK(mentions(exported.dropped, "sort, gather and combine"));
  CHECK(mentions(exported.dropped, "verified"));
}

TEST_CASE("rows of other kernels are hints, whatever the header's columns and their order") {
  const std::string text =
      "_tag,gfx,us,block_m,ksplit,cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_type,use_"
      "g1u1,kernelName1\n"
      ",gfx942,41.5,64,2,304,100,4096,1536,128,8,Silu,torch.bfloat16,QuantType.No,True,somebody_elses_"
      "kernel\n";
  const auto imported = import_aiter_csv(text, "dir/a.csv", profile());
  REQUIRE(imported.ok());
  CHECK(imported->records.empty());
  REQUIRE(imported->hints.size() == 1);
  const TuningHint& hint = imported->hints[0];
  CHECK(hint.source == "dir/a.csv: line 2");
  CHECK(hint.cu_num == 304);
  CHECK(hint.token == 100);
  CHECK(hint.model_dim == 4096);
  CHECK(hint.inter_dim == 1536);
  CHECK(hint.expert == 128);
  CHECK(hint.topk == 8);
  CHECK(hint.act_type == Activation::silu_mul);
  CHECK(hint.dtype == DType::bf16);
  CHECK(hint.block_m == 64);
  CHECK(hint.ksplit == 2);
  CHECK(hint.us == 41.5);
  REQUIRE(imported->dropped.size() == 1);
  CHECK(imported->dropped[0] == "dir/a.csv: columns that are not used: _tag, gfx");
}

TEST_CASE("the short form is read as hints") {
  const auto imported = import_aiter_csv(
      kShort + "80,32,8192,1024,16,4,ActivationType.Gelu,torch.float16,asm,3,1,0\n", "a.csv", profile());
  REQUIRE(imported.ok());
  REQUIRE(imported->hints.size() == 1);
  CHECK(imported->hints[0].ksplit == 3);
  CHECK(imported->hints[0].act_type == Activation::gelu_erf_mul);
  CHECK(mentions(imported->dropped, "impl, pad_m, pad_n"));
}

TEST_CASE("fault 22: bad cells cost their row, by line, column and value") {
  const std::string good = "80,32,8192,1024,16,4,ActivationType.Silu,torch.bfloat16,asm,0,1,0\n";
  const std::vector<std::string> cells = {"80", "32", "8192", "1024", "16", "4"};
  const std::vector<std::string> names = {"cu_num", "token", "model_dim", "inter_dim", "expert", "topk"};
  for (std::size_t i = 0; i < cells.size(); ++i) {
    for (const std::string bad : {"4294967296", "-1", "1.9", "true", "\"6 4\"", "0", "9223372036854775807",
                                  "99999999999999999999", ""}) {
      CAPTURE(names[i]);
      CAPTURE(bad);
      std::string row;
      for (std::size_t j = 0; j < cells.size(); ++j) row += (j == i ? bad : cells[j]) + ",";
      const auto imported = import_aiter_csv(
          kShort + row + "ActivationType.Silu,torch.bfloat16,asm,0,1,0\n" + good, "a.csv", profile());
      REQUIRE(imported.ok());
      CHECK(imported->hints.size() == 1);
      CHECK(mentions(imported->dropped, "a.csv: line 2: " + names[i] + " is "));
    }
  }
  for (const auto& [from, to, said] :
       std::vector<std::array<std::string, 3>>{{"torch.bfloat16", "torch.float8_e4m3fn", "dtype"},
                                               {"ActivationType.Silu", "Tanh", "act_type"},
                                               {",asm,0", ",asm,x", "splitK"},
                                               {"1,0\n", "1\n", "11 cells; the header has 12"}}) {
    const auto imported = import_aiter_csv(kShort + replaced(good, from, to), "a.csv", profile());
    REQUIRE(imported.ok());
    CHECK(imported->hints.empty());
    CHECK(mentions(imported->dropped, said));
  }
  const auto missing = import_aiter_csv("cu_num,token\n1,2\n", "a.csv", profile());
  REQUIRE(!missing.ok());
  CHECK(missing.error().message() == "a.csv: has no column \"model_dim\"");
  std::string many = kShort;
  for (int i = 0; i < 5000; ++i) many += "x\n";
  CHECK(import_aiter_csv(many, "a.csv", profile())->dropped.size() < 200);
}

TEST_CASE(
    "fault 24: rows of ours with a config outside the space, of other SMs, or of damaged names are dropped") {
  const TuningRecord record = record_of(uniform_layer(), 64);
  const std::string text = export_aiter_csv({&record, 1}).text;
  const std::vector<std::array<std::string, 3>> changes = {
      {"stages=3", "stages=8", "shared memory"},
      {"block_m=128", "block_m=7", "block_m"},
      {"\n132,", "\n80,", "132 SMs"},
      {",64,2048", ",65,2048", "power of two"},
      {"schedule=mma_sync,block_m", "block_m", "every key"},
      {"stages=3", "stages=3,tokens=1-2", "every key"},
      {"gather=fused\",0%,", "gather=fused\",-1%,", "err"},
      {"torch.bfloat16,QuantType.No", "torch.float8_e4m3fn,QuantType.No", "q_dtype_w"},
      {"QuantType.No", "QuantType.per_1x128", "q_type"},
      {"QuantType.No,1,0", "QuantType.No,1,2", "doweight_stage1"},
  };
  REQUIRE(import_aiter_csv(text, "a.csv", profile())->records.size() == 1);
  for (const auto& [from, to, said] : changes) {
    CAPTURE(said);
    const auto imported = import_aiter_csv(replaced(text, from, to), "a.csv", profile());
    REQUIRE(imported.ok());
    CHECK(imported->records.empty());
    CHECK(mentions(imported->dropped, said));
  }
}

TEST_CASE(
    "faults 15 and 41: an exported file cut at every length, and with a bit flipped, does not crash the "
    "reader") {
  const TuningRecord record = record_of(uniform_layer(), 64);
  const std::string text = export_aiter_csv({&record, 1}).text;
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string flipped = text;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at % 8)));
    for (const std::string& damaged : {text.substr(0, at), flipped}) {
      const auto imported = import_aiter_csv(damaged, "a.csv", profile());
      if (!imported.ok()) continue;
      for (const TuningRecord& read : imported->records) CHECK(check_config(read).ok());
    }
  }
}

TEST_CASE("files of vLLM are read as hints, by ascending tokens") {
  const std::string text =
      R"({"16": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1,
    "num_warps": 4, "num_stages": 3}, "4": {"BLOCK_SIZE_M": 16}, "1024": {"BLOCK_SIZE_M": 128, "num_warps": 8},
    "triton_version": "3.2.0", "8": {"BLOCK_SIZE_M": 1.5}, "32": {}})";
  const auto imported = import_vllm_config(text, "configs/E=8,N=14336,device_name=NVIDIA_H200.json");
  REQUIRE(imported.ok());
  REQUIRE(imported->hints.size() == 3);
  CHECK(imported->hints[0].token == 4);
  CHECK(imported->hints[1].token == 16);
  CHECK(imported->hints[2].token == 1024);
  const TuningHint& hint = imported->hints[1];
  CHECK(hint.expert == 8);
  CHECK(hint.inter_dim == 14336);
  CHECK(hint.device_name == "NVIDIA H200");
  CHECK(hint.block_m == 16);
  CHECK(hint.block_n == 64);
  CHECK(hint.block_k == 128);
  CHECK(hint.group_m == 1);
  CHECK(hint.warps == 4);
  CHECK(hint.stages == 3);
  CHECK(imported->dropped.size() == 3);
  CHECK(mentions(imported->dropped, "triton_version"));
  CHECK(mentions(imported->dropped, "8 tokens: BLOCK_SIZE_M is 1.5"));
  for (const char* path :
       {"E=8,N=14336,device_name=NVIDIA_H200,dtype=fp8_w8a8.json", "a.json", "E=8,N=x.json", "E=0,N=8.json",
        "E=8,N=14336.txt", "E=99999999999999999999,N=8.json"}) {
    CAPTURE(path);
    CHECK(!import_vllm_config(text, path).ok());
  }
  CHECK(!import_vllm_config("[]", "E=8,N=8.json").ok());
  CHECK(!import_vllm_config(text.substr(0, 100), "E=8,N=8.json").ok());
}
