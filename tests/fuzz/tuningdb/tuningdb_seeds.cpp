#include "fuzz/tuningdb/tuningdb_seeds.hpp"

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "model/gradient_config.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/record_file.hpp"

namespace varmoe::fuzz {
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

TuningRecord backward_of(const LayerSpec& spec, std::int64_t tokens, GradientType type) {
  const auto device = *model::find_profile("h200");
  TuningRecord record = record_of(spec, tokens);
  record.key = make_backward_tuning_key(spec, tuningdb::tuning_device(device), tokens, type);
  record.config = {};
  record.backward = model::predict_products(spec, tokens, device);
  record.of_products = {1, 2, 3, 4, 0, 0, 0.25, 0};
  record.epochs = tuningdb::current_epochs(record.backward);
  return record;
}

std::vector<TuningRecord> records() {
  LayerSpec mixed = uniform_spec(1024, 8, 512, 2);
  mixed.expert_widths = {768, 512, 1024, 512, 768, 512, 768, 512};
  LayerSpec oai = uniform_spec(256, 8, 128, 2, Activation::swiglu_oai);
  oai.activation_params = {1.5f, 6.0f};
  oai.bias = true;
  LayerSpec shared = uniform_spec(256, 8, 128, 2);
  shared.shared_widths = {256};
  shared.shared_gate = true;
  return {record_of(uniform_spec(2048, 64, 1024, 8), 64),
          record_of(mixed, 16),
          record_of(uniform_spec(256, 8, 128, 2, Activation::relu2), 4096),
          record_of(oai, 64),
          record_of(shared, 64),
          backward_of(mixed, 4096, GradientType::fp32),
          backward_of(shared, 64, GradientType::layer_dtype)};
}

std::string file_text(const std::vector<TuningRecord>& all) {
  tuningdb::RecordFile file;
  for (const TuningRecord& record : all) tuningdb::merge_record(file, record);
  return *tuningdb::record_file_text(file);
}

/// The text with its first `from` replaced.
std::string with(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

constexpr char kShortForm[] =
    "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,impl,splitK,pad_m,pad_n\n";

/// AITER's columns with every cell that is read, and some of other libraries' kernels.
constexpr char kLongForm[] =
    "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,"
    "doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,bw\n";

}  // namespace

std::vector<std::string> record_seeds() {
  std::vector<std::string> seeds = {file_text(records())};
  for (const TuningRecord& record : records()) seeds.push_back(file_text({record}));
  const std::string one = seeds[1];
  TuningRecord full = records()[0];
  full.us1 = full.us2 = 5;
  full.err1 = full.err2 = 0.01;
  full.tflops = full.bw = 100;
  full.baseline_us = 20;
  full.spread = 0.1;
  full.library = "0.1.0";
  full.kernel_digest = "00ff";
  full.nvrtc = "13.0.48";
  full.driver = "580.1";
  full.sm_clock_mhz = full.memory_clock_mhz = 1980;
  full.candidates = 7;
  full.config_space = model::kConfigSpaceVersion;
  seeds.push_back(file_text({full}));
  seeds.push_back(with(one, "\"records\": [\n", "\"other\": {\"a\": [1, 2.5, null]},\n\"records\": [\n3,\n"));
  seeds.push_back(with(one, "\"us\":", "\"unknown\": [true, \"\\u00e4\\n\"], \"us\":"));
  // Twice the same key, and out of order.
  const std::size_t begin = one.find("[\n") + 2, end = one.rfind("\n]");
  seeds.push_back(with(one, "\n]}", ",\n" + one.substr(begin, end - begin) + "\n]}"));
  // The second is measured later and better.
  seeds.push_back(with(
      one, "\n]}",
      ",\n" + with(with(one, "12.5", "11.5"), "2026-11", "2026-12").substr(begin, end - begin) + "\n]}"));
  seeds.push_back(
      with(one, "\n]}",
           ",\n" + with(one, "\"verified\": true", "\"verified\": false").substr(begin, end - begin + 1) +
               "\n]}"));
  seeds.push_back(with(seeds[2], "\n]}", ",\n" + one.substr(begin, end - begin) + "\n]}"));
  return seeds;
}

std::vector<std::string> refused_record_seeds() {
  std::vector<std::string> seeds = {"[]",
                                    "{\"varmoe_tuning\": 2, \"records\": []}",
                                    "{\"varmoe_tuning\": 1}",
                                    "{\"varmoe_tuning\": 1, \"records\": {}}",
                                    "{\"varmoe_tuning\": 1, \"records\": [" + repeated("1,", 30) + "{}]}",
                                    "{\"varmoe_tuning\": 1, \"records\": [" + repeated("1,", 16400) + "{}]}"};
  const std::string one = file_text({records()[0]});
  // A field of another type, name or range each.
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"arch\"", "\"arc\""},
           {"\"sm_90a\"", "\"sm_9\""},
           {"\"sm_90a\"", "90"},
           {"\"silu_mul\"", "\"tanh\""},
           {"\"silu_mul\"", "\"swiglu_oai\""},
           {"\"dtype\"", "\"act_params\": {}, \"dtype\""},
           {"\"inter_dim\": 1024", "\"inter_dim\": []"},
           {"\"inter_dim\": 1024", "\"inter_dim\": [3]"},
           {"\"inter_dim\": 1024", "\"inter_dim\": [[64, 1024, 1]]"},
           {"\"inter_dim\": 1024", "\"inter_dim\": [" + repeated("[1, 8],", 1024) + "[1, 8]]"},
           {"\"inter_dim\": 1024", "\"inter_dim\": [[63, 1024]]"},
           {"\"inter_dim\"", "\"shared_inter_dim\": 3, \"inter_dim\""},
           {"\"inter_dim\"", "\"shared_inter_dim\": [], \"inter_dim\""},
           {"\"none\"", "\"fp8\""},
           {"\"verified\"", "\"verify\""},
           {"\"epochs\"", "\"epoch\""},
           {"\"epochs\": {", "\"epochs\": {\"other\": 1, "},
           {"\"us\": 12.5", "\"us\": 0"},
           {"2026-11", "2026/11"},
           {"\"library\": \"\"", "\"library\": \"\\n\""},
           {"\"bias\": false", "\"bias\": null"}}) {
    if (one.find(from) != std::string::npos) seeds.push_back(with(one, from, to));
  }
  return seeds;
}

std::vector<std::string> csv_seeds() {
  const std::vector<TuningRecord> uniform = {record_of(uniform_spec(2048, 64, 1024, 8), 64)};
  std::vector<std::string> seeds = {tuningdb::export_aiter_csv(uniform).text};
  seeds.push_back(std::string(kShortForm) +
                  "132,64,2048,1024,64,8,ActivationType.Silu,torch.bfloat16,asm,1,16,0\n");
  seeds.push_back(
      R"({"64": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 8, "num_warps": 4, "num_stages": 3}})");
  seeds.push_back("\xEF\xBB\xBF " + std::string(kLongForm) +
                  "\r\n 80,64,2048,1024,64,8,Gelu,fp16,torch.float16,None,QuantType.No,False,True,32,2,1.5,"
                  "\"a \"\"b\"\", c\",0.3%,2,k,0.1%,5,0,10,20\n\n"
                  "80,64,2048,1024,64,8,Silu,bf16,bf16,bf16,none,0,false,,,,,,,,,,,,\r"
                  "80,64,2048,1024,64,8,ActivationType.Swiglu,bf16,,,No,true,0,64,1,,,,,,,7,,,");
  seeds.push_back(with(seeds[0], "fp16", "bf16") + "short,row\n" + repeated("1,2\n", 120));
  TuningRecord plain = record_of(uniform_spec(2048, 64, 1024, 8, Activation::silu, DType::fp16), 16);
  plain.us1 = plain.us2 = 5;
  plain.err1 = plain.err2 = 0.01;
  const std::vector<TuningRecord> more = {plain};
  seeds.push_back(tuningdb::export_aiter_csv(more).text);
  LayerSpec scaled = uniform_spec(2048, 64, 1024, 8);
  scaled.weight_on_input = true;
  const std::vector<TuningRecord> on_input = {record_of(scaled, 16)};
  seeds.push_back(tuningdb::export_aiter_csv(on_input).text);
  return seeds;
}

std::vector<std::string> refused_csv_seeds() {
  const std::vector<TuningRecord> uniform = {record_of(uniform_spec(2048, 64, 1024, 8), 64)};
  const std::string ours = tuningdb::export_aiter_csv(uniform).text;
  const std::string row =
      std::string(kLongForm) + "80,64,2048,1024,64,8,Gelu,fp16,,,,0,0,32,2,1,a,0,2,b,0,5,0,1,2\n";
  std::vector<std::string> seeds = {"",
                                    "\n\n",
                                    "\"open",
                                    "\"closed\"text",
                                    "a,a",
                                    "a,b\n1",
                                    std::string("a\0", 2),
                                    repeated(",", 300),
                                    "other," + row};
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"Gelu", "Relu"},
                                                        {"fp16", "int8"},
                                                        {"fp16,,", "fp16,int8,"},
                                                        {"fp16,,,", "fp16,,,fp8"},
                                                        {",0,0,32", ",2,0,32"},
                                                        {"Gelu,fp16,,,,0", "Swiglu,fp16,,,,0"},
                                                        {",5,0,1,2", ",x,0,1,2"},
                                                        {",5,0,1,2", ",-5,0,1,2"},
                                                        {",5,0,1,2", ",1e99,0,1,2"},
                                                        {"\n80", "\n0"},
                                                        {"\n80", "\n99999999999999999999"},
                                                        {",32,2,", ",70000,2,"}}) {
    seeds.push_back(with(row, from, to));
  }
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"\n132", "\n131"},
                                                        {"\n132,64", "\n132,65"},
                                                        {"varmoe:", "other:"},
                                                        {"varmoe:", "varmoe:x"},
                                                        {"varmoe:schedule", "varmoe:tokens=1-2;schedule"},
                                                        {"varmoe:", "varmoe:stages=1,"},
                                                        {"block_m=", "block_m=1"},
                                                        {"stages=", "stages=7"},
                                                        {",12.5,", ",0,"}}) {
    seeds.push_back(with(ours, from, to));
  }
  return seeds;
}

std::vector<std::string> inexpressible_record_seeds() {
  const LayerSpec usual = uniform_spec(2048, 64, 1024, 8);
  std::vector<LayerSpec> specs(7, usual);
  specs[0].fc1_layout = WeightLayout::kn;
  specs[1].fc2_layout = WeightLayout::kn;
  specs[2].gate_order = GateOrder::interleaved;
  specs[3].bias = true;
  specs[4].batch_invariant = true;
  specs[5].shared_widths = {512};
  specs[6].activation = Activation::identity;
  std::vector<std::string> seeds = record_seeds();
  for (const LayerSpec& spec : specs) seeds.push_back(file_text({record_of(spec, 64)}));
  TuningRecord other = record_of(usual, 64);
  other.config.sort.block_threads = 512;
  seeds.push_back(file_text({other}));
  other = record_of(usual, 64);
  other.config.gather.block_threads = 512;
  seeds.push_back(file_text({other}));
  other = record_of(usual, 64);
  other.config.combine.block_threads = 512;
  seeds.push_back(file_text({other}));
  return seeds;
}

}  // namespace varmoe::fuzz
