#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace varmoe::fuzz {

/// Changes texts the same way every time, so that a failure is found again by running the test again.
class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  /// `text` with one to four changes; `others` lend pieces.
  std::string mutate(std::string text, const std::vector<std::string>& others) {
    static const std::vector<std::string> tokens = {"{",
                                                    "}",
                                                    "[",
                                                    "]",
                                                    ",",
                                                    ":",
                                                    "\"",
                                                    "null",
                                                    "true",
                                                    "-1",
                                                    "0",
                                                    "1.9",
                                                    "1e400",
                                                    "1e99",
                                                    "NaN",
                                                    "\\u0",
                                                    "\xff",
                                                    "4294967296",
                                                    "9223372036854775807",
                                                    "[[[[",
                                                    "\"64\"",
                                                    "1024",
                                                    ";",
                                                    "=",
                                                    "tokens=1-",
                                                    "\"layers\": [{}],",
                                                    "\"text_config\": {",
                                                    "\"quantization_config\": null,"};
    for (std::size_t n = 1 + below(4); n > 0; --n) {
      const std::size_t at = below(text.size() + 1);
      switch (below(6)) {
        case 0:
          if (at < text.size()) text[at] = static_cast<char>(random_());
          break;
        case 1:
          text.erase(at, 1 + below(8));
          break;
        case 2:
          text.insert(at, tokens[below(tokens.size())]);
          break;
        case 3: {  // a number becomes another
          const std::size_t digit = text.find_first_of("0123456789", at);
          if (digit == std::string::npos) break;
          std::size_t end = digit;
          while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
          text.replace(digit, end - digit, std::to_string(std::int64_t{1} << below(63)));
          break;
        }
        case 4: {  // a piece of another seed
          const std::string& other = others[below(others.size())];
          const std::size_t from = below(other.size() + 1);
          text.insert(at, other.substr(from, below(80)));
          break;
        }
        default: {  // two words change places
          const std::size_t a = text.find('"', at), b = text.find('"', below(text.size() + 1));
          if (a != std::string::npos && b != std::string::npos) std::swap(text[a], text[b]);
        }
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace varmoe::fuzz
