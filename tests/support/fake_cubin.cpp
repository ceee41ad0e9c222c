#include "support/fake_cubin.hpp"

#include <elf.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace varmoe::test {
namespace {

constexpr std::uint16_t kMachineCuda = 190;
constexpr std::uint32_t kNvInfo = 0x70000000;
constexpr std::uint8_t kMaxThreads = 0x05, kFrameSize = 0x11, kParameter = 0x17, kRegCount = 0x2f;

using Bytes = std::vector<std::byte>;

template <class T>
void append(Bytes& out, const T& value) {
  const auto* p = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), p, p + sizeof value);
}
void append_text(Bytes& out, std::string_view text) {
  for (const char c : text) out.push_back(static_cast<std::byte>(c));
}
template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void attribute(Bytes& out, std::uint8_t id, const std::vector<std::uint32_t>& words) {
  append(out, std::uint8_t{4});
  append(out, id);
  append(out, static_cast<std::uint16_t>(words.size() * 4));
  for (const std::uint32_t w : words) append(out, w);
}

std::uint32_t reserved_smem(int arch) {
  return arch >= 90 ? 1024 : 0;
}

class StringTable {
 public:
  std::uint32_t add(std::string_view text) {
    const auto at = static_cast<std::uint32_t>(bytes.size());
    append_text(bytes, text);
    bytes.push_back(std::byte{0});
    return at;
  }
  Bytes bytes{std::byte{0}};
};

struct Section {
  std::string name;
  Elf64_Word type = SHT_PROGBITS;
  Elf64_Word link = 0, info = 0;
  Elf64_Xword entry_size = 0;
  Bytes bytes;
  std::uint64_t nobits = 0;
};

}  // namespace

Bytes make_fake_cubin(const FakeCubin& cubin) {
  StringTable section_names;
  StringTable symbol_names;
  std::vector<Section> sections(4);  // null, .shstrtab, .strtab, .symtab
  sections[1] = {".shstrtab", SHT_STRTAB, 0, 0, 0, {}, 0};
  sections[2] = {".strtab", SHT_STRTAB, 0, 0, 0, {}, 0};
  sections[3] = {".symtab", SHT_SYMTAB, 2, 1, sizeof(Elf64_Sym), {}, 0};
  Bytes symbols;
  append(symbols, Elf64_Sym{});
  Bytes info;
  std::uint32_t symbol = 0;
  for (const FakeKernel& kernel : cubin.kernels) {
    ++symbol;
    attribute(info, kRegCount, {symbol, kernel.registers});
    attribute(info, kFrameSize, {symbol, kernel.frame_bytes});
  }
  sections.push_back({".nv.info", kNvInfo, 3, 0, 0, info, 0});
  symbol = 0;
  for (const FakeKernel& kernel : cubin.kernels) {
    ++symbol;
    const auto text_index = static_cast<Elf64_Half>(sections.size());
    Section text{".text." + kernel.entry, SHT_PROGBITS, 3, symbol, 0, {}, 0};
    append_text(text.bytes, cubin.code);
    sections.push_back(text);
    Bytes of_entry;
    std::uint32_t offset = 0;
    for (std::uint32_t ordinal = 0; ordinal < kernel.parameter_bytes.size(); ++ordinal) {
      const std::uint32_t size = kernel.parameter_bytes[ordinal];
      const std::uint32_t align = size >= 8 ? 8 : size;
      offset = (offset + align - 1) / align * align;
      attribute(of_entry, kParameter, {0, ordinal | offset << 16, size << 18 | 0x1f000});
      offset += size;
    }
    attribute(of_entry, kMaxThreads, {kernel.max_threads, 1, 1});
    sections.push_back({".nv.info." + kernel.entry, kNvInfo, 3, text_index, 0, of_entry, 0});
    // From sm_90 on the section includes what the system keeps for itself.
    if (const std::uint64_t bytes = kernel.static_smem + reserved_smem(cubin.arch); kernel.static_smem) {
      sections.push_back({".nv.shared." + kernel.entry, SHT_NOBITS, 0, text_index, 0, {}, bytes});
    }
    Elf64_Sym s{};
    s.st_name = symbol_names.add(kernel.entry);
    s.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
    s.st_shndx = text_index;
    s.st_size = cubin.code.size();
    append(symbols, s);
  }
  sections[2].bytes = symbol_names.bytes;
  sections[3].bytes = symbols;
  std::vector<Elf64_Shdr> headers(sections.size());
  for (std::size_t i = 1; i < sections.size(); ++i) headers[i].sh_name = section_names.add(sections[i].name);
  sections[1].bytes = section_names.bytes;

  Bytes out(sizeof(Elf64_Ehdr));
  for (std::size_t i = 1; i < sections.size(); ++i) {
    while (out.size() % 8) out.push_back(std::byte{0});
    headers[i].sh_type = sections[i].type;
    headers[i].sh_link = sections[i].link;
    headers[i].sh_info = sections[i].info;
    headers[i].sh_entsize = sections[i].entry_size;
    headers[i].sh_offset = out.size();
    headers[i].sh_size = sections[i].type == SHT_NOBITS ? sections[i].nobits : sections[i].bytes.size();
    out.insert(out.end(), sections[i].bytes.begin(), sections[i].bytes.end());
  }
  while (out.size() % 8) out.push_back(std::byte{0});
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  const bool new_abi = cubin.compiler_major >= 13;
  header.e_ident[EI_OSABI] = new_abi ? 0x41 : 0x33;
  header.e_ident[EI_ABIVERSION] = new_abi ? 8 : 7;
  header.e_type = ET_EXEC;
  header.e_machine = kMachineCuda;
  header.e_version = 1;
  const auto arch = static_cast<Elf64_Word>(cubin.arch);
  header.e_flags = new_abi ? arch << 8 | 0x06000004U : arch << 16 | 0x500U | arch;
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = static_cast<Elf64_Half>(sections.size());
  header.e_shstrndx = 1;
  header.e_shoff = out.size();
  std::memcpy(out.data(), &header, sizeof header);
  for (const Elf64_Shdr& h : headers) append(out, h);
  return out;
}

const FakeKernel* ImageInfo::find(std::string_view entry) const {
  for (const FakeKernel& kernel : kernels) {
    if (kernel.entry == entry) return &kernel;
  }
  return nullptr;
}

namespace {

std::optional<ImageInfo> read_ptx(std::string_view text) {
  ImageInfo info;
  info.is_ptx = true;
  const std::size_t at = text.find(".version ");
  int major = 0;
  int minor = 0;
  if (at == std::string_view::npos || std::sscanf(text.data() + at, ".version %d.%d", &major, &minor) != 2)
    return {};
  // PTX 8.0 came with CUDA 12.0, 9.0 with 13.0; minor versions run alike up to 8.5 (12.5), near enough
  // beyond.
  info.min_driver = (major + 4) * 1000 + minor * 10;
  if (const std::size_t target = text.find(".target sm_"); target != std::string_view::npos) {
    static_cast<void>(std::sscanf(text.data() + target, ".target sm_%d", &info.arch));
  }
  for (std::size_t e = text.find(".entry "); e != std::string_view::npos; e = text.find(".entry ", e + 1)) {
    const std::size_t begin = e + 7;
    FakeKernel kernel;
    kernel.entry = std::string(text.substr(begin, text.find_first_of("( \n", begin) - begin));
    info.kernels.push_back(kernel);
  }
  return info;
}

}  // namespace

std::optional<ImageInfo> read_image(const void* image) {
  if (!image) return {};
  const auto* base = static_cast<const std::byte*>(image);
  if (std::memcmp(base, ELFMAG, SELFMAG) != 0) {
    const auto* text = static_cast<const char*>(image);
    for (int i = 0; i < 4; ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      if (c == 0 || c > 126 || (c < 32 && c != '\n' && c != '\t')) return {};
    }
    return read_ptx(text);
  }
  const auto header = load<Elf64_Ehdr>(base);
  if (header.e_machine != kMachineCuda || header.e_shoff == 0) return {};
  ImageInfo info;
  const bool new_abi = header.e_ident[EI_ABIVERSION] >= 8;
  info.arch = static_cast<int>(new_abi ? header.e_flags >> 8 & 0xffff : header.e_flags & 0xff);
  info.min_driver = new_abi ? 13000 : 12000;
  std::vector<Elf64_Shdr> sections;
  for (int i = 0; i < header.e_shnum; ++i) {
    sections.push_back(
        load<Elf64_Shdr>(base + header.e_shoff + static_cast<std::size_t>(i) * sizeof(Elf64_Shdr)));
  }
  const auto text_at = [&](std::uint64_t offset) {
    return std::string(reinterpret_cast<const char*>(base + offset));
  };
  const auto name = [&](const Elf64_Shdr& s) {
    return text_at(sections.at(header.e_shstrndx).sh_offset + s.sh_name);
  };
  std::map<std::string, FakeKernel> kernels;
  std::map<std::uint32_t, std::string> symbols;
  for (const Elf64_Shdr& s : sections) {
    if (name(s).starts_with(".text.")) kernels[name(s).substr(6)].entry = name(s).substr(6);
    if (s.sh_type != SHT_SYMTAB) continue;
    for (std::uint64_t i = 0; i < s.sh_size / sizeof(Elf64_Sym); ++i) {
      const auto symbol = load<Elf64_Sym>(base + s.sh_offset + i * sizeof(Elf64_Sym));
      symbols[static_cast<std::uint32_t>(i)] = text_at(sections.at(s.sh_link).sh_offset + symbol.st_name);
    }
  }
  for (const Elf64_Shdr& s : sections) {
    const std::string section = name(s);
    if (section.starts_with(".nv.shared.") && kernels.count(section.substr(11))) {
      kernels[section.substr(11)].static_smem =
          static_cast<std::uint32_t>(s.sh_size) - reserved_smem(info.arch);
    }
    if (s.sh_type != kNvInfo || !section.starts_with(".nv.info")) continue;
    FakeKernel* own =
        section.size() > 9 && kernels.count(section.substr(9)) ? &kernels[section.substr(9)] : nullptr;
    for (std::uint64_t at = s.sh_offset; at + 4 <= s.sh_offset + s.sh_size;) {
      const auto format = load<std::uint8_t>(base + at);
      const auto id = load<std::uint8_t>(base + at + 1);
      const auto size = load<std::uint16_t>(base + at + 2);
      const std::byte* payload = base + at + 4;
      at += 4;
      if (format != 4) continue;
      at += size;
      if ((id == kRegCount || id == kFrameSize) && size == 8) {
        const auto found = kernels.find(symbols[load<std::uint32_t>(payload)]);
        if (found == kernels.end()) continue;
        (id == kRegCount ? found->second.registers : found->second.frame_bytes) =
            load<std::uint32_t>(payload + 4);
      } else if (id == kParameter && size == 12 && own) {
        const auto ordinal = load<std::uint16_t>(payload + 4);
        if (own->parameter_bytes.size() <= ordinal) own->parameter_bytes.resize(ordinal + 1U);
        own->parameter_bytes[ordinal] = load<std::uint32_t>(payload + 8) >> 18;
      } else if (id == kMaxThreads && size == 12 && own) {
        own->max_threads = load<std::uint32_t>(payload);
      }
    }
  }
  for (auto& [unused, kernel] : kernels) info.kernels.push_back(std::move(kernel));
  return info;
}

}  // namespace varmoe::test
