#include "base/log.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/capture_log.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using varmoe::test::CaptureLog;

TEST_CASE("messages below the level are not said, and off silences everything") {
  CaptureLog capture(LogLevel::warn);
  capture.log().info("no {}", 1);
  capture.log().warn("yes {}", 2);
  capture.log().error("yes {}", 3);
  capture.log().write(LogLevel::off, "not a level to write at");
  const auto lines = capture.lines();
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].level == LogLevel::warn);
  CHECK(lines[0].text == "yes 2");
  CHECK(lines[1].text == "yes 3");

  CaptureLog off(LogLevel::off);
  off.log().error("nothing");
  CHECK(off.lines().empty());
  CHECK_FALSE(off.log().enabled(LogLevel::error));
}

TEST_CASE("a default log says nothing") {
  const Log log;
  log.error("nothing");
  CHECK_FALSE(log.once("key", LogLevel::error, "nothing"));
  CHECK_FALSE(log.enabled(LogLevel::error));
}

TEST_CASE("a message of several lines comes line by line, cleaned") {
  CaptureLog capture;
  capture.log().info("{}", "one\r\ntwo\x1b[2J\\path\n\n");
  const auto lines = capture.lines();
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].text == "one");
  CHECK(lines[1].text == "two\\x1b[2J\\path");
}

TEST_CASE("a line of 1 MiB is cut") {
  CaptureLog capture;
  capture.log().info("{}", std::string(1 << 20, 'x'));
  capture.log().info("{}", std::string(1 << 20, '\\'));
  const auto lines = capture.lines();
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].text.size() < 5000);
  CHECK(lines[0].text.find("(1048576 bytes)") != std::string::npos);
  CHECK(lines[1].text.size() < 5000);
}

TEST_CASE("once is once for a log and its copies, from any thread") {
  CaptureLog capture;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([copy = capture.log()] {
      for (int i = 0; i < 50; ++i) copy.once("key", LogLevel::warn, "said");
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(capture.count(LogLevel::warn) == 1);
  CHECK(capture.log().once("other key", LogLevel::warn, "said"));
  CHECK(capture.count(LogLevel::warn) == 2);
}

TEST_CASE("a callback that throws, or logs itself, does no harm") {
  const Log throwing(LogLevel::trace, [](LogLevel, std::string_view) { throw std::runtime_error("no"); });
  throwing.error("lost");

  int depth = 0;
  Log* self = nullptr;
  Log nested(LogLevel::trace, [&](LogLevel, std::string_view) {
    if (++depth < 3) self->once(std::to_string(depth), LogLevel::info, "again");
  });
  self = &nested;
  nested.once("0", LogLevel::info, "first");
  CHECK(depth == 3);
}

TEST_CASE("without a callback messages go to stderr") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const test::ChildStatus status = test::run_child([&] {
    ::dup2(ends[1], 2);
    const Log log(LogLevel::info, nullptr);
    log.warn("to {}", "stderr");
    log.debug("not this");
    return 0;
  });
  ::close(ends[1]);
  CHECK(status.exit_code() == 0);
  char text[512] = {};
  const ssize_t got = ::read(ends[0], text, sizeof text - 1);
  ::close(ends[0]);
  REQUIRE(got > 0);
  const std::string line(text, static_cast<std::size_t>(got));
  CHECK(line.find("[varmoe] [warning] to stderr\n") != std::string::npos);
  CHECK(line.find("not this") == std::string::npos);
}
