#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nvrtc.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>

#include "compile/compile_log.hpp"
#include "compile/compiler.hpp"
#include "compile/cubin_info.hpp"
#include "compile/nvrtc_search.hpp"

// The only file that includes nvrtc.h.
#define VARMOE_NVRTC_FUNCTIONS(X) \
  X(nvrtcVersion)                 \
  X(nvrtcGetErrorString)          \
  X(nvrtcGetNumSupportedArchs)    \
  X(nvrtcGetSupportedArchs)       \
  X(nvrtcCreateProgram)           \
  X(nvrtcDestroyProgram)          \
  X(nvrtcCompileProgram)          \
  X(nvrtcGetPTXSize)              \
  X(nvrtcGetPTX)                  \
  X(nvrtcGetCUBINSize)            \
  X(nvrtcGetCUBIN)                \
  X(nvrtcGetProgramLogSize)       \
  X(nvrtcGetProgramLog)

namespace varmoe::compile {
namespace {

constexpr int kMinMajor = 12, kMinMinor = 4;
/// The folder that kernels seem to come from, in diagnostics and line info.
constexpr const char* kSourceRoot = "/varmoe/";
/// A log beyond this is not fetched at all.
constexpr std::size_t kMaxFetchedLog = std::size_t{512} << 20;

struct NvrtcTable {
#define VARMOE_NVRTC_MEMBER(name) decltype(&::name) name = nullptr;
  VARMOE_NVRTC_FUNCTIONS(VARMOE_NVRTC_MEMBER)
#undef VARMOE_NVRTC_MEMBER
  /// NVRTC 12.8 and newer; null before.
  nvrtcResult (*nvrtcSetFlowCallback)(nvrtcProgram, int (*)(void*, void*), void*) = nullptr;
};

/// Destroys a program at the end of its scope.
class Program {
 public:
  explicit Program(const NvrtcTable& table) : table_(table) {}
  ~Program() {
    if (handle) static_cast<void>(table_.nvrtcDestroyProgram(&handle));
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  nvrtcProgram handle = nullptr;

 private:
  const NvrtcTable& table_;
};

/// What NVRTC asks during a compile; once it has been told to stop it must always be told so.
struct Cancellation {
  const std::atomic<bool>* request;
  std::atomic<bool> latched{false};
  static int ask(void* self_pointer, void*) {
    auto* self = static_cast<Cancellation*>(self_pointer);
    if (self->request->load(std::memory_order_relaxed)) self->latched.store(true, std::memory_order_relaxed);
    return self->latched.load(std::memory_order_relaxed) ? 1 : 0;
  }
};

/// The number of "sm_90a" or "compute_120f"; 0 when it is no such name.
int arch_number(std::string_view arch) {
  for (const std::string_view prefix : {"sm_", "compute_"}) {
    if (!arch.starts_with(prefix)) continue;
    int number = 0;
    const char* begin = arch.data() + prefix.size();
    const char* end = arch.data() + arch.size();
    const auto [rest, error] = std::from_chars(begin, end, number);
    const bool feature = end - rest == 1 && (*rest == 'a' || *rest == 'f');
    return error == std::errc() && number >= 10 && number < 10000 && (rest == end || feature) ? number : 0;
  }
  return 0;
}

/// Options that would let something into a compile that the cubin key does not know, or spoil the code.
bool forbidden(std::string_view option) {
  for (const std::string_view prefix :
       {"-I", "--include-path", "-include", "--pre-include", "-G", "--device-debug", "-arch",
        "--gpu-architecture", "-Ofc", "--Ofast-compile"}) {
    if (option.starts_with(prefix)) return true;
  }
  return false;
}

std::string path_of(void* function) {
  Dl_info info{};
  if (dladdr(function, &info) == 0 || !info.dli_fname) return {};
  std::error_code error;
  const auto real = std::filesystem::canonical(info.dli_fname, error);
  return error ? std::string(info.dli_fname) : real.string();
}

class Nvrtc final : public Compiler {
 public:
  Nvrtc(const NvrtcTable& table, CompilerVersion version, std::string path, std::string place)
      : table_(table), version_(version), path_(std::move(path)), place_(std::move(place)) {}

  CompilerVersion version() const override { return version_; }
  std::string description() const override {
    return fmt::format("NVRTC {} ({}; {})", version_text(), path_, place_);
  }

  std::vector<int> architectures() const override {
    int count = 0;
    if (table_.nvrtcGetNumSupportedArchs(&count) != NVRTC_SUCCESS || count <= 0) return {};
    std::vector<int> archs(static_cast<std::size_t>(count));
    if (table_.nvrtcGetSupportedArchs(archs.data()) != NVRTC_SUCCESS) return {};
    std::sort(archs.begin(), archs.end());
    return archs;
  }

  Result<KernelBinary> compile(const CompileRequest& request) override {
    try {
      return compile_checked(request);
    } catch (const std::bad_alloc&) {
      return Error(ErrorCode::out_of_memory, "out of host memory while compiling " + request.entry_name);
    } catch (const std::exception& e) {
      return Error(ErrorCode::internal, fmt::format("compiling {}: {}", request.entry_name, e.what()));
    }
  }

  /// Shows that it can compile at all (its builtins library may be missing) and learns the build number.
  Status probe() {
    CompileRequest request;
    request.text = "extern \"C\" __device__ int varmoe_nvrtc_build = __CUDACC_VER_BUILD__;\n";
    const std::vector<int> archs = architectures();
    const auto arch = std::lower_bound(archs.begin(), archs.end(), 80);
    if (arch == archs.end()) {
      return Error(ErrorCode::no_compiler,
                   fmt::format("it knows no architecture from 80 up, only {}", fmt::join(archs, ", ")));
    }
    request.arch = fmt::format("compute_{}", *arch);
    request.entry_name = "the probe";
    auto result = compile(request);
    if (!result) return std::move(result).error();
    const std::string_view ptx(reinterpret_cast<const char*>(result->image.data()), result->image.size());
    constexpr std::string_view kMark = "varmoe_nvrtc_build = ";
    const std::size_t at = ptx.find(kMark);
    if (at != std::string_view::npos) {
      std::from_chars(ptx.data() + at + kMark.size(), ptx.data() + ptx.size(), version_.build);
    }
    return {};
  }

 private:
  std::string version_text() const {
    return fmt::format("{}.{}.{}", version_.major, version_.minor, version_.build);
  }

  Result<KernelBinary> compile_checked(const CompileRequest& request);
  Status check_request(const CompileRequest& request) const;
  std::string log_of(nvrtcProgram program) const;

  const NvrtcTable table_;
  CompilerVersion version_;
  const std::string path_, place_;
};

Status Nvrtc::check_request(const CompileRequest& request) const {
  const int number = arch_number(request.arch);
  if (number == 0) {
    return Error(ErrorCode::invalid_argument,
                 fmt::format("\"{}\" is no architecture; right would be sm_90a or compute_90", request.arch));
  }
  for (const std::string& option : request.options) {
    if (forbidden(option)) {
      return Error(ErrorCode::invalid_argument,
                   fmt::format("option {} is not for kernels of varmoe", option));
    }
  }
  const std::vector<int> archs = architectures();
  if (!std::binary_search(archs.begin(), archs.end(), number)) {
    return Error(
        ErrorCode::unsupported,
        fmt::format("NVRTC {} cannot compile for {}; it knows {}. PTX for compute_{} runs on newer GPUs",
                    version_text(), request.arch, fmt::join(archs, ", "), archs.empty() ? 0 : archs.back()));
  }
  if (request.cancel && request.cancel->load(std::memory_order_relaxed)) {
    return Error(ErrorCode::cancelled, fmt::format("compiling {} was cancelled", request.entry_name));
  }
  return {};
}

std::string Nvrtc::log_of(nvrtcProgram program) const {
  std::size_t size = 0;
  if (table_.nvrtcGetProgramLogSize(program, &size) != NVRTC_SUCCESS || size <= 1) return {};
  if (size > kMaxFetchedLog) return fmt::format("[a log of {} bytes left out]\n", size);
  const auto log = std::make_unique_for_overwrite<char[]>(size);
  if (table_.nvrtcGetProgramLog(program, log.get()) != NVRTC_SUCCESS) return {};
  return std::string(log.get(), ::strnlen(log.get(), size));
}

Result<KernelBinary> Nvrtc::compile_checked(const CompileRequest& request) {
  if (auto status = check_request(request); !status) return status.error();
  const auto start = std::chrono::steady_clock::now();
  const bool ptx = request.arch.starts_with("compute_");

  std::vector<std::string> options = {"--gpu-architecture=" + request.arch};
  const auto add = [&](const std::string& option) {
    if (std::find(options.begin(), options.end(), option) == options.end()) options.push_back(option);
  };
  for (const std::string& option : request.options) add(option);
  add("--no-source-include");
  if (!ptx) add("--ptxas-options=-v");
  if (request.line_info) add("--generate-line-info");
  std::vector<const char*> option_pointers;
  for (const std::string& option : options) option_pointers.push_back(option.c_str());
  std::vector<const char*> texts;
  std::vector<const char*> names;
  // In line info NVRTC puts the working directory before every relative file name, which would make the cubin
  // depend on it: a #line gives each header an absolute name there.
  std::vector<std::string> placed;
  placed.reserve(request.headers.size());
  for (const SourceHeader& header : request.headers) {
    if (request.line_info)
      placed.push_back(fmt::format("#line 1 \"{}{}\"\n{}", kSourceRoot, header.name, header.text));
    texts.push_back(request.line_info ? placed.back().c_str() : header.text.c_str());
    names.push_back(header.name.c_str());
  }

  const auto failure = [&](nvrtcResult result, const char* call, const std::string& log) {
    if (result == NVRTC_ERROR_CANCELLED) {
      return Error(ErrorCode::cancelled, fmt::format("compiling {} was cancelled", request.entry_name));
    }
    const ErrorCode code =
        result == NVRTC_ERROR_OUT_OF_MEMORY ? ErrorCode::out_of_memory : ErrorCode::compile_failed;
    return Error(code, fmt::format("NVRTC {} could not compile {} for {}: {} returned {}{}{}", version_text(),
                                   request.entry_name, request.arch, call, table_.nvrtcGetErrorString(result),
                                   log.empty() ? "" : "; its log:\n", bounded_log(log)));
  };

  Program program(table_);
  const std::string name = kSourceRoot + request.entry_name + ".cu";
  nvrtcResult result = table_.nvrtcCreateProgram(&program.handle, request.text.c_str(), name.c_str(),
                                                 static_cast<int>(texts.size()), texts.data(), names.data());
  if (result != NVRTC_SUCCESS) return failure(result, "nvrtcCreateProgram", {});
  Cancellation cancellation{request.cancel};
  if (request.cancel && table_.nvrtcSetFlowCallback) {
    static_cast<void>(table_.nvrtcSetFlowCallback(program.handle, &Cancellation::ask, &cancellation));
  }
  result = table_.nvrtcCompileProgram(program.handle, static_cast<int>(option_pointers.size()),
                                      option_pointers.data());
  const std::string log = log_of(program.handle);
  if (result != NVRTC_SUCCESS) return failure(result, "nvrtcCompileProgram", log);

  KernelBinary binary;
  std::size_t size = 0;
  result =
      ptx ? table_.nvrtcGetPTXSize(program.handle, &size) : table_.nvrtcGetCUBINSize(program.handle, &size);
  if (result != NVRTC_SUCCESS) return failure(result, ptx ? "nvrtcGetPTXSize" : "nvrtcGetCUBINSize", log);
  if (size == 0) {
    return Error(ErrorCode::compile_failed,
                 fmt::format("NVRTC {} compiled {} for {} without complaint but gave an empty image{}{}",
                             version_text(), request.entry_name, request.arch,
                             log.empty() ? "" : "; its log:\n", bounded_log(log)));
  }
  binary.image.resize(size);
  char* image = reinterpret_cast<char*>(binary.image.data());
  result = ptx ? table_.nvrtcGetPTX(program.handle, image) : table_.nvrtcGetCUBIN(program.handle, image);
  if (result != NVRTC_SUCCESS) return failure(result, ptx ? "nvrtcGetPTX" : "nvrtcGetCUBIN", log);

  binary.is_ptx = ptx;
  binary.arch = request.arch;
  binary.entry_name = request.entry_name;
  binary.compiler = version_;
  if (!ptx) {
    // Also shows that the entry is in there; its numbers serve where the log lacks them.
    const auto from_image = cubin_resources(binary.image, request.entry_name);
    if (!from_image) {
      return Error(ErrorCode::compile_failed,
                   fmt::format("NVRTC {} made an image for {} that has no kernel named {}", version_text(),
                               request.arch, request.entry_name));
    }
    binary.resources = parse_resources(log, request.entry_name).value_or(*from_image);
  }
  binary.log = bounded_log(log);
  binary.compile_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return binary;
}

/// Tries one candidate. On failure `why` says what it is not.
std::shared_ptr<Nvrtc> open_candidate(const NvrtcCandidate& candidate, std::string& why) {
  void* library = dlopen(candidate.library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    why = reason ? reason : "cannot be loaded";
    return nullptr;
  }
  const auto refuse = [&](std::string reason) -> std::shared_ptr<Nvrtc> {
    dlclose(library);
    why = std::move(reason);
    return nullptr;
  };
  NvrtcTable table;
#define VARMOE_NVRTC_FIND(name)                                               \
  table.name = reinterpret_cast<decltype(table.name)>(dlsym(library, #name)); \
  if (!table.name) return refuse("is no NVRTC: it has no " #name);
  VARMOE_NVRTC_FUNCTIONS(VARMOE_NVRTC_FIND)
#undef VARMOE_NVRTC_FIND
  table.nvrtcSetFlowCallback =
      reinterpret_cast<decltype(table.nvrtcSetFlowCallback)>(dlsym(library, "nvrtcSetFlowCallback"));
  CompilerVersion version;
  if (const nvrtcResult r = table.nvrtcVersion(&version.major, &version.minor); r != NVRTC_SUCCESS) {
    return refuse(
        fmt::format("does not tell its version: nvrtcVersion returned {}", table.nvrtcGetErrorString(r)));
  }
  if (version.major < kMinMajor || (version.major == kMinMajor && version.minor < kMinMinor)) {
    return refuse(fmt::format("is NVRTC {}.{}; {}.{} or newer is needed", version.major, version.minor,
                              kMinMajor, kMinMinor));
  }
  // At its first compile NVRTC opens its builtins library by name. Where NVRTC lies outside the loader's
  // folders that only works when the library is loaded already. Its absence shows in the probe.
  const std::string path = path_of(reinterpret_cast<void*>(table.nvrtcVersion));
  const auto builtins = std::filesystem::path(path).parent_path() /
                        fmt::format("libnvrtc-builtins.so.{}.{}", version.major, version.minor);
  static_cast<void>(dlopen(builtins.c_str(), RTLD_NOW | RTLD_LOCAL));
  auto nvrtc =
      std::make_shared<Nvrtc>(table, version, path.empty() ? candidate.library : path, candidate.place);
  if (auto status = nvrtc->probe(); !status) {
    // It has run: leave it loaded.
    why = fmt::format("is NVRTC {}.{} but does not work: {}", version.major, version.minor,
                      status.error().message());
    return nullptr;
  }
  return nvrtc;
}

}  // namespace

Result<std::string> target_arch(const std::vector<int>& architectures, std::string_view arch) {
  const int number = arch_number(arch);
  if (number == 0) {
    return Error(ErrorCode::internal, fmt::format("\"{}\" is not an architecture like sm_90a", arch));
  }
  if (std::find(architectures.begin(), architectures.end(), number) != architectures.end()) return std::string(arch);
  int newest = 0;
  for (const int known : architectures) {
    if (known < number) newest = std::max(newest, known);
  }
  if (newest == 0) {
    return Error(ErrorCode::unsupported,
                 fmt::format("the NVRTC at hand makes no code for {}: its oldest architecture is sm_{}", arch,
                             architectures.empty() ? 0 : *std::min_element(architectures.begin(), architectures.end())));
  }
  return fmt::format("compute_{}", newest);
}

Result<std::shared_ptr<Compiler>> load_nvrtc(const std::string& explicit_path) {
  try {
    const NvrtcSearch search = find_nvrtc(explicit_path, real_world());
    std::string found;
    for (const NvrtcCandidate& candidate : search.candidates) {
      std::string why;
      if (auto nvrtc = open_candidate(candidate, why)) return std::shared_ptr<Compiler>(std::move(nvrtc));
      // That the loader does not know a bare name is the usual case and said by the list of places.
      if (candidate.library.find('/') == std::string::npos &&
          why.find("cannot open shared object file") != std::string::npos) {
        continue;
      }
      found += fmt::format("\n  {} {}", candidate.library, why);
    }
    return Error(ErrorCode::no_compiler,
                 fmt::format("no usable NVRTC {}.{} or newer; install a CUDA toolkit or the "
                             "nvidia-cuda-nvrtc package of pip, or name "
                             "the library with VARMOE_NVRTC_LIB.{}{}\nLooked at:\n  {}",
                             kMinMajor, kMinMinor, found.empty() ? "" : "\nFound but not usable:", found,
                             fmt::join(search.looked_at, "\n  ")));
  } catch (const std::exception& e) {
    return Error(ErrorCode::internal, fmt::format("looking for NVRTC: {}", e.what()));
  }
}

}  // namespace varmoe::compile
