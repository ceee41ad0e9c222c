#include "tuner/worker_protocol.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tuner/landscape.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

MeasureRequest request_of(const LayerSpec& spec) {
  MeasureRequest request{spec, 4096, Effort::final_, {}};
  for (const auto& fc1 : ranked_candidates(spec, model::GemmStage::fc1, 4096, h200(), {6, 2, 1000})) {
    LayerConfig config;
    config.fc1 = fc1;
    config.fc2 = ranked_candidates(spec, model::GemmStage::fc2, 4096, h200(), {1, 0, 1000}).front();
    config.sort = {512, 0};
    config.gather.block_threads = 32;
    config.combine.block_threads = 1024;
    request.configs.push_back(config);
  }
  return request;
}

void check_round_trip(const LayerSpec& spec) {
  const MeasureRequest request = request_of(spec);
  const std::string line = request_line(9, request);
  CHECK(line.find('\n') == std::string::npos);
  const auto read = read_request(line);
  REQUIRE_MESSAGE(read.ok(), (read.ok() ? "" : read.error().message()));
  CHECK(read->id == 9);
  CHECK(read->request.bucket == 4096);
  CHECK(read->request.effort == Effort::final_);
  CHECK(read->request.spec == spec);
  CHECK(read->request.configs == request.configs);
}

Measurement some_measurement() {
  Measurement m = figures(12.345678901234567, 1.0 / 3);
  m.err1 = 1e-7;
  return m;
}

/// Where a scalar value ends that begins at `at`; `at` itself for a list or an object.
std::size_t end_of_scalar(const std::string& line, std::size_t at) {
  if (line[at] == '[' || line[at] == '{') return at;
  return line[at] == '"' ? line.find('"', at + 1) + 1 : line.find_first_of(",}]", at);
}

/// Every line that `line` becomes when one field is renamed or added, or one scalar value is replaced.
std::vector<std::string> damaged(const std::string& line) {
  std::vector<std::string> result;
  for (std::size_t at = line.find("\": "); at != std::string::npos; at = line.find("\": ", at + 1)) {
    result.push_back(std::string(line).insert(at, "x"));
    const std::size_t value = at + 3, end = end_of_scalar(line, value);
    if (end == value) continue;
    for (const char* other : {"null", "-1", "\"?\"", "{}", "[1]", "1.5e3000", "4294967296.5"})
      result.push_back(std::string(line).replace(value, end - value, other));
  }
  for (std::size_t at = line.find('{'); at != std::string::npos; at = line.find('{', at + 1))
    result.push_back(std::string(line).insert(at + 1, "\"more\": 1, "));
  result.push_back(line + "{}");
  result.push_back(line.substr(0, line.size() - 1));
  result.push_back("[" + line + "]");
  result.push_back("");
  return result;
}

/// The line with the value of the first field of that name replaced.
std::string with(std::string line, const std::string& field, const std::string& text) {
  const std::size_t value = line.find("\"" + field + "\": ") + field.size() + 4;
  REQUIRE(value < line.size());
  return line.replace(value, end_of_scalar(line, value) - value, text);
}

}  // namespace

TEST_CASE("a request comes back as it was, for every activation, layout and width") {
  for (const Activation activation :
       {Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
        Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu2,
        Activation::identity}) {
    CAPTURE(to_string(activation));
    LayerSpec spec = uniform_spec(1024, 8, 512, 2, activation, DType::fp16);
    if (activation_info(activation).uses_params) spec.activation_params = {0.1f, 1e-3f};
    spec.batch_invariant = true;
    check_round_trip(spec);
  }
  LayerSpec spec = uniform_spec(2048, 64, 768, 32);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 64 * (1 + static_cast<std::int64_t>(e) % 7);
  check_round_trip(spec);
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  check_round_trip(spec);
  spec.gate_order = GateOrder::interleaved;
  check_round_trip(spec);
  spec.gate_order = GateOrder::up_first;
  check_round_trip(spec);
  spec.bias = true;
  check_round_trip(spec);
  spec.bias = false;
  spec.weight_on_input = true;
  check_round_trip(spec);
  spec.shared_widths = {1024, 8};
  check_round_trip(spec);
  spec.shared_gate = true;
  check_round_trip(spec);
}

TEST_CASE("the largest request that may be sent can be read") {
  LayerSpec spec = uniform_spec(2048, kMaxExperts, kMaxWidth - 1024, 8);
  MeasureRequest request{spec, 64, Effort::quick, std::vector<LayerConfig>(kMaxRequestConfigs)};
  const std::string line = request_line(1, request);
  CHECK(line.size() < kMaxRequestLine / 2);
  CHECK(read_request(line).ok());
}

TEST_CASE("answers, turns and errors come back as they were") {
  const LayerConfig config = request_of(kUniform).configs[1];
  const Measurement m = some_measurement();
  auto reply = read_reply(answer_line(3, 5, config, m));
  REQUIRE_MESSAGE(reply.ok(), (reply.ok() ? "" : reply.error().message()));
  CHECK(reply->kind == WorkerReply::Kind::answer);
  CHECK(reply->id == 3);
  CHECK(reply->index == 5);
  CHECK(reply->config == config);
  CHECK(reply->measurement.us == m.us);
  CHECK(reply->measurement.skewed_us == m.skewed_us);
  CHECK(reply->measurement.fc1_us == m.fc1_us);
  CHECK(reply->measurement.fc2_us == m.fc2_us);
  CHECK(reply->measurement.spread == m.spread);
  CHECK(reply->measurement.err1 == m.err1);
  CHECK(reply->measurement.err2 == m.err2);
  CHECK(reply->measurement.verified);

  Measurement wrong = m;
  wrong.verified = false;
  wrong.err2 = 0.5;
  reply = read_reply(answer_line(3, 5, config, wrong));
  REQUIRE(reply.ok());
  CHECK(!reply->measurement.verified);
  CHECK(reply->measurement.err2 == 0.5);

  reply = read_reply(turn_line(4, 1023));
  REQUIRE(reply.ok());
  CHECK(reply->kind == WorkerReply::Kind::turn);
  CHECK(reply->index == 1023);

  reply = read_reply(error_line(4, "no device"));
  REQUIRE(reply.ok());
  CHECK(reply->kind == WorkerReply::Kind::error);
  CHECK(reply->message == "no device");
  CHECK(read_hello(hello_line()).ok());
}

TEST_CASE("a failure's text arrives whatever is in it, cut where it is long") {
  for (const std::string& text : {std::string("a \"quoted\" word"), std::string("two\nlines\tand \x01 \xff"),
                                  std::string(1 << 20, 'x'), std::string("back\\slash")}) {
    Measurement m;
    m.failure = text;
    const std::string line = answer_line(1, 0, LayerConfig(), m);
    CHECK(line.size() < kMaxReplyLine);
    CHECK(line.find('\n') == std::string::npos);
    const auto reply = read_reply(line);
    REQUIRE_MESSAGE(reply.ok(), (reply.ok() ? "" : reply.error().message()));
    CHECK(!reply->measurement.failure.empty());
    CHECK(reply->measurement.failure[0] == text[0]);
  }
}

TEST_CASE("fault 31: figures that are no times are sent as a failure that says so") {
  for (const double bad : {std::nan(""), 0.0, -1.0, std::numeric_limits<double>::infinity(), 1e300}) {
    for (double Measurement::*field :
         {&Measurement::us, &Measurement::skewed_us, &Measurement::fc1_us, &Measurement::fc2_us}) {
      Measurement m = some_measurement();
      m.*field = bad;
      const auto reply = read_reply(answer_line(1, 0, LayerConfig(), m));
      REQUIRE_MESSAGE(reply.ok(), (reply.ok() ? "" : reply.error().message()));
      CHECK(!reply->measurement.failure.empty());
    }
  }
  Measurement m = some_measurement();
  m.err2 = std::nan("");
  const auto reply = read_reply(answer_line(1, 0, LayerConfig(), m));
  REQUIRE(reply.ok());
  CHECK(!reply->measurement.failure.empty());
}

TEST_CASE("fault 22: a request with any field missing, unknown, out of range or of another type is refused") {
  MeasureRequest request = request_of(kUniform);
  request.configs.resize(1);
  const std::string line = request_line(1, request);
  REQUIRE(read_request(line).ok());
  for (const std::string& bad : damaged(line)) {
    CAPTURE(bad);
    CHECK(!read_request(bad).ok());
  }
}

TEST_CASE("fault 22: a reply with any field missing, unknown, out of range or of another type is refused") {
  Measurement failed;
  failed.failure = "does not compile";
  const LayerConfig config = request_of(kUniform).configs[0];
  for (const std::string& line :
       {answer_line(1, 0, config, some_measurement()), turn_line(1, 0), error_line(1, "why")}) {
    REQUIRE(read_reply(line).ok());
    for (const std::string& bad : damaged(line)) {
      if (bad.find("\"error\": \"?\"") != std::string::npos) continue;  // as good a message as any
      CAPTURE(bad);
      CHECK(!read_reply(bad).ok());
    }
  }
  CHECK(!read_reply(R"({"request": 1, "turn": 1, "error": "both"})").ok());
  CHECK(!read_reply(R"({"request": 1})").ok());
  const std::string failure = answer_line(1, 0, config, failed);
  CHECK(read_reply(failure).ok());
  CHECK(!read_reply(with(failure, "failure", "\"\"")).ok());
}

TEST_CASE(
    "a spec that is not valid and a config that no kernel can be emitted for are refused with their reason") {
  MeasureRequest request = request_of(kUniform);
  request.configs.resize(1);
  request.spec.expert_widths[0] = 12;
  auto read = read_request(request_line(1, request));
  REQUIRE(!read.ok());
  CHECK(read.error().message().find("12") != std::string::npos);
  request = request_of(kUniform);
  request.configs.resize(1);
  request.configs[0].fc1 = GemmConfig();
  request.configs[0].fc1.warps_m = 4;
  request.configs[0].fc1.block_m = 16;
  read = read_request(request_line(1, request));
  REQUIRE(!read.ok());
  CHECK(read.error().message().find("configs[0]") != std::string::npos);
  request.configs.clear();
  CHECK(!read_request(request_line(1, request)).ok());
}

TEST_CASE("a reply about a config that no field's range allows is refused") {
  const std::string line = answer_line(1, 0, request_of(kUniform).configs[0], some_measurement());
  for (const char* field : {"block_m", "block_n", "block_k", "stages", "warps_n", "row_step", "cluster"}) {
    CAPTURE(field);
    const auto reply = read_reply(with(line, field, "7777"));
    REQUIRE(!reply.ok());
    CHECK(reply.error().message().find(std::string(field) + " is 7777") != std::string::npos);
  }
}

TEST_CASE("a worker of another protocol or config space is refused") {
  for (const std::string& bad : damaged(hello_line())) {
    CAPTURE(bad);
    CHECK(!read_hello(bad).ok());
  }
  CHECK(!read_hello(R"({"protocol": 2, "config_space": 3})").ok());
  CHECK(!read_hello(R"({"protocol": 1, "config_space": 2})").ok());
}

TEST_CASE("requests and answers of backward passes are read as they are written") {
  LayerSpec ungated = uniform_spec(1024, 8, 512, 2, Activation::relu2);
  for (const LayerSpec& spec : {kUniform, ungated}) {
    for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
      MeasureRequest request{spec, 4096, Effort::normal};
      request.pass = TuningPass::backward;
      request.gradient_type = type;
      request.products = {model::predict_products(spec, 4096, h200()),
                          model::predict_products(spec, 64, h200())};
      request.products[1].fc2_gradient = {Schedule::wgmma, 256, 64, 2, GatherMode::copy};
      request.products[1] = model::with_copies(request.products[1]);
      const std::string line = request_line(3, request);
      CHECK(line.find('\n') == std::string::npos);
      const auto read = read_request(line);
      REQUIRE_MESSAGE(read.ok(), (read.ok() ? "" : read.error().message()));
      CHECK(read->request.pass == TuningPass::backward);
      CHECK(read->request.gradient_type == type);
      CHECK(read->request.products == request.products);
      CHECK(read->request.configs.empty());
      CHECK(read->request.only({1}).products == std::vector<BackwardConfig>{request.products[1]});
      for (const std::string& bad : damaged(line)) {
        CAPTURE(bad);
        const auto refused = read_request(bad);
        // A number that is another one's may be a request, but never this one.
        if (refused.ok()) CHECK(request_line(refused->id, refused->request) != line);
      }

      Measurement m = backward_figures(12.345678901234567, 1.0 / 3, 40, 20);
      m.products->err_fc1_gradient = 1e-7;
      const std::string answered = answer_line(3, 1, request, m);
      const auto answer = read_reply(answered);
      REQUIRE_MESSAGE(answer.ok(), (answer.ok() ? "" : answer.error().message()));
      CHECK(answer->index == 1);
      REQUIRE(answer->products);
      CHECK(*answer->products == request.products[1]);
      REQUIRE(answer->measurement.products);
      CHECK(*answer->measurement.products == *m.products);
      CHECK(answer->measurement.us == m.us);
      CHECK(answer->measurement.verified);
      for (const std::string& bad : damaged(answered)) {
        const auto refused = read_reply(bad);
        if (refused.ok() && refused->kind == WorkerReply::Kind::answer)
          CHECK((refused->id != 3 || refused->index != 1 || refused->products != answer->products ||
                 refused->measurement.products != m.products || refused->measurement.us != m.us ||
                 refused->measurement.skewed_us != m.skewed_us || refused->measurement.spread != m.spread ||
                 !refused->measurement.failure.empty() || !refused->measurement.verified));
      }
    }
  }
}

TEST_CASE("a backward pass's figures that are out of range go as a failure, and its configs are checked") {
  MeasureRequest request{kUniform, 4096, Effort::normal};
  request.pass = TuningPass::backward;
  request.products = {model::predict_products(kUniform, 4096, h200())};
  Measurement m = backward_figures(1, 2, 3, 4);
  m.products->us_dx = std::numeric_limits<double>::quiet_NaN();
  auto read = read_reply(answer_line(1, 0, request, m));
  REQUIRE(read.ok());
  CHECK(read->measurement.failure.find("us_dx is nan") != std::string::npos);
  Measurement failed;
  failed.failure = "does not compile";
  read = read_reply(answer_line(1, 0, request, failed));
  REQUIRE(read.ok());
  CHECK(read->products);
  CHECK(read->measurement.failure == "does not compile");
  m = backward_figures(1, 2, 3, 4);
  m.verified = false;
  m.products->err_dx = 0.25;
  CHECK(fault_of(m) ==
        "wrong result: 0 of dtopk_weights, 0.25 of dx, 0 of dW1 and 0 of dW2 are beyond the tolerance");
  request.products[0].fc1_gradient.block_n = 96;
  const auto refused = read_request(request_line(1, request));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("configs[0]: fc1_gradient: ") != std::string::npos);
}
