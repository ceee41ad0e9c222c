#include <fmt/core.h>

#include <memory>
#include <optional>

#include "base/digest.hpp"
#include "base/text.hpp"
#include "cubin/cache.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct CacheVerbOptions {
  SessionOptions session;
  std::string max_size;
  bool entries = false;
  bool set_aside = false;
  std::string key, out;
};

using Verb = int (*)(const CacheVerbOptions&, const cubin::CubinCache&, const Output&);

int stats(const CacheVerbOptions& options, const cubin::CubinCache& cache, const Output& out) {
  const cubin::CacheStats all = cache.stats();
  Table table({"folder", "", "entries", "size", "set aside", "temporaries", "foreign"});
  for (const cubin::FolderStats& f : all.folders) {
    table.add({f.dir, f.own ? (cache.writable() ? "yours" : "yours, read-only") : "read-only layer",
               f.readable ? std::to_string(f.entries) : "-", format_byte_size(f.bytes),
               std::to_string(f.set_aside), std::to_string(f.temporaries), std::to_string(f.foreign)});
    out.event("folder", Json()
                            .add("path", f.dir)
                            .add("own", f.own)
                            .add("readable", f.readable)
                            .add("note", f.note)
                            .add("entries", f.entries)
                            .add("bytes", f.bytes)
                            .add("set_aside", f.set_aside)
                            .add("temporaries", f.temporaries)
                            .add("foreign", f.foreign));
  }
  if (all.folders.empty()) {
    out.say("no cache folder: kernels are kept in memory only");
  } else {
    out.say(table.text());
  }
  for (const cubin::FolderStats& f : all.folders) {
    if (!f.note.empty()) out.say(f.dir + ": " + f.note);
  }
  out.say(fmt::format("bound: {}", all.max_bytes == 0 ? "none" : format_byte_size(all.max_bytes)));
  if (!options.entries) return kDone;
  Table list({"key", "kernel", "arch", "NVRTC", "size", "folder"});
  for (const cubin::EntryInfo& e : cache.list()) {
    const std::string nvrtc = fmt::format("{}.{}.{}", e.compiler.major, e.compiler.minor, e.compiler.build);
    list.add({e.key.hex(), e.entry_name, e.arch, nvrtc, format_byte_size(e.file_bytes),
              e.layer.empty() ? "yours" : e.layer});
    out.event("entry", Json()
                           .add("key", e.key.hex())
                           .add("name", e.entry_name)
                           .add("arch", e.arch)
                           .add("nvrtc", nvrtc)
                           .add("bytes", e.file_bytes)
                           .add("path", e.path)
                           .add("layer", e.layer));
  }
  out.say(list.text());
  return kDone;
}

void report_removal(const cubin::GcReport& report, const Output& out) {
  out.say(fmt::format("removed {} of {} entries, {} of {}, and {} leftovers", report.entries_removed,
                      report.entries_before, format_byte_size(report.bytes_removed),
                      format_byte_size(report.bytes_before), report.leftovers_removed));
  out.event("removed", Json()
                           .add("ran", report.ran)
                           .add("entries_before", report.entries_before)
                           .add("entries_removed", report.entries_removed)
                           .add("bytes_before", report.bytes_before)
                           .add("bytes_removed", report.bytes_removed)
                           .add("leftovers_removed", report.leftovers_removed));
}

/// A sentence when nothing can be changed; nullopt when it can.
std::optional<Error> not_writable(const cubin::CubinCache& cache) {
  if (cache.writable()) return std::nullopt;
  return Error(ErrorCode::io_error,
               cache.root().empty() ? std::string("there is no cache folder to change: set VARMOE_CACHE_DIR")
                                    : fmt::format("{} cannot be written", cache.root()));
}

int gc(const CacheVerbOptions& options, const cubin::CubinCache& cache, const Output& out) {
  if (auto error = not_writable(cache)) return out.fail(*error);
  std::optional<std::uint64_t> bound;
  if (!options.max_size.empty()) {
    bound = parse_byte_size(options.max_size);
    if (!bound) return out.fail({ErrorCode::invalid_argument, "--max-size is no size such as 500MiB or 0"});
  }
  const cubin::GcReport report = cache.gc(bound);
  if (!report.ran) out.say("nothing done: another collection is at work");
  report_removal(report, out);
  return report.ran ? kDone : kSomeFailed;
}

int clear(const CacheVerbOptions&, const cubin::CubinCache& cache, const Output& out) {
  if (auto error = not_writable(cache)) return out.fail(*error);
  auto report = cache.clear();
  if (!report) return out.fail(report.error());
  report_removal(*report, out);
  return kDone;
}

int verify(const CacheVerbOptions& options, const cubin::CubinCache& cache, const Output& out) {
  const cubin::VerifyReport report = cache.verify(options.set_aside);
  for (const auto& bad : report.bad) {
    out.say(fmt::format("{}: {}", bad.path, bad.reason));
    out.event("bad", Json().add("path", bad.path).add("reason", bad.reason));
  }
  out.say(fmt::format("{} entries, {} sound, {} not{}", report.checked, report.good, report.bad.size(),
                      options.set_aside && !report.bad.empty() ? " (set aside)" : ""));
  out.event("summary",
            Json().add("checked", report.checked).add("good", report.good).add("bad", report.bad.size()));
  return report.bad.empty() ? kDone : kSomeFailed;
}

int extract(const CacheVerbOptions& options, const cubin::CubinCache& cache, const Output& out) {
  const auto key = Digest::from_hex(options.key);
  if (!key) {
    return out.fail({ErrorCode::invalid_argument,
                     "the key is not 32 hex digits; `varmoe-tune cache stats --entries` lists them"});
  }
  if (auto status = cache.extract(*key, options.out); !status) return out.fail(status.error());
  out.say("wrote " + options.out);
  out.event("extracted", Json().add("key", options.key).add("out", options.out));
  return kDone;
}

Command* add_cache_verb(Command& cache, const char* name, const char* help,
                        const std::shared_ptr<CacheVerbOptions>& options, Action& run, Verb verb) {
  auto* sub = cache.add_subcommand(name, help);
  options->session.add_cache(*sub);
  sub->callback([options, &run, verb] {
    run = [options, verb](const Output& out) {
      auto toolchain = open_toolchain(options->session);
      if (!toolchain) return out.fail(toolchain.error());
      return verb(*options, *toolchain->cache, out);
    };
  });
  return sub;
}

}  // namespace

void add_cache(Command& app, Action& run) {
  auto* verb = app.add_subcommand("cache", "Looks after the cubin cache");
  verb->require_subcommand(1);
  auto options = std::make_shared<CacheVerbOptions>();
  auto* stats_verb = add_cache_verb(*verb, "stats", "Folders, entries and sizes", options, run, stats);
  stats_verb->add_flag("--entries", options->entries, "list every entry as well");
  auto* gc_verb = add_cache_verb(
      *verb, "gc", "Removes least recently used entries above the bound, and leftovers", options, run, gc);
  gc_verb->add_option("--max-size", options->max_size, "bound, e.g. 500MiB; default VARMOE_CACHE_MAX_SIZE");
  add_cache_verb(*verb, "clear", "Removes every entry", options, run, clear);
  auto* verify_verb = add_cache_verb(*verb, "verify", "Reads and checks every entry", options, run, verify);
  verify_verb->add_flag("--set-aside", options->set_aside, "move bad entries out of the way");
  auto* extract_verb = add_cache_verb(*verb, "extract", "Writes the machine code of one entry to a file",
                                      options, run, extract);
  extract_verb->add_option("key", options->key, "32 hex digits")->required();
  extract_verb->add_option("--out,-o", options->out, "file to write")->required();
}

}  // namespace varmoe::tools
