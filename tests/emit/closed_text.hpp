#pragma once

#include <doctest/doctest.h>

#include <cctype>
#include <filesystem>
#include <regex>
#include <set>
#include <string>

#include "emit/emit_case.hpp"
#include "support/temp_dir.hpp"

/// Emitted text is made of the kernels' own words, numbers and a few strings.
namespace varmoe::test {

inline bool word_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

struct Tokens {
  std::set<std::string> words, strings;
  std::string others;
};

/// Strings, words (numbers too) and the remaining characters of a text.
inline Tokens tokens_of(const std::string& text) {
  Tokens tokens;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i + 1;
    if (text[i] == '"') {
      while (end < text.size() && text[end] != '"') ++end;
      tokens.strings.insert(text.substr(i + 1, end - i - 1));
      ++end;
    } else if (word_char(text[i])) {
      while (end < text.size() && word_char(text[end])) ++end;
      tokens.words.insert(text.substr(i, end - i));
    } else {
      tokens.others += text[i];
    }
    i = end;
  }
  return tokens;
}

/// Words that kernels_src/ is made of; emitted text has no others but numbers and its entry name.
inline const std::set<std::string>& kernel_words() {
  static const std::set<std::string> words = [] {
    std::set<std::string> all = {"__cluster_dims__", "__global__", "__grid_constant__", "__launch_bounds__",
                                 "extern",           "sizeof",     "static_assert"};
    for (const auto& file :
         std::filesystem::recursive_directory_iterator(std::string(VARMOE_SOURCE_DIR) + "/kernels_src")) {
      if (file.is_regular_file()) all.merge(tokens_of(slurp(file.path())).words);
    }
    return all;
  }();
  return words;
}

/// Checks one kernel's text and options against the closed alphabet, words and strings.
inline void check_closed(const EmittedKernel& kernel) {
  CAPTURE(kernel.text);
  CHECK(kernel.options == std::vector<std::string>{"--std=c++17", "--no-source-include"});
  static const std::regex kNumber("[0-9]+|0x[0-9a-f]{8}u");
  static const std::regex kString(
      "C|[a-z0-9_]+/[a-z0-9_]+\\.cuh|kernel text of another ABI|[A-Za-z:_0-9 ]+ differs from the host's");
  // wgmma's operand lists, and their constraints.
  static const std::regex kInstruction(
      R"(\{\.reg \.pred p; setp\.ne\.u32 p, %[0-9]+, 0; wgmma\.mma_async\.sync\.aligned\.m64n[0-9]+k16\.f32\.(bf16\.bf16|f16\.f16) )"
      R"(\{%0(,%[0-9]+)*\}, %[0-9]+, %[0-9]+, p, 1, 1, [01], 0;\}\\n|\+f|l|r)");
  const Tokens tokens = tokens_of(kernel.text);
  for (const std::string& word : tokens.words) {
    const bool known =
        word == kernel.entry_name || kernel_words().count(word) == 1 || std::regex_match(word, kNumber);
    if (!known) FAIL_CHECK("unknown word " << word);
  }
  for (const std::string& text : tokens.strings) {
    if (!std::regex_match(text, kString) && !std::regex_match(text, kInstruction))
      FAIL_CHECK("unknown string " << text);
  }
  CHECK(tokens.others.find_first_not_of(" \n#{}()[]<>,;:=?&/!") == std::string::npos);
  // One comment, the first line; no line goes on in the next.
  CHECK(kernel.text.rfind("// varmoe " + std::string(emit::to_string(kernel.stage)) + "\n", 0) == 0);
  CHECK_FALSE(contains(kernel.text, "/*"));
  CHECK_FALSE(contains(kernel.text, "*/"));
  // Instructions end in one, written out.
  for (std::size_t at = 0; (at = kernel.text.find('\\', at)) != std::string::npos; ++at)
    CHECK(kernel.text.substr(at, 3) == "\\n\"");
  CHECK(kernel.text.back() == '\n');
}

}  // namespace varmoe::test
