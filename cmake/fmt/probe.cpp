// Uses what needs fmt.cpp's symbols.
#include <fmt/format.h>

#include <cstdio>

int main() {
  const std::string text = fmt::format("{} {:.3f} {:>8} {:L} {}", 1, 2.5, "x", 1234567, 0.1f);
  fmt::print("{}\n", text);
  return text.empty();
}
