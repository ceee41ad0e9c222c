#include "gpu/evidence.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

namespace gpu {
namespace {

struct Worst {
  double frobenius = 0, row = 0, element = 0;
  long long cases = 0, rows = 0;
};
std::map<std::string, Worst> worst;
std::map<std::string, double> numbers;

}  // namespace

void record_errors(const std::string& group, const oracle::Comparison& c) {
  Worst& w = worst[group];
  w.frobenius = std::max(w.frobenius, c.frobenius);
  w.row = std::max(w.row, c.worst_row);
  w.element = std::max(w.element, c.worst_element);
  w.rows += c.compared_rows;
  ++w.cases;
}

void record_number(const std::string& name, double value) {
  numbers[name] = value;
}

void write_evidence() {
  const char* path = std::getenv("VARMOE_GPU_EVIDENCE");
  if (path == nullptr) return;
  nlohmann::ordered_json errors = nlohmann::ordered_json::object();
  for (const auto& [group, w] : worst) {
    errors[group] = {{"frobenius", w.frobenius},
                     {"row", w.row},
                     {"element_share_of_bar", w.element},
                     {"cases", w.cases},
                     {"rows", w.rows}};
  }
  std::ofstream(path) << nlohmann::ordered_json{{"worst_errors", errors}, {"numbers", numbers}}.dump(1)
                      << "\n";
}

}  // namespace gpu
