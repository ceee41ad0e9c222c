#include "compile/cubin_info.hpp"

#include <elf.h>

#include <cstring>
#include <string>
#include <vector>

namespace varmoe::compile {
namespace {

constexpr std::uint16_t kElfMachineCuda = 190;
constexpr std::uint32_t kNvInfoType = 0x70000000;
constexpr std::uint8_t kFormatSized = 4;
constexpr std::uint8_t kAttributeFrameSize = 0x11, kAttributeRegisterCount = 0x2f;
constexpr std::uint64_t kReservedSmem =
    1024;  // what the system keeps of a block's shared memory, sm_90 and newer

class Elf {
 public:
  static std::optional<Elf> open(std::span<const std::byte> image) {
    Elf elf;
    elf.image_ = image;
    Elf64_Ehdr header;
    if (!elf.read(0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kElfMachineCuda ||
        header.e_shentsize != sizeof(Elf64_Shdr)) {
      return {};
    }
    for (std::uint64_t i = 0; i < header.e_shnum; ++i) {
      Elf64_Shdr section;
      if (!elf.read(header.e_shoff + i * sizeof section, section)) return {};
      if (section.sh_type != SHT_NOBITS && !elf.inside(section.sh_offset, section.sh_size)) return {};
      elf.sections.push_back(section);
    }
    if (header.e_shstrndx >= elf.sections.size()) return {};
    elf.names_ = elf.sections[header.e_shstrndx];
    // The compute capability × 10 moved within the flags with CUDA 13's ABI.
    elf.arch = header.e_ident[EI_ABIVERSION] >= 8 ? header.e_flags >> 8 & 0xffff : header.e_flags & 0xff;
    return elf;
  }

  template <class T>
  bool read(std::uint64_t at, T& out) const {
    if (!inside(at, sizeof out)) return false;
    std::memcpy(&out, image_.data() + at, sizeof out);
    return true;
  }
  std::string_view name(const Elf64_Shdr& section) const { return text(names_, section.sh_name); }
  /// The zero-terminated text in a string section.
  std::string_view text(const Elf64_Shdr& strings, std::uint64_t offset) const {
    if (strings.sh_type != SHT_STRTAB || offset >= strings.sh_size) return {};
    const char* begin = reinterpret_cast<const char*>(image_.data() + strings.sh_offset + offset);
    return {begin, ::strnlen(begin, strings.sh_size - offset)};
  }
  const Elf64_Shdr* find(std::string_view wanted) const {
    for (const Elf64_Shdr& section : sections) {
      if (name(section) == wanted) return &section;
    }
    return nullptr;
  }
  std::vector<Elf64_Shdr> sections;
  std::uint32_t arch = 0;

 private:
  bool inside(std::uint64_t at, std::uint64_t bytes) const {
    return at <= image_.size() && bytes <= image_.size() - at;
  }
  std::span<const std::byte> image_;
  Elf64_Shdr names_{};
};

std::optional<std::uint32_t> symbol_index(const Elf& elf, std::string_view wanted) {
  for (const Elf64_Shdr& section : elf.sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= elf.sections.size()) continue;
    for (std::uint64_t i = 0; i < section.sh_size / sizeof(Elf64_Sym); ++i) {
      Elf64_Sym symbol;
      if (!elf.read(section.sh_offset + i * sizeof symbol, symbol)) return {};
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC &&
          elf.text(elf.sections[section.sh_link], symbol.st_name) == wanted) {
        return static_cast<std::uint32_t>(i);
      }
    }
  }
  return {};
}

}  // namespace

std::optional<ResourceUsage> cubin_resources(std::span<const std::byte> image, std::string_view entry_name) {
  const auto elf = Elf::open(image);
  if (!elf || entry_name.empty() || !elf->find(".text." + std::string(entry_name))) return {};
  const auto symbol = symbol_index(*elf, entry_name);
  const Elf64_Shdr* info = elf->find(".nv.info");
  if (!symbol || !info || info->sh_type != kNvInfoType) return {};
  ResourceUsage usage;
  bool found = false;
  const std::uint64_t end = info->sh_offset + info->sh_size;
  for (std::uint64_t at = info->sh_offset; at + 4 <= end;) {
    std::uint8_t format = 0;
    std::uint8_t attribute = 0;
    std::uint16_t size = 0;
    if (!elf->read(at, format) || !elf->read(at + 1, attribute) || !elf->read(at + 2, size)) return {};
    at += 4;
    if (format != kFormatSized) continue;  // the other formats hold their value in the two bytes
    std::uint32_t of = 0;
    std::uint32_t value = 0;
    if (size == 8 && at + 8 <= end && elf->read(at, of) && elf->read(at + 4, value) && of == *symbol) {
      if (attribute == kAttributeRegisterCount) {
        usage.registers = static_cast<std::int32_t>(value);
        found = true;
      } else if (attribute == kAttributeFrameSize) {
        usage.stack_bytes = static_cast<std::int32_t>(value);
      }
    }
    at += size;
  }
  if (!found) return {};
  if (const Elf64_Shdr* shared = elf->find(".nv.shared." + std::string(entry_name))) {
    const bool reserves = elf->arch >= 90 && shared->sh_size >= kReservedSmem;
    usage.static_smem = static_cast<std::int32_t>(shared->sh_size - (reserves ? kReservedSmem : 0));
  }
  return usage;
}

}  // namespace varmoe::compile
