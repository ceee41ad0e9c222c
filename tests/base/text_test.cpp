#include "base/text.hpp"

#include <doctest/doctest.h>

using namespace varmoe;

TEST_CASE("printable shows what would otherwise move the cursor or break the line") {
  CHECK(printable("plain text: ü, µ, 漢, 😀") == "plain text: ü, µ, 漢, 😀");
  CHECK(printable("a\nb\tc\x1b[31m\x7f") == "a\\x0ab\\x09c\\x1b[31m\\x7f");
  CHECK(printable("back\\slash") == "back\\x5cslash");
  CHECK(printable(std::string("nul\0byte", 8)) == "nul\\x00byte");
  CHECK(printable("\xff\xc3(") == "\\xff\\xc3(");
  CHECK(printable("\xc0\x80") == "\\xc0\\x80");                    // overlong
  CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");           // surrogate
  CHECK(printable("\xf4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");  // above U+10FFFF
  CHECK(printable("\xc2\x9b") == "\\xc2\\x9b");                    // C1: another way to write ESC [
  CHECK(printable("\xe6\xbc") == "\\xe6\\xbc");                    // cut short
}

TEST_CASE("printable cuts long text and says how long it was") {
  const std::string shown = printable(std::string(1 << 20, 'x'), 10);
  CHECK(shown == "xxxxxxxxxx… (1048576 bytes)");
  CHECK(printable("exactly", 7) == "exactly");
}

TEST_CASE("edit distance counts insertions, deletions, replacements and swaps") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("abc", "") == 3);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("CACHE", "CAHCE") == 1);
  CHECK(edit_distance("CACHE_DIR", "CACHEDIR") == 1);
  CHECK(edit_distance(std::string(1 << 20, 'a'), "a") == 127);
}

TEST_CASE("nearest is the first of those that differ least") {
  const std::string_view names[] = {"CACHE", "CACHE_DIR", "LOG"};
  CHECK(nearest("CACHEDIR", names) == "CACHE_DIR");
  CHECK(nearest("lgo", names) == "LOG");
  CHECK(nearest("x", {}).empty());
}

TEST_CASE("split and join") {
  CHECK(split("a:b::c", ':') == std::vector<std::string_view>{"a", "b", "", "c"});
  CHECK(split("", ':') == std::vector<std::string_view>{""});
  CHECK(split(":", ':') == std::vector<std::string_view>{"", ""});
  const std::string_view parts[] = {"a", "b"};
  CHECK(join(parts) == "a, b");
  CHECK(join({}) == "");
}

TEST_CASE("numbers are digits alone, and fit") {
  CHECK(parse_uint64("0") == 0u);
  CHECK(parse_uint64("007") == 7u);
  CHECK(parse_uint64("18446744073709551615") == UINT64_MAX);
  for (const char* bad : {"", "18446744073709551616", "99999999999999999999", "-1", "+1", " 1", "1 ", "1.0",
                          "0x1", "1e3", "٣"}) {
    CAPTURE(bad);
    CHECK_FALSE(parse_uint64(bad));
  }
}

TEST_CASE("byte sizes") {
  CHECK(parse_byte_size("0") == 0u);
  CHECK(parse_byte_size("123b") == 123u);
  CHECK(parse_byte_size("1k") == 1024u);
  CHECK(parse_byte_size("512KiB") == 512u * 1024);
  CHECK(parse_byte_size("3MB") == 3u << 20);
  CHECK(parse_byte_size("10GiB") == std::uint64_t{10} << 30);
  CHECK(parse_byte_size("2T") == std::uint64_t{2} << 40);
  CHECK(parse_byte_size("9223372036854775807") == INT64_MAX);
  for (const char* bad :
       {"", "G", "-1G", "1.5G", "1 G", "1P", "1GiBs", "1GG", "9223372036854775808", "8388608T", "1Gi"}) {
    CAPTURE(bad);
    CHECK_FALSE(parse_byte_size(bad));
  }
  CHECK(format_byte_size(0) == "0 B");
  CHECK(format_byte_size(1023) == "1023 B");
  CHECK(format_byte_size(1536) == "1.5 KiB");
  CHECK(format_byte_size((1 << 20) - 1) == "1.0 MiB");
  CHECK(format_byte_size(std::uint64_t{2} << 30) == "2.0 GiB");
  CHECK(format_byte_size(UINT64_MAX) == "16.0 EiB");
}
