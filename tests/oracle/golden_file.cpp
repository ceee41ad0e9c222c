#include "oracle/golden_file.hpp"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace oracle {

namespace {

void append_row(std::vector<std::uint16_t>& to, const std::string& hex, std::int64_t count) {
  if (hex.size() != static_cast<std::size_t>(count) * 4)
    throw std::runtime_error("golden: row of a wrong length");
  for (std::size_t i = 0; i < hex.size(); i += 4) {
    to.push_back(static_cast<std::uint16_t>(std::stoul(hex.substr(i, 4), nullptr, 16)));
  }
}

void append_rows(std::vector<std::uint16_t>& to, const nlohmann::json& rows, std::int64_t row_count,
                 std::int64_t count) {
  if (rows.size() != static_cast<std::size_t>(row_count))
    throw std::runtime_error("golden: wrong number of rows");
  for (const auto& row : rows) append_row(to, row.get<std::string>(), count);
}

float float_of(const nlohmann::json& bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(std::stoul(bits.get<std::string>(), nullptr, 16)));
}

varmoe::Activation activation_of(const std::string& name) {
  using varmoe::Activation;
  static const std::pair<const char*, Activation> names[] = {{"silu_mul", Activation::silu_mul},
                                                             {"gelu_tanh_mul", Activation::gelu_tanh_mul},
                                                             {"gelu_erf_mul", Activation::gelu_erf_mul},
                                                             {"swiglu_oai", Activation::swiglu_oai},
                                                             {"silu", Activation::silu},
                                                             {"gelu_tanh", Activation::gelu_tanh},
                                                             {"gelu_erf", Activation::gelu_erf},
                                                             {"relu", Activation::relu},
                                                             {"relu2", Activation::relu2},
                                                             {"identity", Activation::identity}};
  for (const auto& [text, activation] : names) {
    if (name == text) return activation;
  }
  throw std::runtime_error("golden: activation " + name);
}

}  // namespace

std::vector<std::string> golden_files(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

GoldenFile read_golden(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const auto json = nlohmann::json::parse(stream);
  GoldenFile g;
  const std::int64_t H = g.spec.hidden_size = json.at("hidden_size").get<std::int64_t>();
  g.spec.top_k = json.at("top_k").get<std::int64_t>();
  g.tokens = json.at("tokens").get<std::int64_t>();
  g.spec.dtype = json.at("dtype") == "bf16" ? varmoe::DType::bf16 : varmoe::DType::fp16;
  g.spec.activation = activation_of(json.at("activation").get<std::string>());
  g.spec.activation_params = {float_of(json.at("alpha_bits")), float_of(json.at("limit_bits"))};
  for (const auto& expert : json.at("experts")) {
    const auto width = expert.at("width").get<std::int64_t>();
    g.spec.expert_widths.push_back(width);
    if (expert.contains("gate")) append_rows(g.fc1, expert.at("gate"), width, H);
    append_rows(g.fc1, expert.at("up"), width, H);
    append_rows(g.fc2, expert.at("down"), H, width);
  }
  append_rows(g.x, json.at("x"), g.tokens, H);
  append_rows(g.out, json.at("out"), g.tokens, H);
  g.accumulate = json.contains("old_out");
  if (g.accumulate) append_rows(g.old_out, json.at("old_out"), g.tokens, H);
  g.ids = json.at("topk_ids").get<std::vector<std::int64_t>>();
  for (const auto& bits : json.at("topk_weight_bits")) g.weights.push_back(float_of(bits));
  return g;
}

}  // namespace oracle
