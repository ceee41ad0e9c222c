#include <doctest/doctest.h>

#include <functional>
#include <limits>

#include "tuningdb/fixture.hpp"
#include "tuningdb/record_order.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

TEST_CASE("a key stands for its layer whatever the order of the experts") {
  LayerSpec one = mixed_layer(), other = one;
  std::swap(other.expert_widths[0], other.expert_widths[1]);
  const TuningDevice device = tuning_device(profile());
  CHECK(make_tuning_key(one, device, 64) == make_tuning_key(other, device, 64));
  const TuningKey key = make_tuning_key(one, device, 64);
  CHECK(key.inter_dim == std::vector<WidthClass>{{512, 4}, {768, 3}, {1024, 1}});
  CHECK(key.expert == 8);
  CHECK(make_tuning_key(layer_spec_of(key), device, 64) == key);
  CHECK(tuning_signature(layer_spec_of(key)) == tuning_signature(one));
  CHECK(validate(key).ok());
}

TEST_CASE("a key has the token count's bucket") {
  const TuningDevice device = tuning_device(profile());
  CHECK(make_tuning_key(uniform_layer(), device, 0).token == 1);
  CHECK(make_tuning_key(uniform_layer(), device, 65).token == 128);
  CHECK(make_tuning_key(uniform_layer(), device, 128).token == 128);
}

TEST_CASE("what a layer does not read does not enter its key") {
  const TuningDevice device = tuning_device(profile());
  LayerSpec plain = uniform_layer();
  plain.activation = Activation::relu2;
  LayerSpec other = plain;
  other.gate_order = GateOrder::interleaved;
  other.activation_params.alpha = 3;
  CHECK(make_tuning_key(plain, device, 1) == make_tuning_key(other, device, 1));

  LayerSpec oai = uniform_layer();
  oai.activation = Activation::swiglu_oai;
  LayerSpec otherwise = oai;
  otherwise.activation_params.alpha = 3;
  CHECK(make_tuning_key(oai, device, 1) != make_tuning_key(otherwise, device, 1));
}

TEST_CASE("fault 37: each input of a key changed alone gives another key, and another place in the file") {
  const TuningKey base = make_tuning_key(mixed_layer(), tuning_device(profile()), 64);
  const std::vector<std::function<void(TuningKey&)>> changes = {
      [](TuningKey& k) { k.device.arch = "sm_100"; },
      [](TuningKey& k) { k.device.cu_num = 114; },
      [](TuningKey& k) { k.device.name = "NVIDIA H100"; },
      [](TuningKey& k) { k.token = 128; },
      [](TuningKey& k) { k.model_dim += 8; },
      [](TuningKey& k) { k.inter_dim[0].width += 8; },
      [](TuningKey& k) { k.inter_dim[0].count -= 1, k.inter_dim[1].count += 1; },
      [](TuningKey& k) { k.topk += 1; },
      [](TuningKey& k) { k.act_type = Activation::gelu_tanh_mul; },
      [](TuningKey& k) { k.dtype = k.q_dtype_a = k.q_dtype_w = DType::fp16; },
      [](TuningKey& k) { k.fc1_layout = WeightLayout::kn; },
      [](TuningKey& k) { k.fc2_layout = WeightLayout::kn; },
      [](TuningKey& k) { k.gate_order = GateOrder::interleaved; },
      [](TuningKey& k) { k.batch_invariant = true; },
      [](TuningKey& k) { k.bias = true; },
      [](TuningKey& k) { k.doweight_stage1 = true; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    TuningKey key = base;
    changes[i](key);
    CHECK(validate(key).ok());
    CHECK(key != base);
    CHECK(sort_key(key) != sort_key(base));
  }
}

TEST_CASE("fault 22: a key out of range is refused by field") {
  struct Bad {
    std::function<void(TuningKey&)> change;
    const char* named;
  };
  const std::vector<Bad> all = {
      {[](TuningKey& k) { k.device.arch = "gfx942"; }, "arch"},
      {[](TuningKey& k) { k.device.cu_num = 0; }, "cu_num"},
      {[](TuningKey& k) { k.device.name = ""; }, "device"},
      {[](TuningKey& k) { k.device.name = "two\nlines"; }, "device"},
      {[](TuningKey& k) { k.device.name = std::string(200, 'x'); }, "device"},
      {[](TuningKey& k) { k.token = 0; }, "token"},
      {[](TuningKey& k) { k.token = 65; }, "token"},
      {[](TuningKey& k) { k.token = std::numeric_limits<std::int64_t>::max(); }, "token"},
      {[](TuningKey& k) { k.model_dim = 100; }, "hidden_size"},
      {[](TuningKey& k) { k.inter_dim.clear(); }, "inter_dim"},
      {[](TuningKey& k) { std::swap(k.inter_dim[0], k.inter_dim[1]); }, "inter_dim"},
      {[](TuningKey& k) { k.inter_dim[1].count = INT64_MAX; }, "inter_dim[1]"},
      {[](TuningKey& k) { k.inter_dim[1].width += 1; }, "width"},
      {[](TuningKey& k) { k.expert += 1; }, "expert"},
      {[](TuningKey& k) { k.topk = 33; }, "top_k"},
      {[](TuningKey& k) { k.q_dtype_a = DType::fp16; }, "q_dtype_a"},
      {[](TuningKey& k) { k.q_dtype_w = DType::fp16; }, "q_dtype_w"},
      {[](TuningKey& k) { k.use_g1u1 = false; }, "use_g1u1"},
      {[](TuningKey& k) { k.act_params.alpha = 2; }, "act_params"},
      {[](TuningKey& k) { k.act_type = static_cast<Activation>(77); }, "activation"},
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    CAPTURE(i);
    TuningKey key = make_tuning_key(mixed_layer(), tuning_device(profile()), 64);
    all[i].change(key);
    const Status status = validate(key);
    REQUIRE(!status.ok());
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    CHECK(status.error().message().find(all[i].named) != std::string::npos);
  }
}

TEST_CASE("a layer's buckets lie side by side, in ascending order") {
  std::vector<std::string> keys;
  const LayerSpec narrow = uniform_spec(1024, 8, 512, 2), wide = uniform_spec(2048, 8, 512, 2);
  for (const LayerSpec& spec : {narrow, wide}) {
    for (std::int64_t tokens : {1, 2, 8, 16, 128, 1024, 32768}) {
      keys.push_back(sort_key(make_tuning_key(spec, tuning_device(profile()), tokens)));
    }
  }
  CHECK(std::is_sorted(keys.begin(), keys.end()));
}

TEST_CASE(
    "of two records the verified, then the newer config space, then the later, then the faster is kept") {
  const TuningRecord base = record_of(uniform_layer(), 64);
  TuningRecord slower_later = base;
  slower_later.us = 200;
  slower_later.date = "2026-11-21T15:04:06Z";
  CHECK(better(slower_later, base));
  CHECK(!better(base, slower_later));
  TuningRecord unverified = slower_later;
  unverified.verified = false;
  CHECK(better(base, unverified));
  TuningRecord older_space = slower_later;
  older_space.config_space -= 1;
  CHECK(better(base, older_space));
  TuningRecord faster = base;
  faster.us = 99;
  CHECK(better(faster, base));
  TuningRecord other = base;
  other.driver = "600";
  CHECK(better(base, other) != better(other, base));
  CHECK(!better(base, base));
}

TEST_CASE("the file of a device is named after it") {
  CHECK(record_file_name({"sm_90a", 132, "NVIDIA H200"}) == "nvidia-h200.json");
  CHECK(record_file_name({"sm_90a", 132, "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3.json");
  CHECK(record_file_name({"sm_90a", 132, "../../etc/passwd"}) == "etc-passwd.json");
  CHECK(record_file_name({"sm_90a", 132, "///"}) == "device.json");
  CHECK(record_file_name({"sm_90a", 132, std::string(128, 'x')}).size() <= 69);
}
