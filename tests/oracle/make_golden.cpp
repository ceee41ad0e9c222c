#include <cstdio>
#include <fstream>

#include "oracle/golden.hpp"

/// Writes the golden vectors into the folder named by its argument.
int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: varmoe_make_golden FOLDER\n");
    return 2;
  }
  for (const auto& golden : oracle::golden_cases()) {
    const std::string path = std::string(argv[1]) + "/" + golden.name + ".json";
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << oracle::golden_text(golden);
    file.close();
    if (!file) {
      std::fprintf(stderr, "cannot write %s\n", path.c_str());
      return 1;
    }
    std::printf("%s\n", path.c_str());
  }
  return 0;
}
