#include "cubin/key.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <vector>

#include "support/processes.hpp"

using namespace varmoe;
using namespace varmoe::cubin;

namespace {

struct Input {
  std::string text = "extern \"C\" __global__ void k() {}\n";
  std::vector<SourceHeader> headers = {{"abi.cuh", "#pragma once\n"}, {"tile/swizzle.cuh", "// swizzle\n"}};
  std::vector<std::string> options = {"--std=c++17", "--no-source-include"};
  std::string arch = "sm_90a";
  Digest key() const { return cubin_key(text, headers, options, arch); }
};

}  // namespace

TEST_CASE("fault 37: each input of the key changed alone gives another key") {
  const Input base;
  std::vector<Input> others(12, base);
  others[0].text += " ";
  others[1].text.clear();
  others[2].headers[0].name = "abi2.cuh";
  others[3].headers[0].text += "\n";
  others[4].headers.pop_back();
  others[5].headers.push_back({"extra.cuh", ""});
  others[6].options[0] = "--std=c++20";
  others[7].options.push_back("--generate-line-info");
  others[8].options.pop_back();
  others[9].arch = "sm_90";
  others[10].arch = "compute_90";
  std::swap(others[11].headers[0].text, others[11].headers[1].text);
  std::set<Digest> keys = {base.key()};
  for (const Input& other : others) keys.insert(other.key());
  CHECK(keys.size() == others.size() + 1);
}

TEST_CASE("fault 37: equivalent inputs give the same key") {
  const Input base;
  Input other = base;
  std::swap(other.headers[0], other.headers[1]);  // a set, not a sequence
  CHECK(other.key() == base.key());
  CHECK(Input().key() == base.key());
}

TEST_CASE("fault 37: moved field boundaries give another key") {
  const auto key = [](std::string text, std::vector<SourceHeader> headers, std::vector<std::string> options,
                      std::string arch) { return cubin_key(text, headers, options, arch); };
  std::set<Digest> keys;
  keys.insert(key("ab", {}, {}, "c"));
  keys.insert(key("a", {}, {}, "bc"));
  keys.insert(key("abc", {}, {}, ""));
  keys.insert(key("", {}, {}, "abc"));
  keys.insert(key("", {{"a", "bc"}}, {}, ""));
  keys.insert(key("", {{"ab", "c"}}, {}, ""));
  keys.insert(key("", {{"a", "b"}}, {"c"}, ""));
  keys.insert(key("", {}, {"a", "b", "c"}, ""));
  keys.insert(key("", {}, {"ab", "c"}, ""));
  keys.insert(key("", {}, {"abc"}, ""));
  keys.insert(key("", {}, {"a", "b"}, "c"));
  keys.insert(key("", {{"a", "b"}}, {}, "c"));
  // A NUL, or a list that looks like another field's, is content and no boundary.
  keys.insert(key(std::string("a\0b", 3), {}, {}, "c"));
  keys.insert(key("a", {{"", ""}}, {"b"}, "c"));
  keys.insert(key("a", {}, {"", "", "b"}, "c"));
  CHECK(keys.size() == 15);
}

TEST_CASE("fault 38: the key is the same in two processes and folders, and on every machine") {
  const Input base;
  const Digest here = base.key();
  const test::ChildStatus child = test::run_child([&] {
    std::filesystem::current_path("/");
    ::setenv("HOME", "/nonexistent", 1);
    ::setenv("HOSTNAME", "elsewhere", 1);
    return Input().key() == here ? 0 : 1;
  });
  CHECK(child.exit_code() == 0);
  // Changing this value is changing the key schema: bump kKeySchema with it.
  CHECK(here.hex() == "8544486d5bcebb8630c9495cf5e1854e");
}
