#include "tuningdb/aiter_csv.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/text.hpp"
#include "model/json_writer.hpp"
#include "model/token_bucket.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/csv_text.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_json.hpp"

namespace varmoe::tuningdb {
namespace {

constexpr std::string_view kColumns[] = {"cu_num",
                                         "token",
                                         "model_dim",
                                         "inter_dim",
                                         "expert",
                                         "topk",
                                         "act_type",
                                         "dtype",
                                         "q_dtype_a",
                                         "q_dtype_w",
                                         "q_type",
                                         "use_g1u1",
                                         "doweight_stage1",
                                         "block_m",
                                         "ksplit",
                                         "us1",
                                         "kernelName1",
                                         "err1",
                                         "us2",
                                         "kernelName2",
                                         "err2",
                                         "us",
                                         "run_1stage",
                                         "tflops",
                                         "bw"};
/// Of the short form: its name for ksplit.
constexpr std::string_view kOtherColumns[] = {"splitK"};
constexpr std::string_view kKernelPrefix = "varmoe:";
constexpr std::size_t kMaxDropped = 100;

/// AITER's words for an activation, whose gating is a column of its own.
struct ActivationName {
  const char* name;
  Activation gated, plain;
  bool has_plain;
};
constexpr ActivationName kActivations[] = {
    {"ActivationType.Silu", Activation::silu_mul, Activation::silu, true},
    {"ActivationType.Gelu", Activation::gelu_erf_mul, Activation::gelu_erf, true},
    {"ActivationType.Swiglu", Activation::swiglu_oai, Activation::swiglu_oai, false},
};

const char* torch_name(DType dtype) {
  return dtype == DType::bf16 ? "torch.bfloat16" : "torch.float16";
}

/// "ActivationType.Silu" and "Silu", "torch.bfloat16" and "bf16".
std::optional<DType> dtype_named(std::string_view text) {
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    if (text == torch_name(dtype) || text == to_string(dtype)) return dtype;
  }
  return std::nullopt;
}

const ActivationName* activation_named(std::string_view text) {
  for (const ActivationName& row : kActivations) {
    const std::string_view name = row.name;
    if (text == name || text == name.substr(name.find('.') + 1)) return &row;
  }
  return nullptr;
}

std::optional<bool> boolean_named(std::string_view text) {
  if (text == "1" || text == "True" || text == "true") return true;
  if (text == "0" || text == "False" || text == "false") return false;
  return std::nullopt;
}

/// Why a record has no row; empty: it has one.
std::string not_expressible(const TuningKey& key, std::string* act_type) {
  if (key.inter_dim.size() != 1) return "experts of several widths";
  if (key.fc1_layout != WeightLayout::nk || key.fc2_layout != WeightLayout::nk) return "kn weights";
  if (key.gate_order != GateOrder::gate_first) return fmt::format("gate order {}", to_string(key.gate_order));
  if (key.bias) return "biases";
  if (key.batch_invariant) return "batch invariance";
  if (!key.shared_inter_dim.empty()) return "shared experts";
  if (key.act_params != ActivationParams()) return "parameters of the activation";
  for (const ActivationName& row : kActivations) {
    if (key.act_type == row.gated || (row.has_plain && key.act_type == row.plain)) {
      *act_type = row.name;
      return {};
    }
  }
  return fmt::format("activation {}", to_string(key.act_type));
}

std::string percent(double share) {
  return model::json_number(share * 100) + "%";
}

std::string row_text(const TuningRecord& record, const std::string& act_type) {
  const TuningKey& key = record.key;
  const auto kernel = [](const GemmConfig& config) {
    return csv_cell(std::string(kKernelPrefix) + to_string(config));
  };
  const std::string dtype = torch_name(key.dtype);
  const std::string cells[] = {std::to_string(key.device.cu_num),
                               std::to_string(key.token),
                               std::to_string(key.model_dim),
                               std::to_string(key.inter_dim[0].width),
                               std::to_string(key.expert),
                               std::to_string(key.topk),
                               act_type,
                               dtype,
                               dtype,
                               dtype,
                               "QuantType.No",
                               key.use_g1u1 ? "1" : "0",
                               key.doweight_stage1 ? "1" : "0",
                               std::to_string(record.config.fc1.block_m),
                               "0",
                               model::json_number(record.us1),
                               kernel(record.config.fc1),
                               percent(record.err1),
                               model::json_number(record.us2),
                               kernel(record.config.fc2),
                               percent(record.err2),
                               model::json_number(record.us),
                               "0",
                               model::json_number(record.tflops),
                               model::json_number(record.bw)};
  static_assert(std::size(cells) == std::size(kColumns));
  return fmt::format("{}\n", fmt::join(cells, ","));
}

/// Why a row is not used.
struct RowError {
  std::string message;
};

/// Typed access to one row's cells.
class Cells {
 public:
  Cells(const CsvTable& table, const CsvTable::Row& row) : table_(table), row_(row) {}

  /// Empty where the column is missing.
  std::string_view text(std::string_view column) const {
    const std::size_t index = table_.column(column);
    return index == CsvTable::npos ? std::string_view() : std::string_view(row_.cells[index]);
  }
  std::int64_t integer(std::string_view column, std::int64_t min, std::int64_t max) const {
    const auto number = parse_uint64(text(column));
    if (!number || *number > static_cast<std::uint64_t>(max) || static_cast<std::int64_t>(*number) < min) {
      wrong(column, fmt::format("must be an integer from {} to {}", min, max));
    }
    return static_cast<std::int64_t>(*number);
  }
  std::int64_t integer_or(std::string_view column, std::int64_t min, std::int64_t max,
                          std::int64_t fallback) const {
    return text(column).empty() ? fallback : integer(column, min, max);
  }
  /// "12.5"; an error share may be "0.3%". 0 where the cell is missing or empty.
  double real(std::string_view column, double max) const {
    std::string_view cell = text(column);
    if (cell.empty()) return 0;
    const bool is_percent = cell.back() == '%';
    if (is_percent) cell.remove_suffix(1);
    double number = 0;
    const auto [end, status] = std::from_chars(cell.data(), cell.data() + cell.size(), number);
    if (is_percent) number /= 100;
    if (status != std::errc() || end != cell.data() + cell.size() || !(number >= 0 && number <= max)) {
      wrong(column, fmt::format("must be a number from 0 to {}", max));
    }
    return number;
  }
  bool boolean_or(std::string_view column, bool fallback) const {
    if (text(column).empty()) return fallback;
    const auto value = boolean_named(text(column));
    if (!value) wrong(column, "must be 1, 0, True or False");
    return *value;
  }
  [[noreturn]] void wrong(std::string_view column, std::string_view rule) const {
    throw RowError{fmt::format("{} is \"{}\"; {}", column, printable(text(column), 64), rule)};
  }

 private:
  const CsvTable& table_;
  const CsvTable::Row& row_;
};

/// What every row says of its layer, ours or not.
TuningHint read_layer(const Cells& cells, std::string source) {
  TuningHint hint;
  hint.source = std::move(source);
  hint.cu_num = static_cast<std::int32_t>(cells.integer("cu_num", 1, kMaxSms));
  hint.token = cells.integer("token", 1, kMaxTokens);
  hint.model_dim = cells.integer("model_dim", 1, kMaxHidden);
  hint.inter_dim = cells.integer("inter_dim", 1, kMaxWidth);
  hint.expert = cells.integer("expert", 1, kMaxExperts);
  hint.topk = cells.integer("topk", 1, kMaxTopK);
  hint.dtype = dtype_named(cells.text("dtype"));
  if (!hint.dtype) cells.wrong("dtype", "must be torch.bfloat16 or torch.float16");
  for (const char* column : {"q_dtype_a", "q_dtype_w"}) {
    const std::string_view text = cells.text(column);
    if (!text.empty() && text != "None" && dtype_named(text) != hint.dtype) {
      cells.wrong(column, "quantised layers are not known here");
    }
  }
  const std::string_view quant = cells.text("q_type");
  if (!quant.empty() && quant != "QuantType.No" && quant != "No" && quant != "none") {
    cells.wrong("q_type", "quantised layers are not known here");
  }
  hint.doweight_stage1 = cells.boolean_or("doweight_stage1", false);
  const ActivationName* activation = activation_named(cells.text("act_type"));
  if (activation == nullptr) cells.wrong("act_type", "must be ActivationType.Silu, .Gelu or .Swiglu");
  const bool gated = cells.boolean_or("use_g1u1", true);
  if (!gated && !activation->has_plain) cells.wrong("use_g1u1", "this activation is gated");
  hint.act_type = gated ? activation->gated : activation->plain;
  return hint;
}

GemmConfig read_kernel(const Cells& cells, std::string_view column) {
  std::string_view text = cells.text(column);
  if (text.substr(0, kKernelPrefix.size()) != kKernelPrefix)
    cells.wrong(column, "must be a kernel of varmoe, as the other is");
  text.remove_prefix(kKernelPrefix.size());
  const auto parsed = parse_gemm_overrides(text);
  if (!parsed) cells.wrong(column, parsed.error().message());
  if (parsed->size() != 1) cells.wrong(column, "must be one config");
  const GemmConfig config = (*parsed)[0].apply(GemmConfig());
  // Written by to_string: every key, in its order, and no token range.
  if (to_string(config) != text) cells.wrong(column, "must have every key of a config, in their order");
  return config;
}

TuningRecord read_ours(const Cells& cells, const TuningHint& layer, const model::DeviceProfile& device) {
  if (layer.cu_num != device.sm_count) {
    throw RowError{fmt::format("cu_num is {}; {} has {} SMs", layer.cu_num, device.name, device.sm_count)};
  }
  if (model::bucket_of(layer.token) != layer.token) {
    throw RowError{fmt::format("token is {}; must be a power of two", layer.token)};
  }
  LayerSpec spec =
      uniform_spec(layer.model_dim, layer.expert, layer.inter_dim, layer.topk, *layer.act_type, *layer.dtype);
  spec.weight_on_input = layer.doweight_stage1;
  TuningRecord record;
  record.key = make_tuning_key(spec, tuning_device(device), layer.token);
  record.config.fc1 = read_kernel(cells, "kernelName1");
  record.config.fc2 = read_kernel(cells, "kernelName2");
  record.us1 = cells.real("us1", kMaxMicroseconds);
  record.err1 = cells.real("err1", 1);
  record.us2 = cells.real("us2", kMaxMicroseconds);
  record.err2 = cells.real("err2", 1);
  record.us = cells.real("us", kMaxMicroseconds);
  record.tflops = cells.real("tflops", kMaxRate);
  record.bw = cells.real("bw", kMaxRate);
  if (Status sound = check_record(record); !sound) throw RowError{sound.error().message()};
  if (Status sound = check_config(record, &device); !sound) throw RowError{sound.error().message()};
  return record;
}

bool is_ours(const Cells& cells) {
  const auto begins = [&](std::string_view column) {
    return cells.text(column).substr(0, kKernelPrefix.size()) == kKernelPrefix;
  };
  return begins("kernelName1") || begins("kernelName2");
}

/// Columns that no row is understood without.
Status check_columns(const CsvTable& table) {
  for (const std::string_view name : std::span(kColumns).first(8)) {
    if (table.column(name) == CsvTable::npos) {
      return Error(ErrorCode::invalid_argument, fmt::format("has no column \"{}\"", name));
    }
  }
  return {};
}

}  // namespace

CsvExport export_aiter_csv(std::span<const TuningRecord> records) {
  CsvExport result;
  result.text = fmt::format("{}\n", fmt::join(kColumns, ","));
  std::size_t rows = 0;
  for (const TuningRecord& record : records) {
    if (record.key.pass == TuningPass::backward) {
      result.dropped.push_back(fmt::format("{}: no row: the CSV has forwards alone", to_string(record.key)));
      continue;
    }
    std::string act_type;
    if (const std::string why = not_expressible(record.key, &act_type); !why.empty()) {
      result.dropped.push_back(fmt::format("{}: no row: the CSV cannot say {}", to_string(record.key), why));
      continue;
    }
    const LayerConfig usual, &config = record.config;
    if (config.sort != usual.sort || config.gather != usual.gather || config.combine != usual.combine) {
      result.dropped.push_back(
          fmt::format("{}: no column for the configs of sort, gather and combine", to_string(record.key)));
    }
    result.text += row_text(record, act_type);
    ++rows;
  }
  if (rows > 0) {
    result.dropped.push_back(
        "no columns for arch and device, baseline_us, spread, verified, epochs, config space and provenance");
  }
  return result;
}

Result<CsvImport> import_aiter_csv(std::string_view text, std::string_view origin,
                                   const model::DeviceProfile& device) {
  const std::string where = printable(origin, 4096);
  const auto failed = [&where](const Error& error) {
    return Error(error.code(), fmt::format("{}: {}", where, error.message()));
  };
  const auto table = parse_csv(text);
  if (!table) return failed(table.error());
  if (Status status = check_columns(*table); !status) return failed(status.error());

  CsvImport result;
  std::vector<std::string_view> unknown;
  for (const std::string& name : table->columns) {
    if (std::find(std::begin(kColumns), std::end(kColumns), name) == std::end(kColumns) &&
        std::find(std::begin(kOtherColumns), std::end(kOtherColumns), name) == std::end(kOtherColumns)) {
      unknown.push_back(name);
    }
  }
  if (!unknown.empty()) {
    result.dropped.push_back(
        fmt::format("{}: columns that are not used: {}", where, printable(join(unknown), 1000)));
  }
  std::size_t dropped = 0;
  for (const CsvTable::Row& row : table->rows) {
    const std::string source = fmt::format("{}: line {}", where, row.line);
    try {
      if (row.cells.size() != table->columns.size()) {
        throw RowError{fmt::format("{} cells; the header has {}", row.cells.size(), table->columns.size())};
      }
      const Cells cells(*table, row);
      TuningHint hint = read_layer(cells, source);
      if (is_ours(cells)) {
        result.records.push_back(read_ours(cells, hint, device));
        continue;
      }
      hint.block_m = static_cast<std::int32_t>(cells.integer_or("block_m", 0, 65536, 0));
      hint.ksplit = static_cast<std::int32_t>(cells.integer_or("ksplit", 0, 65536, 0));
      hint.ksplit = static_cast<std::int32_t>(cells.integer_or("splitK", 0, 65536, hint.ksplit));
      hint.us = cells.real("us", kMaxMicroseconds);
      result.hints.push_back(std::move(hint));
    } catch (const RowError& error) {
      if (++dropped <= kMaxDropped) result.dropped.push_back(fmt::format("{}: {}", source, error.message));
    }
  }
  if (dropped > kMaxDropped) {
    result.dropped.push_back(fmt::format("{}: {} more rows", where, dropped - kMaxDropped));
  }
  return result;
}

}  // namespace varmoe::tuningdb
