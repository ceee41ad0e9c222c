#include "tuner/serve_worker.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/text.hpp"
#include "tuner/landscape.hpp"
#include "tuner/worker_protocol.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

struct Served {
  Status status;
  std::vector<std::string> lines;
};

/// Runs the loop on `input`, which must fit into a pipe, as must what comes out.
Served serve(Measurer& measurer, const std::string& input) {
  int in[2], out[2];
  REQUIRE(::pipe(in) == 0);
  REQUIRE(::pipe(out) == 0);
  REQUIRE(::write(in[1], input.data(), input.size()) == static_cast<ssize_t>(input.size()));
  ::close(in[1]);
  Served served{serve_worker(in[0], out[1], measurer), {}};
  ::close(in[0]);
  ::close(out[1]);
  std::string text(65536, '\0');
  std::size_t size = 0;
  for (ssize_t count; (count = ::read(out[0], text.data() + size, text.size() - size)) > 0;)
    size += static_cast<std::size_t>(count);
  ::close(out[0]);
  text.resize(size);
  for (const std::string_view line : split(text, '\n')) served.lines.emplace_back(line);
  REQUIRE(served.lines.back().empty());
  served.lines.pop_back();
  return served;
}

MeasureRequest two_configs() {
  MeasureRequest request{kUniform, 64, Effort::normal, {LayerConfig(), LayerConfig()}};
  request.configs[1].fc1.raster = 4;
  return request;
}

}  // namespace

TEST_CASE("the loop says hello, answers requests in their order and ends well when its input does") {
  Landscape landscape;
  const std::string input = request_line(1, two_configs()) + "\n" + request_line(2, two_configs()) + "\n";
  const Served served = serve(landscape, input);
  CHECK(served.status.ok());
  REQUIRE(served.lines.size() == 1 + 2 * 4);
  CHECK(read_hello(served.lines[0]).ok());
  const auto answer = read_reply(served.lines[8]);
  REQUIRE(answer.ok());
  CHECK(answer->id == 2);
  CHECK(answer->kind == WorkerReply::Kind::answer);
  CHECK(answer->index == 1);
  CHECK(answer->config == two_configs().configs[1]);
  CHECK(answer->measurement.us == doctest::Approx(rugged(two_configs().configs[1]).us));
  REQUIRE(landscape.requests.size() == 2);
  CHECK(landscape.requests[0].effort == Effort::normal);
  CHECK(landscape.requests[0].spec == kUniform);
}

TEST_CASE("without input the loop says hello and ends") {
  Landscape landscape;
  const Served served = serve(landscape, "");
  CHECK(served.status.ok());
  CHECK(served.lines.size() == 1);
}

TEST_CASE("a request that is wrong is answered with an error and ends the loop") {
  Landscape landscape;
  const Served served = serve(landscape, "{\"request\": 1}\n" + request_line(2, two_configs()) + "\n");
  CHECK(!served.status.ok());
  REQUIRE(served.lines.size() == 2);
  const auto reply = read_reply(served.lines[1]);
  REQUIRE(reply.ok());
  CHECK(reply->kind == WorkerReply::Kind::error);
  CHECK(landscape.requests.empty());
}

TEST_CASE("a measurer's error is told to the tuner and ends the loop") {
  class Dead final : public Landscape {
    Status measure(const MeasureRequest&, MeasureEvents&) override {
      return {ErrorCode::device_error, "an \"illegal\" address\nwas met"};
    }
  } dead;
  const Served served = serve(dead, request_line(7, two_configs()) + "\n");
  CHECK(!served.status.ok());
  REQUIRE(served.lines.size() == 2);
  const auto reply = read_reply(served.lines[1]);
  REQUIRE(reply.ok());
  CHECK(reply->id == 7);
  CHECK(reply->message.find("\"illegal\" address") != std::string::npos);
}
