#include "cuda/module.hpp"

#include <elf.h>
#include <fmt/format.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/driver_table.hpp"
#include "cuda/graph.hpp"

namespace varmoe::cuda {
namespace {

constexpr std::uint16_t kElfMachineCuda = 190;

/// The driver is given a pointer without a size and believes the image's own header, so a truncated image
/// must not reach it.
bool sound_elf(const std::vector<std::byte>& image) {
  Elf64_Ehdr header;
  if (image.size() < sizeof header) return false;
  std::memcpy(&header, image.data(), sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_machine != kElfMachineCuda) {
    return false;
  }
  const auto inside = [&](std::uint64_t offset, std::uint64_t bytes) {
    return offset <= image.size() && bytes <= image.size() - offset;
  };
  if (header.e_shentsize != sizeof(Elf64_Shdr) || header.e_shnum == 0 ||
      !inside(header.e_shoff, std::uint64_t{header.e_shnum} * sizeof(Elf64_Shdr)) ||
      !inside(header.e_phoff, std::uint64_t{header.e_phnum} * header.e_phentsize)) {
    return false;
  }
  for (std::uint64_t i = 0; i < header.e_shnum; ++i) {
    Elf64_Shdr section;
    std::memcpy(&section, image.data() + header.e_shoff + i * sizeof section, sizeof section);
    if (section.sh_type != SHT_NOBITS && section.sh_type != SHT_NULL &&
        !inside(section.sh_offset, section.sh_size)) {
      return false;
    }
  }
  return true;
}

/// Whether code for `arch` can run on the device. Unknown names are left to the driver.
bool arch_fits(const KernelBinary& binary, const DeviceAttributes& device) {
  const std::string& arch = binary.arch;
  const std::size_t underscore = arch.find('_');
  if (underscore == std::string::npos) return true;
  std::size_t i = underscore + 1;
  int number = 0;
  for (; i < arch.size() && arch[i] >= '0' && arch[i] <= '9' && number < 10000; ++i)
    number = number * 10 + (arch[i] - '0');
  if (number < 10) return true;
  const int major = number / 10;
  const int minor = number % 10;
  const char feature = i < arch.size() ? arch[i] : ' ';
  if (feature == 'a') return major == device.compute_major && minor == device.compute_minor;
  const bool same_major = major == device.compute_major && minor <= device.compute_minor;
  if (binary.is_ptx && feature != 'f') return same_major || major < device.compute_major;
  return same_major;
}

struct Refusal {
  LoadFailure why;
  Error error;
};

Refusal explain(const Device& device, const KernelBinary& binary, CUresult result, const char* call,
                const std::string& log) {
  const Driver& driver = device.driver();
  Error error = driver.failure(static_cast<int>(result), call);
  if (!log.empty()) error = Error(error.code(), error.message() + ": " + log);
  const auto named = [&](ErrorCode code, const std::string& text) {
    return Error(
        code, fmt::format("kernel {} ({}): {}: {}", binary.entry_name, binary.arch, text, error.message()));
  };
  const int made_by = binary.compiler.major * 1000 + binary.compiler.minor * 10;
  const auto too_new = [&] {
    return Refusal{LoadFailure::too_new,
                   named(ErrorCode::driver_too_old,
                         fmt::format("it was compiled by NVRTC {}.{}.{}, which is newer than the CUDA {} "
                                     "that the installed driver "
                                     "supports; update the driver, or compile with NVRTC {} or older",
                                     binary.compiler.major, binary.compiler.minor, binary.compiler.build,
                                     version_text(driver.version()), version_text(driver.version())))};
  };
  const auto damaged = [&](const char* text) {
    return Refusal{LoadFailure::damaged, named(ErrorCode::device_error, text)};
  };
  const bool newer_minor = made_by > driver.version();
  const bool newer_major = binary.compiler.major > driver.version() / 1000;
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return {LoadFailure::out_of_memory, named(ErrorCode::out_of_memory, "no memory to load it")};
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
      return too_new();
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
      if (!arch_fits(binary, device.attributes())) {
        const DeviceAttributes& a = device.attributes();
        return {LoadFailure::wrong_device,
                named(ErrorCode::unsupported, fmt::format("it does not run on {} (compute capability {}.{})",
                                                          a.name, a.compute_major, a.compute_minor))};
      }
      return newer_minor ? too_new() : damaged("the driver finds no code for this GPU in it");
    case CUDA_ERROR_INVALID_IMAGE:
    case CUDA_ERROR_INVALID_SOURCE:
    case CUDA_ERROR_INVALID_PTX:
      // Machine code of a newer minor version is meant to load (minor version compatibility), PTX is not.
      return newer_major || (binary.is_ptx && newer_minor) ? too_new()
                                                           : damaged("the driver refuses the image");
    case CUDA_ERROR_NOT_FOUND:
      return damaged("the image has no kernel of this name");
    default:
      return {LoadFailure::other, named(error.code(), "it could not be loaded")};
  }
}

}  // namespace

Result<Module> Module::load(std::shared_ptr<Device> device, const KernelBinary& binary, int dynamic_smem,
                            LoadFailure* why) {
  LoadFailure ignored;
  LoadFailure& reason = why ? *why : ignored;
  reason = LoadFailure::none;
  const Driver& driver = device->driver();
  const DriverTable& table = driver.table();
  const auto fail = [&](LoadFailure kind, Error error) -> Result<Module> {
    reason = kind;
    return error;
  };
  if (!binary.is_ptx && !sound_elf(binary.image)) {
    return fail(
        LoadFailure::damaged,
        Error(ErrorCode::device_error, fmt::format("kernel {} ({}): {} bytes that are no cubin",
                                                   binary.entry_name, binary.arch, binary.image.size())));
  }
  // PTX is passed as a string.
  std::vector<std::byte> terminated;
  const std::byte* image = binary.image.data();
  if (binary.is_ptx && (binary.image.empty() || binary.image.back() != std::byte{0})) {
    terminated = binary.image;
    terminated.push_back(std::byte{0});
    image = terminated.data();
  }
  const ContextScope scope(*device);
  if (!scope.ok()) return fail(LoadFailure::other, scope.status().error());
  const RelaxedCaptureScope relaxed(driver);

  Module module;
  module.device_ = device;
  module.image_bytes_ = binary.image.size();
  std::array<char, 4096> jit_log{};
  const auto refuse = [&](CUresult result, const char* call) {
    Refusal refusal = explain(*device, binary, result, call, jit_log.data());
    return fail(refusal.why, std::move(refusal.error));
  };

  std::array<CUjit_option, 2> options = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  std::array<void*, 2> values = {jit_log.data(), reinterpret_cast<void*>(jit_log.size() - 1)};
  CUlibrary library = nullptr;
  CUresult result = table.cuLibraryLoadData(&library, image, binary.is_ptx ? options.data() : nullptr,
                                            binary.is_ptx ? values.data() : nullptr, binary.is_ptx ? 2U : 0U,
                                            nullptr, nullptr, 0);
  if (result != CUDA_SUCCESS) return refuse(result, "cuLibraryLoadData");
  module.library_ = library;

  CUkernel kernel = nullptr;
  result = table.cuLibraryGetKernel(&kernel, library, binary.entry_name.c_str());
  if (result != CUDA_SUCCESS) return refuse(result, "cuLibraryGetKernel");
  CUfunction function = nullptr;
  result = table.cuKernelGetFunction(&function, kernel);
  if (result != CUDA_SUCCESS) return refuse(result, "cuKernelGetFunction");
  // With CUDA_MODULE_LOADING=LAZY, the default, code would otherwise be brought in by the first launch.
  // Drivers without cuFuncLoad bring it in when an attribute is asked for.
  if (table.cuFuncLoad) {
    result = table.cuFuncLoad(function);
    if (result != CUDA_SUCCESS) return refuse(result, "cuFuncLoad");
  }
  module.function_ = function;
  const std::array<std::pair<CUfunction_attribute, int*>, 4> wanted = {{
      {CU_FUNC_ATTRIBUTE_NUM_REGS, &module.attributes_.registers},
      {CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, &module.attributes_.local_bytes},
      {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, &module.attributes_.static_smem},
      {CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, &module.attributes_.max_threads},
  }};
  for (const auto& [attribute, value] : wanted) {
    result = table.cuFuncGetAttribute(value, attribute, function);
    if (result != CUDA_SUCCESS) return refuse(result, "cuFuncGetAttribute");
  }
  if (dynamic_smem > 0) {
    result =
        table.cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic_smem);
    if (result == CUDA_ERROR_INVALID_VALUE) {
      const int fixed = module.attributes_.static_smem;
      return fail(
          LoadFailure::other,
          Error(
              ErrorCode::invalid_config,
              fmt::format(
                  "kernel {} needs {} bytes of shared memory ({} static + {} dynamic); {} allows {} a block",
                  binary.entry_name, fixed + dynamic_smem, fixed, dynamic_smem, device->attributes().name,
                  device->attributes().smem_per_block)));
    }
    if (result != CUDA_SUCCESS) return refuse(result, "cuFuncSetAttribute");
  }
  return module;
}

Module::Module(Module&& other) noexcept {
  *this = std::move(other);
}
Module& Module::operator=(Module&& other) noexcept {
  if (this != &other) {
    unload();
    device_ = std::move(other.device_);
    library_ = std::exchange(other.library_, nullptr);
    function_ = std::exchange(other.function_, nullptr);
    attributes_ = other.attributes_;
    image_bytes_ = std::exchange(other.image_bytes_, 0);
  }
  return *this;
}
Module::~Module() {
  unload();
}

void Module::unload() noexcept {
  if (library_) {
    const ContextScope scope(*device_);
    const RelaxedCaptureScope relaxed(device_->driver());
    quiet_call(device_->driver(), device_->driver().table().cuLibraryUnload,
               static_cast<CUlibrary>(library_));
  }
  library_ = nullptr;
  function_ = nullptr;
  device_.reset();
}

Result<int> Module::blocks_per_sm(int block_threads, int dynamic_smem) const {
  const ContextScope scope(*device_);
  if (!scope.ok()) return scope.status().error();
  int blocks = 0;
  if (auto status = VARMOE_CUDA_CALL(device_->driver(), cuOccupancyMaxActiveBlocksPerMultiprocessor, &blocks,
                                     static_cast<CUfunction>(function_), block_threads,
                                     static_cast<std::size_t>(dynamic_smem));
      !status) {
    return status.error();
  }
  return blocks;
}

}  // namespace varmoe::cuda
