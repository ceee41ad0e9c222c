#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <new>

#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/verbs.hpp"

using namespace varmoe;
using namespace varmoe::tools;

int main(int argc, char** argv) try {
  handle_signals();
  Program app(
      "varmoe-tune",
      "Plans, compiles, tunes and inspects the kernels of Mixture-of-Experts layers. All but tune and verify "
      "need no GPU.",
      "Exit status: 0 done, 1 some items failed, 2 usage, 3 environment.");
  bool json = false;
  app.add_flag("--json", json, "one JSON object a line on stdout instead of text");
  app.require_subcommand(1);

  Action run;
  add_plan(app, run);
  add_compile(app, run);
  add_tune(app, run);
  add_verify(app, run);
  add_pack(app, run);
  add_report(app, run);
  add_emit(app, run);
  add_cache(app, run);
  add_records(app, run);
  add_exchange(app, run);
  add_doctor(app, run);
  add_env(app, run);
  add_worker(app, run);
  if (const auto status = app.parse(argc, argv)) return *status;
  return run(Output(json));
} catch (const std::bad_alloc&) {
  fmt::print(stderr, "error: out of memory\n");
  return kEnvironment;
} catch (const std::exception& error) {
  fmt::print(stderr, "error: {} (a bug in varmoe-tune)\n", error.what());
  return kSomeFailed;
}
