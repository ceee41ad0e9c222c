#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/verbs.hpp"
#include "varmoe/version.hpp"

using namespace varmoe;
using namespace varmoe::tools;

int main(int argc, char** argv) try {
  handle_signals();
  CLI::App app{
      "Plans, compiles, tunes and inspects the kernels of Mixture-of-Experts layers. All but tune and verify "
      "need no GPU."};
  app.name("varmoe-tune");
  app.set_version_flag("--version", std::string("varmoe ") + version());
  bool json = false;
  app.add_flag("--json", json, "one JSON object a line on stdout instead of text");
  app.fallthrough();
  app.require_subcommand(1);
  app.footer("Exit status: 0 done, 1 some items failed, 2 usage, 3 environment.");

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
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  return run(Output(json));
} catch (const std::bad_alloc&) {
  fmt::print(stderr, "error: out of memory\n");
  return kEnvironment;
} catch (const std::exception& error) {
  fmt::print(stderr, "error: {} (a bug in varmoe-tune)\n", error.what());
  return kSomeFailed;
}
