#include "compile/compile_log.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include "compile/compiler.hpp"
#include "compile/findings.hpp"

namespace varmoe::compile {
namespace {

constexpr std::string_view kStackFrame = " bytes stack frame";
constexpr std::string_view kSpillStores = " bytes spill stores";
constexpr std::string_view kSpillLoads = " bytes spill loads";

/// The number that stands right before `unit` ("80" in "…, 80 bytes stack frame"); −1 when there is none.
std::int32_t number_before(std::string_view line, std::string_view unit) {
  const std::size_t at = line.find(unit);
  if (at == std::string_view::npos) return -1;
  std::size_t begin = at;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
  std::int32_t value = -1;
  const auto [end, error] = std::from_chars(line.data() + begin, line.data() + at, value);
  return error == std::errc() && end == line.data() + at ? value : -1;
}

/// The number that stands right after `word`.
std::int32_t number_after(std::string_view line, std::string_view word) {
  const std::size_t at = line.find(word);
  if (at == std::string_view::npos) return -1;
  std::int32_t value = -1;
  const char* begin = line.data() + at + word.size();
  const auto [end, error] = std::from_chars(begin, line.data() + line.size(), value);
  return error == std::errc() && end != begin ? value : -1;
}

std::string_view text_after(std::string_view line, std::string_view word) {
  const std::size_t at = line.find(word);
  return at == std::string_view::npos ? std::string_view{} : line.substr(at + word.size());
}

template <class F>
void for_each_line(std::string_view log, F&& use) {
  while (!log.empty()) {
    const std::size_t end = std::min(log.find('\n'), log.size());
    use(log.substr(0, end));
    log.remove_prefix(std::min(end + 1, log.size()));
  }
}

/// "(C7510)", "C7510": ptxas's advisories about wgmma and setmaxnreg.
bool has_advisory(std::string_view line) {
  for (std::size_t at = line.find("C75"); at != std::string_view::npos; at = line.find("C75", at + 1)) {
    const bool begins =
        at == 0 || !(std::isalnum(static_cast<unsigned char>(line[at - 1])) || line[at - 1] == '_');
    const auto digit = [&](std::size_t i) { return i < line.size() && line[i] >= '0' && line[i] <= '9'; };
    const bool ends = at + 5 >= line.size() ||
                      !(std::isalnum(static_cast<unsigned char>(line[at + 5])) || line[at + 5] == '_');
    if (begins && digit(at + 3) && digit(at + 4) && ends) return true;
  }
  return false;
}

std::string_view trimmed(std::string_view line) {
  while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.remove_suffix(1);
  while (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  return line;
}

bool interesting(std::string_view line) {
  return has_advisory(line) || number_before(line, kStackFrame) > 0 ||
         number_before(line, kSpillStores) > 0 || number_before(line, kSpillLoads) > 0;
}

}  // namespace

std::string bounded_log(std::string_view log) {
  if (log.size() <= kMaxLogBytes) return std::string(log);
  // Findings must not get lost in what is cut out.
  constexpr std::size_t kHead = kMaxLogBytes / 2, kTail = kMaxLogBytes / 4, kFindings = kMaxLogBytes / 8;
  std::size_t head = log.rfind('\n', kHead);
  head = head == std::string_view::npos || head < kHead / 2 ? kHead : head + 1;
  std::size_t tail = log.find('\n', log.size() - kTail);
  tail = tail == std::string_view::npos || tail > log.size() - kTail / 2 ? log.size() - kTail : tail + 1;
  std::string kept;
  std::string_view properties;
  for_each_line(log.substr(head, tail - head), [&](std::string_view line) {
    if (line.find("Function properties for ") != std::string_view::npos) properties = line;
    if (!interesting(line) || kept.size() + line.size() + properties.size() + 2 > kFindings) return;
    if (number_before(line, kStackFrame) >= 0 && !properties.empty()) kept.append(properties).push_back('\n');
    kept.append(line).push_back('\n');
  });
  return fmt::format("{}[... {} of {} bytes of log left out ...]\n{}{}", log.substr(0, head), tail - head,
                     log.size(), kept, log.substr(tail));
}

std::optional<ResourceUsage> parse_resources(std::string_view log, std::string_view entry_name) {
  ResourceUsage usage;
  bool of_entry = false;      // between this entry's "Compiling entry function" and the next
  bool of_own_frame = false;  // the last "Function properties" were the entry's own, not a callee's
  bool found = false;
  const std::string begin = fmt::format("Compiling entry function '{}'", entry_name);
  for_each_line(log, [&](std::string_view line) {
    if (line.find("Compiling entry function '") != std::string_view::npos) {
      of_entry = line.find(begin) != std::string_view::npos;
      return;
    }
    if (!of_entry) return;
    if (const std::string_view name = text_after(line, "Function properties for "); !name.empty()) {
      of_own_frame = trimmed(name) == entry_name;
      return;
    }
    if (const std::int32_t frame = number_before(line, kStackFrame); frame >= 0) {
      if (of_own_frame) usage.stack_bytes = std::max(usage.stack_bytes, frame);
      // A callee's spills are the kernel's.
      usage.spill_stores += std::max(number_before(line, kSpillStores), 0);
      usage.spill_loads += std::max(number_before(line, kSpillLoads), 0);
      return;
    }
    if (const std::int32_t registers = number_after(line, "Used ");
        registers >= 0 && line.find(" registers") != line.npos) {
      found = true;
      usage.registers = registers;
      usage.static_smem = std::max(number_before(line, " bytes smem"), 0);
      usage.stack_bytes = std::max(usage.stack_bytes, number_before(line, " bytes cumulative stack size"));
    }
  });
  if (!found) return {};
  return usage;
}

std::vector<std::string> log_findings(std::string_view log) {
  std::vector<std::string> out;
  std::string_view function = "a function";
  for_each_line(log, [&](std::string_view line) {
    if (const std::string_view name = text_after(line, "Function properties for "); !name.empty())
      function = trimmed(name);
    if (has_advisory(line)) {
      out.emplace_back(trimmed(line));
    } else if (interesting(line)) {
      out.push_back(fmt::format("{}: {} bytes stack frame, {} bytes spill stores, {} bytes spill loads",
                                function, std::max(number_before(line, kStackFrame), 0),
                                std::max(number_before(line, kSpillStores), 0),
                                std::max(number_before(line, kSpillLoads), 0)));
    }
  });
  return out;
}

std::vector<std::string> findings(const KernelBinary& binary) {
  std::vector<std::string> out = log_findings(binary.log);
  const ResourceUsage& r = binary.resources;
  const bool told = std::any_of(out.begin(), out.end(), [](const std::string& line) {
    return line.find(kStackFrame) != std::string::npos;
  });
  // A log may be missing (an entry from a cache that dropped it) or name no frame.
  if (!told && (r.stack_bytes > 0 || r.spill_stores > 0 || r.spill_loads > 0)) {
    out.push_back(fmt::format("{}: {} bytes stack frame, {} bytes spill stores, {} bytes spill loads",
                              binary.entry_name, r.stack_bytes, r.spill_stores, r.spill_loads));
  }
  return out;
}

}  // namespace varmoe::compile
