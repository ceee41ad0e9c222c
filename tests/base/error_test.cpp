#include "varmoe/error.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>

#include "varmoe/version.hpp"

using namespace varmoe;

TEST_CASE("every error code has a name of its own, and a number that is none has one too") {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::internal); ++code) {
    names.insert(to_string(static_cast<ErrorCode>(code)));
  }
  CHECK(names.size() == static_cast<std::size_t>(ErrorCode::internal) + 1);
  CHECK(names.count("unknown") == 0);
  CHECK(std::string(to_string(ErrorCode::not_prepared)) == "not_prepared");
  CHECK(std::string(to_string(static_cast<ErrorCode>(999))) == "unknown");
}

TEST_CASE("value() throws what the error says, by code name and message") {
  const Result<int> bad(ErrorCode::no_device, "there is none");
  try {
    static_cast<void>(bad.value());
    FAIL("did not throw");
  } catch (const Exception& e) {
    CHECK(e.code() == ErrorCode::no_device);
    CHECK(std::string(e.what()) == "no_device: there is none");
  }
  CHECK(Result<int>(7).value() == 7);
  CHECK(Status().ok());
}

TEST_CASE("the library's version is that of its headers") {
  CHECK(std::string(version()) == VARMOE_VERSION_STRING);
}
