#include "model/strict_json.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

using namespace varmoe;
using namespace varmoe::model;

namespace {

std::string refusal(const std::string& text, const JsonLimits& limits = {}) {
  const auto result = parse_strict_json(text, limits);
  if (result) return "accepted";
  CHECK(result.error().code() == ErrorCode::invalid_argument);
  CHECK(result.error().message().size() < 1000);
  CHECK(result.error().message().find('\n') == std::string::npos);
  return result.error().message();
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

/// A folder of its own, removed with what is in it.
struct TempFolder {
  std::string path;
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "varmoe_model_test_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  std::string file(const char* name, const std::string& text) const {
    const std::string full = path + "/" + name;
    std::ofstream(full, std::ios::binary) << text;
    return full;
  }
};

}  // namespace

TEST_CASE("sound JSON reads, and keeps integers apart from other numbers") {
  auto json =
      parse_strict_json(R"( {"a": [1, -9223372036854775808, 2.0, 1e3, 9223372036854775808], "b": {"c": null,
      "d": true, "e": "é\u00e9\n"}} )");
  REQUIRE(json);
  const auto& root = *json->as<Json::Object>();
  const auto& a = *root.at("a").as<Json::Array>();
  CHECK(*a[0].as<std::int64_t>() == 1);
  CHECK(*a[1].as<std::int64_t>() == INT64_MIN);
  CHECK(a[2].as<std::int64_t>() == nullptr);
  CHECK(a[2].as<Json::Real>()->value == 2.0);
  CHECK(a[3].as<Json::Real>()->value == 1000.0);
  CHECK(a[4].as<Json::Real>() != nullptr);
  const auto& b = *root.at("b").as<Json::Object>();
  CHECK(b.at("c").is_null());
  CHECK(*b.at("d").as<bool>());
  CHECK(*b.at("e").as<std::string>() == "éé\n");
  CHECK(parse_strict_json("7"));
}

TEST_CASE("fault 21: what is not plain JSON is refused, saying where") {
  CHECK(contains(refusal("\xEF\xBB\xBF{}"), "byte order mark"));
  CHECK(contains(refusal(""), "not JSON"));
  CHECK(contains(refusal(R"({"a": 1, "b": 2, "a": 3})"), "duplicate key \"a\""));
  CHECK(contains(refusal(R"([{"x": {"k": 1, "k": 1}}])"), "duplicate key \"k\""));
  CHECK(contains(refusal(R"({"a": 1, "\u0061": 3})"), "duplicate key"));
  for (const char* text :
       {"NaN",     "[NaN]",       "Infinity", "-Infinity", "nan",   "[1e400]",   "[-1e400]",
        "01",      "+1",          ".5",       "1.",        "0x10",  "'a'",       "{a: 1}",
        "[1,]",    "{\"a\": 1,}", "// x\n1",  "/* x */ 1", "[1 2]", "{\"a\" 1}", "tru",
        "\"\\x\"", "\"\\ud800\"", "[",        "{\"a\":",   "\"abc"}) {
    CAPTURE(text);
    CHECK(contains(refusal(text), "not JSON: line 1, column"));
  }
  CHECK(contains(refusal("{\n\"a\": 1,\n  oops}"), "line 3, column 3"));
  CHECK(contains(refusal("{} {}"), "not JSON"));
  CHECK(contains(refusal("{}x"), "not JSON"));
  CHECK(contains(refusal(std::string("{}\0", 3)), "NUL"));
  CHECK(contains(refusal(std::string("{}\0{", 4)), "NUL"));
  CHECK(contains(refusal(std::string("{\"a\": \"\0\"}", 10)), "not JSON"));
  for (const char* bytes : {"\x80", "\xff", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82"}) {
    CHECK(contains(refusal(std::string("[\"") + bytes + "\"]"), "not JSON"));
  }
}

TEST_CASE("fault 21: size, depth and number of values are bounded while parsing") {
  JsonLimits limits;
  limits.max_depth = 3;
  CHECK(parse_strict_json("[[[1]]]", limits));
  CHECK(contains(refusal("[[[[1]]]]", limits), "nested more than 3 deep"));
  CHECK(contains(refusal(std::string(1000000, '[')), "nested more than 64 deep"));
  std::string objects;
  for (int i = 0; i < 200000; ++i) objects += "{\"a\":";
  CHECK(contains(refusal(objects), "nested more than 64 deep"));

  limits = {};
  limits.max_bytes = 10;
  CHECK(parse_strict_json("[1, 2, 34]", limits));
  CHECK(contains(refusal("[1, 2, 345]", limits), "at most 10"));

  limits = {};
  limits.max_values = 4;
  CHECK(parse_strict_json("[1,2,3]", limits));
  CHECK(contains(refusal("[1,2,3,4]", limits), "more than 4 values"));
  std::string many = "[0";
  for (int i = 0; i < 500000; ++i) many += ",0";
  CHECK(contains(refusal(many + "]"), "values"));
}

TEST_CASE("fault 23: hostile keys and strings come back cut and escaped in messages") {
  const std::string big(1 << 20, 'K');
  CHECK(contains(refusal("{\"" + big + "\": 1, \"" + big + "\": 2}"), "duplicate key"));
  CHECK(contains(refusal("[\"" + big + "\x01\"]"), "not JSON"));
  CHECK(contains(refusal("{\"a\\n*/\": 1, \"a\\n*/\": 2}"), "duplicate key"));
  CHECK(Json(big).describe().size() < 200);
  CHECK(Json(std::string("a\nb")).describe().find('\n') == std::string::npos);
}

TEST_CASE("values describe themselves") {
  CHECK(Json().describe() == "null");
  CHECK(Json(true).describe() == "true");
  CHECK(Json(std::int64_t{-5}).describe() == "-5");
  CHECK(Json(Json::Real{1.9, "1.9"}).describe() == "1.9");
  CHECK(Json(std::string("64")).describe() == "\"64\"");
  CHECK(Json(Json::Array(3)).describe() == "a list of 3");
  CHECK(Json(Json::Object{}).describe() == "an object");
}

TEST_CASE("fault 19: input files are regular files, read without blocking; symlinks are followed") {
  TempFolder folder;
  const std::string file = folder.file("config.json", "hello");
  CHECK(*read_input_file(file, 5) == "hello");
  CHECK(*read_input_file(folder.file("empty", ""), 5) == "");
  const std::string link = folder.path + "/link";
  REQUIRE(::symlink(file.c_str(), link.c_str()) == 0);
  CHECK(*read_input_file(link, 5) == "hello");

  const auto message = [](const std::string& path, std::size_t cap = 5) {
    const auto result = read_input_file(path, cap);
    if (result) return std::string("accepted");
    CHECK(result.error().code() == ErrorCode::io_error);
    return result.error().message();
  };
  CHECK(contains(message(file, 4), "5 bytes; at most 4"));
  CHECK(contains(message(folder.path), "is a folder"));
  CHECK(contains(message(folder.path + "/none"), "cannot be opened"));
  const std::string fifo = folder.path + "/fifo";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(contains(message(fifo), "no regular file"));
  CHECK(contains(message("/dev/zero"), "no regular file"));
  CHECK(contains(message(file + std::string("\0x", 2)), "NUL"));
  CHECK(contains(message(""), "cannot be opened"));
}

TEST_CASE("fault 21: a file of 2 GiB is refused by its size, unread") {
  TempFolder folder;
  const std::string file = folder.file("huge.json", "{}");
  std::error_code error;
  std::filesystem::resize_file(file, std::uintmax_t{2} << 30, error);  // sparse: takes no space
  if (error) {
    MESSAGE("no sparse file of 2 GiB here: " << error.message());
    return;
  }
  const auto result = read_input_file(file, 4 << 20);
  REQUIRE_FALSE(result);
  CHECK(contains(result.error().message(), "2147483648 bytes"));
}
