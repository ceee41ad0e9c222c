#include "engine/kernel_dump.hpp"

#include <fmt/format.h>

#include "base/atomic_file.hpp"
#include "base/file_system.hpp"

namespace varmoe::engine {

Status dump_kernel(const std::string& folder, const emit::EmittedKernel& emitted,
                   const KernelBinary& binary) {
  FileSystem& fs = posix_file_system();
  const AtomicWriteOptions options{.mode = 0644, .sync = false, .create_folder = true};
  const std::string base = join_path(folder, emitted.entry_name);
  for (const SourceHeader& header : emitted.headers) {
    const std::string path = join_path(join_path(folder, "include"), header.name);
    FileInfo info;
    // Every kernel has the same text for a name; the first to come writes it.
    if (fs.lstat(path, &info) == 0 && info.size == header.text.size()) continue;
    if (Status status = write_atomically(fs, path, as_bytes(header.text), options); !status) return status;
  }
  if (Status status = write_atomically(fs, base + ".cu", as_bytes(emitted.text), options); !status)
    return status;
  if (Status status = write_atomically(fs, base + (binary.is_ptx ? ".ptx" : ".cubin"), binary.image, options);
      !status)
    return status;
  const ResourceUsage& r = binary.resources;
  std::string text =
      fmt::format("entry: {}\narch: {}\nNVRTC: {}.{}.{}\noptions:", emitted.entry_name, binary.arch,
                  binary.compiler.major, binary.compiler.minor, binary.compiler.build);
  for (const std::string& option : emitted.options) text += ' ' + option;
  text += fmt::format(
      "\nblock: {} threads, {} per SM\nregisters: {}\nspill stores: {} bytes\nspill loads: {} bytes\nstack: "
      "{} bytes\n"
      "static shared memory: {} bytes\ndynamic shared memory: {} bytes\ncompile: {:.1f} ms\nlog:\n{}\n",
      emitted.block_threads, emitted.ctas_per_sm, r.registers, r.spill_stores, r.spill_loads, r.stack_bytes,
      r.static_smem, emitted.dynamic_smem_bytes, binary.compile_ms, binary.log);
  return write_atomically(fs, base + ".txt", as_bytes(text), options);
}

}  // namespace varmoe::engine
