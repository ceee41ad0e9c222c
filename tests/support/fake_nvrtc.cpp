#include "support/fake_nvrtc.hpp"

#include <nvrtc.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <regex>
#include <thread>

#include "support/fake_cubin.hpp"

// The handle's type of nvrtc.h.
struct _nvrtcProgram {
  std::string text;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string log;
  std::vector<std::byte> cubin;
  std::string ptx;
  int (*callback)(void*, void*) = nullptr;
  void* payload = nullptr;
};

namespace varmoe::fake_nvrtc {
namespace {

constexpr std::size_t kHugeLog = 100U << 20;

struct State {
  std::mutex mutex;
  std::condition_variable released;
  Mode mode = Mode::ok;
  int skip = 0;
  int times = -1;
  int major = 13, minor = 0, build = 88;
  int delay_ms = 0;
  std::vector<int> architectures{75, 80, 86, 89, 90, 100, 120};
  std::size_t compiles = 0, running = 0, most = 0, hung = 0, programs = 0;
  unsigned releases = 0;
  std::vector<std::string> options, header_names;
};

State& state() {
  static State* const the_state = [] {
    auto* s = new State;  // never destroyed: a hung compile may outlive static destructors
    if (const char* version = std::getenv("FAKE_NVRTC_VERSION")) {
      static_cast<void>(std::sscanf(version, "%d.%d.%d", &s->major, &s->minor, &s->build));
    }
    if (const char* mode = std::getenv("FAKE_NVRTC_MODE")) {
      const char* names[] = {"ok",    "version_fails", "no_builtins", "error", "error_huge_log",   "huge_log",
                             "empty", "spills",        "no_log",      "hang",  "hang_cooperative", "crash"};
      for (std::size_t i = 0; i < std::size(names); ++i) {
        if (std::strcmp(names[i], mode) == 0) s->mode = static_cast<Mode>(i);
      }
    }
    return s;
  }();
  return *the_state;
}

/// Bytes of a struct of plain fields that the text itself declares, whatever is wider first; 0: it does not.
std::uint32_t struct_bytes(const std::string& text, const std::string& name) {
  std::smatch found;
  if (!std::regex_search(text, found, std::regex("struct " + name + R"( \{([^}]*)\})"))) return 0;
  const std::string body = found[1];
  std::uint32_t bytes = 0;
  static const std::regex declaration(R"(\s*(const )?([A-Za-z_]\w*)([^;]*);)");
  for (std::sregex_iterator it(body.begin(), body.end(), declaration), end; it != end; ++it) {
    const std::string type = (*it)[2], names = (*it)[3];
    const bool wide =
        names.find('*') != std::string::npos || type == "i64" || type == "u64" || type == "double";
    bytes +=
        (wide ? 8U : 4U) * (1U + static_cast<std::uint32_t>(std::count(names.begin(), names.end(), ',')));
  }
  return (bytes + 7) / 8 * 8;
}

test::FakeCubin read_kernels(const std::string& text) {
  test::FakeCubin cubin;
  static const std::regex global(
      R"(__global__\s+(?:void\s+)?(?:__launch_bounds__\((\d*)[^)]*\)\s*)?(?:__cluster_dims__\([^)]*\)\s*)?(?:void\s+)?([A-Za-z_]\w*)\s*\((?:([A-Za-z_]\w*) \w+\))?)");
  for (std::sregex_iterator it(text.begin(), text.end(), global), end; it != end; ++it) {
    test::FakeKernel kernel;
    kernel.entry = (*it)[2];
    if ((*it)[1].length()) kernel.max_threads = static_cast<std::uint32_t>(std::stoul((*it)[1]));
    if (const std::uint32_t bytes = (*it)[3].length() ? struct_bytes(text, (*it)[3]) : 0; bytes != 0)
      kernel.parameter_bytes = {bytes};
    cubin.kernels.push_back(kernel);
  }
  return cubin;
}

std::string hash_of(const nvrtcProgram program, const std::vector<std::string>& options) {
  std::uint64_t h = 1469598103934665603ULL;
  const auto mix = [&](const std::string& s) {
    for (const char c : s + '\0') h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  };
  mix(program->text);
  for (const auto& [name, text] : program->headers) {
    mix(name);
    mix(text);
  }
  for (const std::string& o : options) mix(o);
  return std::to_string(h);
}

void fill_log(std::string& log, std::size_t bytes, const char* line) {
  log.reserve(bytes + 256);
  while (log.size() < bytes) log += line;
}

nvrtcResult hang(std::unique_lock<std::mutex>& lock, nvrtcProgram program, bool cooperative) {
  State& s = state();
  ++s.hung;
  const unsigned before = s.releases;
  nvrtcResult result = NVRTC_ERROR_INTERNAL_ERROR;
  while (s.releases == before) {
    s.released.wait_for(lock, std::chrono::milliseconds(2));
    if (cooperative && program->callback && program->callback(program->payload, nullptr) == 1) {
      result = NVRTC_ERROR_CANCELLED;
      break;
    }
  }
  --s.hung;
  return result;
}

nvrtcResult compile(nvrtcProgram program, const std::vector<std::string>& options) {
  State& s = state();
  std::unique_lock lock(s.mutex);
  test::FakeCubin cubin = read_kernels(program->text);
  if (s.mode == Mode::no_builtins) {
    program->log =
        "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.\n  Make sure that it is installed.\n";
    return NVRTC_ERROR_BUILTIN_OPERATION_FAILURE;
  }
  std::string arch;
  bool verbose = false;
  for (const std::string& o : options) {
    if (o.rfind("--gpu-architecture=", 0) == 0) arch = o.substr(19);
    verbose = verbose || o == "--ptxas-options=-v";
  }
  const std::size_t underscore = arch.find('_');
  cubin.arch = underscore == std::string::npos ? 0 : std::atoi(arch.c_str() + underscore + 1);
  cubin.compiler_major = s.major;
  if (std::find(s.architectures.begin(), s.architectures.end(), cubin.arch) == s.architectures.end()) {
    program->log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
    return NVRTC_ERROR_INVALID_OPTION;
  }
  Mode mode = Mode::ok;
  if (!cubin.kernels.empty()) {
    ++s.compiles;
    s.options = options;
    s.header_names.clear();
    for (const auto& [name, unused] : program->headers) s.header_names.push_back(name);
    if (s.skip > 0) {
      --s.skip;
    } else if (s.times != 0) {
      if (s.times > 0) --s.times;
      mode = s.mode;
    }
    s.most = std::max(s.most, ++s.running);
    const int delay = s.delay_ms;
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(delay));
    lock.lock();
    --s.running;
  }
  static const char undefined[] = "kernel.cu(1): error: identifier \"nonsense\" is undefined\n";
  switch (mode) {
    case Mode::crash:
      std::abort();
    case Mode::hang:
      return hang(lock, program, false);
    case Mode::hang_cooperative:
      return hang(lock, program, true);
    case Mode::error:
      program->log = std::string(undefined) + "1 error detected in the compilation of \"kernel.cu\".\n";
      return NVRTC_ERROR_COMPILATION;
    case Mode::error_huge_log:
      fill_log(program->log, kHugeLog, undefined);
      program->log += "last line of the log\n";
      return NVRTC_ERROR_COMPILATION;
    default:
      break;
  }
  if (arch.rfind("compute_", 0) == 0) {
    program->ptx = "//\n// Cuda compilation tools, release " + std::to_string(s.major) + "." +
                   std::to_string(s.minor) + "\n//\n.version " + std::to_string(s.major - 4) + "." +
                   std::to_string(s.minor) + "\n.target sm_" + arch.substr(8) + "\n";
    if (program->text.find("__CUDACC_VER_BUILD__") != std::string::npos) {
      program->ptx += ".global .align 4 .u32 varmoe_nvrtc_build = " + std::to_string(s.build) + ";\n";
    }
    for (const auto& kernel : cubin.kernels)
      program->ptx += ".visible .entry " + kernel.entry + "(\n)\n{\n}\n";
    program->ptx.push_back('\0');
    return NVRTC_SUCCESS;
  }
  if (mode == Mode::huge_log)
    fill_log(program->log, kHugeLog,
             "kernel.cu(1): warning #177-D: variable \"x\" was declared but never referenced\n");
  if (mode == Mode::spills) {
    program->log +=
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due "
        "to "
        "insufficient register resources for the wgmma pipeline\n";
  }
  if (mode != Mode::no_log && verbose) {
    program->log += "ptxas info    : 0 bytes gmem\n";
    for (auto& kernel : cubin.kernels) {
      if (mode == Mode::spills) kernel.frame_bytes = 80;
      program->log +=
          "ptxas info    : Compiling entry function '" + kernel.entry + "' for '" + arch +
          "'\nptxas info    : Function properties for " + kernel.entry + "\nptxas         .     " +
          (mode == Mode::spills ? "80 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads"
                                : "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") +
          "\nptxas info    : Used 32 registers, used 1 barriers\n";
    }
  }
  if (mode == Mode::empty) return NVRTC_SUCCESS;
  cubin.code = hash_of(program, options);
  program->cubin = test::make_fake_cubin(cubin);
  return NVRTC_SUCCESS;
}

}  // namespace

void reset() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  ++s.releases;
  s.released.notify_all();
  s.mode = Mode::ok;
  s.skip = 0;
  s.times = -1;
  s.major = 13;
  s.minor = 0;
  s.build = 88;
  s.delay_ms = 0;
  s.architectures = {75, 80, 86, 89, 90, 100, 120};
  s.compiles = s.most = 0;
  s.options.clear();
  s.header_names.clear();
}
void set_mode(Mode mode, int skip, int times) {
  const std::lock_guard lock(state().mutex);
  state().mode = mode;
  state().skip = skip;
  state().times = times;
}
void set_version(int major, int minor, int build) {
  const std::lock_guard lock(state().mutex);
  state().major = major;
  state().minor = minor;
  state().build = build;
}
void set_architectures(std::vector<int> architectures) {
  const std::lock_guard lock(state().mutex);
  state().architectures = std::move(architectures);
}
void set_delay_ms(int milliseconds) {
  const std::lock_guard lock(state().mutex);
  state().delay_ms = milliseconds;
}
void release_hung() {
  const std::lock_guard lock(state().mutex);
  ++state().releases;
  state().released.notify_all();
}
std::size_t compiles() {
  const std::lock_guard lock(state().mutex);
  return state().compiles;
}
std::size_t most_at_once() {
  const std::lock_guard lock(state().mutex);
  return state().most;
}
std::size_t hung() {
  const std::lock_guard lock(state().mutex);
  return state().hung;
}
std::size_t live_programs() {
  const std::lock_guard lock(state().mutex);
  return state().programs;
}
std::vector<std::string> last_options() {
  const std::lock_guard lock(state().mutex);
  return state().options;
}
std::vector<std::string> last_header_names() {
  const std::lock_guard lock(state().mutex);
  return state().header_names;
}

}  // namespace varmoe::fake_nvrtc

using namespace varmoe::fake_nvrtc;

// Sizes include the terminating zero, as NVRTC's do.
extern "C" {

const char* nvrtcGetErrorString(nvrtcResult result) {
  switch (result) {
    case NVRTC_ERROR_COMPILATION:
      return "NVRTC_ERROR_COMPILATION";
    case NVRTC_ERROR_INVALID_OPTION:
      return "NVRTC_ERROR_INVALID_OPTION";
    case NVRTC_ERROR_BUILTIN_OPERATION_FAILURE:
      return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE";
    case NVRTC_ERROR_CANCELLED:
      return "NVRTC_ERROR_CANCELLED";
    default:
      return "NVRTC_ERROR unknown";
  }
}

nvrtcResult nvrtcVersion(int* major, int* minor) {
  const std::lock_guard lock(state().mutex);
  if (state().mode == Mode::version_fails) return NVRTC_ERROR_INTERNAL_ERROR;
  *major = state().major;
  *minor = state().minor;
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
  const std::lock_guard lock(state().mutex);
  *count = static_cast<int>(state().architectures.size());
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetSupportedArchs(int* archs) {
  const std::lock_guard lock(state().mutex);
  std::copy(state().architectures.begin(), state().architectures.end(), archs);
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* text, const char*, int count,
                               const char* const* headers, const char* const* names) {
  auto* made = new _nvrtcProgram;
  made->text = text;
  for (int i = 0; i < count; ++i) made->headers.emplace_back(names[i], headers[i]);
  *program = made;
  const std::lock_guard lock(state().mutex);
  ++state().programs;
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  delete *program;
  *program = nullptr;
  const std::lock_guard lock(state().mutex);
  --state().programs;
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
  return compile(program, {options, options + count});
}

nvrtcResult nvrtcSetFlowCallback(nvrtcProgram program, int (*callback)(void*, void*), void* payload) {
  program->callback = callback;
  program->payload = payload;
  return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t* size) {
  *size = program->ptx.size();
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char* ptx) {
  std::copy(program->ptx.begin(), program->ptx.end(), ptx);
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* size) {
  *size = program->cubin.size();
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* cubin) {
  std::memcpy(cubin, program->cubin.data(), program->cubin.size());
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* size) {
  *size = program->log.size() + 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  std::memcpy(log, program->log.c_str(), program->log.size() + 1);
  return NVRTC_SUCCESS;
}

}  // extern "C"
