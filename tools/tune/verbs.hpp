#pragma once

#include <functional>
#include <string>

#include "tools/common/output.hpp"

namespace CLI {
class App;
}

/// The verbs of varmoe-tune. Each adds its subcommand, and sets `run` when that subcommand was named.
namespace varmoe::tools {

/// What a parsed command line asks for; returns the exit status.
using Action = std::function<int(const Output&)>;

void add_plan(CLI::App& app, Action& run);
void add_compile(CLI::App& app, Action& run);
void add_emit(CLI::App& app, Action& run);
void add_cache(CLI::App& app, Action& run);
void add_doctor(CLI::App& app, Action& run);
void add_records(CLI::App& app, Action& run);   ///< show, check, merge
void add_exchange(CLI::App& app, Action& run);  ///< import, export
void add_pack(CLI::App& app, Action& run);
void add_report(CLI::App& app, Action& run);
void add_verify(CLI::App& app, Action& run);
void add_tune(CLI::App& app, Action& run);
void add_worker(CLI::App& app, Action& run);  ///< what tune and verify start; not for people
void add_env(CLI::App& app, Action& run);

}  // namespace varmoe::tools
