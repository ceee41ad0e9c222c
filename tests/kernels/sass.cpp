#include "kernels/sass.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <regex>
#include <sstream>
#include <utility>

#include "tools/common/disassemble.hpp"

using namespace varmoe;

namespace kernels_test {

Result<std::string> machine_code(const Kernel& kernel, const std::string& arch) {
  const auto compiled = compile_one(kernel, arch);
  if (!compiled->ok()) return compiled->error();
  const KernelBinary& binary = **compiled;
  return tools::disassemble({reinterpret_cast<const char*>(binary.image.data()), binary.image.size()});
}

std::set<std::string> opcodes(const std::string& sass) {
  static const std::regex instruction(R"(/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*))");
  std::set<std::string> found;
  for (auto it = std::sregex_iterator(sass.begin(), sass.end(), instruction); it != std::sregex_iterator();
       ++it) {
    found.insert((*it)[1]);
  }
  return found;
}

std::set<std::string> main_loop(const std::string& sass) {
  static const std::regex label(R"(^\s*(\.L_\w+):)");
  static const std::regex instruction(R"(^\s*/\*0*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);)");
  static const std::regex target(R"((\.L_\w+|0x[0-9a-f]+))");
  std::vector<std::string> code;
  std::map<std::string, std::size_t> places;
  std::vector<std::pair<std::string, std::size_t>> branches;  // target, place
  std::istringstream lines(sass);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_search(line, match, label)) {
      places[match[1]] = code.size();
    } else if (std::regex_search(line, match, instruction)) {
      places["0x" + match[1].str()] = code.size();
      const std::string operands = match[3];
      code.push_back(match[2]);
      std::smatch to;
      if (code.back().rfind("BRA", 0) == 0 && std::regex_search(operands, to, target))
        branches.emplace_back(to[1], code.size() - 1);
    }
  }
  std::set<std::string> found;
  for (std::size_t at = 0; at < code.size(); ++at) {
    if (code[at].rfind("HGMMA", 0) != 0) continue;
    std::size_t begin = 0, end = 0;
    for (const auto& [name, last] : branches) {
      const auto first = places.find(name);
      if (first == places.end() || first->second > at || last < at) continue;
      if (end != 0 && last + 1 - first->second >= end - begin) continue;
      begin = first->second;
      end = last + 1;
    }
    found.insert(code.begin() + static_cast<std::ptrdiff_t>(begin),
                 code.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return found;
}

bool is_device_fence(const std::string& opcode) {
  return opcode.rfind("MEMBAR", 0) == 0 &&
         (opcode.find(".CTA") == std::string::npos || opcode.find(".SC") != std::string::npos);
}

std::string code_problem(const Kernel& kernel, const std::string& sass,
                         const std::vector<std::string>& needed) {
  std::string problem;
  const auto found = opcodes(sass);
  for (const std::string& opcode : needed)
    if (!found.count(opcode)) problem += " lacks " + opcode;
  for (const char* local : {"LDL", "STL"})
    if (found.count(local)) problem += std::string(" has ") + local;
  if (!kernel.wgmma) return problem;
  // One a stage costs a fifth of the time.
  const auto loop = main_loop(sass);
  if (loop.empty()) problem += " lacks a main loop";
  for (const std::string& opcode : loop)
    if (is_device_fence(opcode)) problem += " has " + opcode + " in its main loop";
  return problem;
}

std::string product_problem(const Kernel& kernel, const std::string& sass) {
  // wgmma, the copy engine, stmatrix; or mma.sync, ldmatrix, cp.async.
  std::string problem = kernel.wgmma ? code_problem(kernel, sass, {"HGMMA", "UTMALDG", "STSM"})
                                     : code_problem(kernel, sass, {"HMMA", "LDSM", "LDGSTS"});
  static const std::regex multicast(R"(UTMALDG\.\dD\.MULTICAST)");
  if (std::regex_search(sass, multicast) != (kernel.cluster > 1))
    problem += kernel.cluster > 1 ? " lacks multicast" : " has multicast";
  return problem;
}

}  // namespace kernels_test
