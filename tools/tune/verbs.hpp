#pragma once

#include <functional>
#include <string>

#include "tools/common/output.hpp"

/// The verbs of varmoe-tune. Each adds its subcommand, and sets `run` when that subcommand was named.
namespace varmoe::tools {

class Command;

/// What a parsed command line asks for; returns the exit status.
using Action = std::function<int(const Output&)>;

void add_plan(Command& app, Action& run);
void add_compile(Command& app, Action& run);
void add_emit(Command& app, Action& run);
void add_cache(Command& app, Action& run);
void add_doctor(Command& app, Action& run);
void add_records(Command& app, Action& run);   ///< show, check, merge
void add_exchange(Command& app, Action& run);  ///< import, export
void add_pack(Command& app, Action& run);
void add_report(Command& app, Action& run);
void add_verify(Command& app, Action& run);
void add_tune(Command& app, Action& run);
void add_worker(Command& app, Action& run);  ///< what tune and verify start; not for people
void add_env(Command& app, Action& run);

}  // namespace varmoe::tools
