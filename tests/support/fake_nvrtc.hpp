#pragma once

#include <cstddef>
#include <string>
#include <vector>

/// An NVRTC that is none: a shared library with NVRTC's symbols, to be loaded with
/// compile::load_nvrtc(VARMOE_FAKE_NVRTC) and steered through these functions (link varmoe_fake_nvrtc), or in
/// a child process through the environment: FAKE_NVRTC_MODE=<name of a mode>,
/// FAKE_NVRTC_VERSION=<major.minor.build>. Its cubins are those of fake_cubin.hpp; equal inputs give equal
/// bytes. Thread-safe.
namespace varmoe::fake_nvrtc {

enum class Mode {
  ok,
  version_fails,     ///< nvrtcVersion returns an error
  no_builtins,       ///< every compile: "failed to open libnvrtc-builtins"
  error,             ///< "error: identifier … is undefined"
  error_huge_log,    ///< the same in 100 MB
  huge_log,          ///< succeeds, with 100 MB of warnings
  empty,             ///< succeeds, with a cubin of 0 bytes
  spills,            ///< succeeds; the log has spills, a stack frame and a C7510 line
  no_log,            ///< succeeds without any log
  hang,              ///< until release_hung()
  hang_cooperative,  ///< until release_hung() or until the flow callback says cancel
  crash,             ///< abort(): only for child processes
};

void reset();
/// For compiles after the next `skip`; probes that load_nvrtc makes do not count (they have no __global__),
/// except in no_builtins.
void set_mode(Mode mode, int skip = 0, int times = -1);
void set_version(int major, int minor, int build);
void set_architectures(std::vector<int> architectures);
void set_delay_ms(int milliseconds);  ///< of each compile
void release_hung();

std::size_t compiles();      ///< of programs with a kernel
std::size_t most_at_once();  ///< compiles that overlapped
std::size_t hung();          ///< at this moment
std::size_t live_programs();
std::vector<std::string> last_options();
std::vector<std::string> last_header_names();

}  // namespace varmoe::fake_nvrtc
