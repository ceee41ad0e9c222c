#include "tuningdb/misses.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <set>
#include <span>
#include <utility>

#include "base/atomic_file.hpp"
#include "base/text.hpp"
#include "model/strict_json.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_json.hpp"

namespace varmoe::tuningdb {

struct MissFile::State {
  std::string path;
  Log log;
  FileSystem* fs = nullptr;
  std::mutex mutex;
  std::set<std::string> known;  ///< key_text
  std::size_t bytes = 0;
  bool read = false, full = false;
  bool cut = false;  ///< the last line has no end: whoever wrote it was killed

  void warn(std::string_view why) {
    log.once("misses " + path, LogLevel::warn,
             fmt::format("VARMOE_RECORD_MISSES: {}; misses are not recorded", why));
  }

  void read_what_is_there() {
    read = true;
    auto text = read_regular_file_if_exists(*fs, path, kMaxMissFileBytes, HardLinks::accept);
    if (!text) {
      full = true;
      return warn(text.error().message());
    }
    if (!*text) return;
    const std::string_view all(reinterpret_cast<const char*>((*text)->data()), (*text)->size());
    bytes = all.size();
    cut = !all.empty() && all.back() != '\n';
    for (const std::string_view line : split(all, '\n')) known.emplace(line);
  }

  void append(std::string line) {
    line += '\n';
    if (cut) line.insert(0, 1, '\n');
    if (bytes + line.size() > kMaxMissFileBytes || known.size() >= kMaxMisses) {
      full = true;
      return warn(fmt::format("{} is full", path));
    }
    const int fd = open_retrying(*fs, path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0) return warn(io_error("open", path, -fd).message());
    FileHandle file(*fs, fd);
    FileInfo info;
    if (fs->stat_fd(fd, &info) != 0 || info.type != FileType::regular)
      return warn(fmt::format("{} is no regular file", path));
    // One write, so that lines of several processes do not mix.
    if (const int result = write_all(*fs, fd, as_bytes(line)); result < 0) {
      cut = true;
      return warn(io_error("write", path, -result).message());
    }
    cut = false;
    bytes += line.size();
  }
};

MissFile::MissFile(std::string path, Log log, FileSystem* fs) : state_(std::make_unique<State>()) {
  state_->path = std::move(path);
  state_->log = std::move(log);
  state_->fs = fs != nullptr ? fs : &posix_file_system();
}
MissFile::~MissFile() = default;

const std::string& MissFile::path() const noexcept {
  return state_->path;
}

void MissFile::add(const TuningKey& key) {
  // A profile may have a name that no record could have.
  if (!validate(key)) return;
  const std::lock_guard lock(state_->mutex);
  if (!state_->read) state_->read_what_is_there();
  std::string line = key_text(key);
  if (state_->full || !state_->known.insert(line).second) return;
  state_->append(std::move(line));
}

Result<MissList> read_misses(const std::string& path) {
  auto text = model::read_input_file(path, kMaxMissFileBytes);
  if (!text) return text.error();
  MissList list;
  std::set<std::string> seen;
  std::size_t number = 0;
  for (const std::string_view line : split(*text, '\n')) {
    ++number;
    if (line.empty()) continue;
    auto key = read_key_text(line, fmt::format("{}: line {}", printable(path, 4096), number));
    if (!key) {
      if (list.problems.size() < kMaxProblems) list.problems.push_back(key.error().message());
      continue;
    }
    if (list.keys.size() < kMaxMisses && seen.insert(key_text(*key)).second)
      list.keys.push_back(*std::move(key));
  }
  return list;
}

std::string tune_command(const LayerSpec& spec, std::int64_t tokens) {
  const auto list_of = [](const std::vector<WidthClass>& classes) {
    std::string widths;
    for (const WidthClass& c : classes)
      widths += fmt::format("{}{}x{}", widths.empty() ? "" : ",", c.width, c.count);
    return widths;
  };
  const auto classes = classes_of_widths(spec.expert_widths);
  std::string text = fmt::format("varmoe-tune tune --hidden-size {}", spec.hidden_size);
  if (classes.size() == 1) {
    text += fmt::format(" --experts {} --width {}", spec.num_experts(), classes[0].width);
  } else {
    text += " --widths " + list_of(classes);
  }
  text += fmt::format(" --top-k {}", spec.top_k);
  const LayerSpec plain;
  if (spec.activation != plain.activation)
    text += fmt::format(" --activation {}", to_string(spec.activation));
  if (activation_info(spec.activation).uses_params)
    text += fmt::format(" --alpha {} --limit {}", spec.activation_params.alpha, spec.activation_params.limit);
  if (spec.dtype != plain.dtype) text += fmt::format(" --dtype {}", to_string(spec.dtype));
  if (spec.fc1_layout != plain.fc1_layout)
    text += fmt::format(" --fc1-layout {}", to_string(spec.fc1_layout));
  if (spec.fc2_layout != plain.fc2_layout)
    text += fmt::format(" --fc2-layout {}", to_string(spec.fc2_layout));
  if (spec.gated() && spec.gate_order != plain.gate_order)
    text += fmt::format(" --gate-order {}", to_string(spec.gate_order));
  if (spec.batch_invariant) text += " --batch-invariant";
  if (!spec.shared_widths.empty())
    text += " --shared-widths " + list_of(classes_of_widths(spec.shared_widths));
  if (spec.shared_gate) text += " --shared-gate";
  if (spec.bias) text += " --bias";
  if (spec.weight_on_input) text += " --weight-on-input";
  return text + fmt::format(" --tokens {}", tokens);
}

std::string tune_training_command(const LayerSpec& spec, std::int64_t tokens, GradientType gradient_type) {
  return tune_command(spec, tokens) + " --training" +
         (gradient_type == GradientType::fp32 ? " --fp32-gradients" : "");
}

}  // namespace varmoe::tuningdb
