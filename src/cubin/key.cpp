#include "cubin/key.hpp"

#include <algorithm>
#include <vector>

namespace varmoe::cubin {

Digest cubin_key(std::string_view text, std::span<const SourceHeader> headers,
                 std::span<const std::string> options, std::string_view arch) {
  std::vector<const SourceHeader*> sorted;
  sorted.reserve(headers.size());
  for (const SourceHeader& header : headers) sorted.push_back(&header);
  std::stable_sort(sorted.begin(), sorted.end(), [](const SourceHeader* a, const SourceHeader* b) {
    return a->name != b->name ? a->name < b->name : a->text < b->text;
  });

  Hasher hasher;
  hasher.field(std::string_view("varmoe cubin key")).field(kKeySchema).field(text);
  // Counts before lists: a header cannot pass for an option.
  hasher.field(sorted.size());
  for (const SourceHeader* header : sorted) {
    hasher.field(std::string_view(header->name)).field(std::string_view(header->text));
  }
  hasher.field(options.size());
  for (const std::string& option : options) hasher.field(std::string_view(option));
  hasher.field(arch);
  return hasher.finish();
}

}  // namespace varmoe::cubin
