#include <unistd.h>

#include <memory>

#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/session.hpp"
#include "tools/gpu/gpu_measurer.hpp"
#include "tools/tune/verbs.hpp"
#include "tuner/serve_worker.hpp"

namespace varmoe::tools {
namespace {

struct WorkerOptions {
  SessionOptions session;
  int gpu = 0;
};

int worker_verb(const WorkerOptions& options, const Output&) {
  const Output errors(false);  // stdout is the tuner's
  auto out = tuner::take_stdout();
  if (!out) return errors.fail(out.error());
  const tuner::ExitOnHangUp hang_up(STDIN_FILENO);
  auto measurer = open_gpu_measurer(options.session, options.gpu);
  if (!measurer) return errors.fail(measurer.error());
  const Status served = tuner::serve_worker(STDIN_FILENO, *out, **measurer);
  return served ? kDone : errors.fail(served.error());
}

}  // namespace

void add_worker(Command& app, Action& run) {
  auto* verb = app.add_subcommand(
      "worker", "Measures for varmoe-tune tune and verify, which start it; no verb for people");
  verb->group("");  // not in the help
  auto options = std::make_shared<WorkerOptions>();
  verb->add_option("--gpu", options->gpu, "CUDA device number")->range(0, 1023);
  verb->add_option("--jobs", options->session.threads, "compile threads")->range(0, 1024);
  options->session.add_cache(*verb);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return worker_verb(*options, out); }; });
}

}  // namespace varmoe::tools
