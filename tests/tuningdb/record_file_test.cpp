#include <doctest/doctest.h>

#include "tuningdb/fixture.hpp"
#include "tuningdb/record_order.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

std::vector<TuningRecord> some_records() {
  return {record_number(0), record_number(1), record_number(12), record_of(mixed_layer(), 64)};
}

bool is_one_of(const TuningRecord& record, const std::vector<TuningRecord>& records) {
  return std::find(records.begin(), records.end(), record) != records.end();
}

}  // namespace

TEST_CASE("a file of records is written as it was read, byte by byte") {
  for (const std::vector<TuningRecord>& records :
       {std::vector<TuningRecord>{}, {record_number(3)}, some_records()}) {
    const std::string text = file_text(records);
    const auto file = parse_record_file(text, "a.json");
    REQUIRE(file.ok());
    CHECK(file->problems.empty());
    CHECK(file->sorted);
    CHECK(file->records.size() == records.size());
    CHECK(*record_file_text(*file) == text);
    CHECK(text.back() == '\n');
    for (const StoredRecord& stored : file->records) CHECK(is_one_of(stored.record, records));
  }
}

TEST_CASE("the order of merging does not show in the file") {
  std::vector<TuningRecord> records = some_records();
  TuningRecord again = record_number(1);
  again.date = "2027-01-01T00:00:00Z";
  records.push_back(again);
  const std::string text = file_text(records);
  for (int i = 0; i < 20; ++i) {
    std::next_permutation(records.begin(), records.end(),
                          [](const TuningRecord& a, const TuningRecord& b) { return better(a, b); });
    CHECK(file_text(records) == text);
  }
  std::reverse(records.begin(), records.end());
  CHECK(file_text(records) == text);
}

TEST_CASE("a changed figure changes one line of the file") {
  const auto lines = [](const std::string& text) {
    std::vector<std::string> all;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = text.find('\n', at);
      all.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    return all;
  };
  std::vector<TuningRecord> records = some_records();
  const auto before = lines(file_text(records));
  records[1].us1 *= 2;
  const auto after = lines(file_text(records));
  REQUIRE(before.size() == after.size());
  int changed = 0;
  for (std::size_t i = 0; i < before.size(); ++i) changed += before[i] != after[i];
  CHECK(changed == 1);
}

TEST_CASE("one bad record is skipped by name, and the others are used") {
  const std::string text = file_text(some_records());
  const auto file = parse_record_file(replaced(text, "\"topk\": 2", "\"topk\": 2.5"), "dir/a.json");
  REQUIRE(file.ok());
  CHECK(file->records.size() == 3);
  REQUIRE(file->problems.size() == 1);
  CHECK(file->problems[0] == "dir/a.json: records[0]: topk is 2.5; must be an integer from 1 to 32");
}

TEST_CASE("a record that is not understood is kept when the file is written again") {
  const std::string text =
      replaced(file_text(some_records()), "\"dtype\": \"bf16\"", "\"dtype\": \"fp8_e4m3\"");
  const auto file = parse_record_file(text, "a.json");
  REQUIRE(file.ok());
  CHECK(file->records.size() == 3);
  const std::string written = *record_file_text(*file);
  CHECK(written.find("\"dtype\": \"fp8_e4m3\"") != std::string::npos);
  const auto again = parse_record_file(written, "a.json");
  REQUIRE(again.ok());
  CHECK(again->records.size() == 3);
  CHECK(again->unread.size() == 1);
  CHECK(*record_file_text(*again) == written);
}

TEST_CASE("a file of bad records gives a bounded number of messages") {
  std::string text = "{\"varmoe_tuning\": 1, \"records\": [";
  for (int i = 0; i < 5000; ++i) text += i == 0 ? "17" : ",17";
  const auto file = parse_record_file(text + "]}", "a.json");
  REQUIRE(file.ok());
  CHECK(file->records.empty());
  CHECK(file->problems.size() < 50);
  CHECK(file->problems.back().find("more") != std::string::npos);
}

TEST_CASE("of two records with one key the better is used, and it is said") {
  TuningRecord other = record_number(1);
  other.us = 1;
  std::string text = file_text({record_number(1)});
  const std::string record = record_text(other);
  text.insert(text.find("\n]}"), ",\n" + record);
  const auto file = parse_record_file(text, "a.json");
  REQUIRE(file.ok());
  REQUIRE(file->records.size() == 1);
  CHECK(file->records[0].record == other);
  CHECK(file->duplicates == 1);
  REQUIRE(file->problems.size() == 1);
  CHECK(file->problems[0].find("records[1] has the key of records[0]") != std::string::npos);
}

TEST_CASE(
    "fault 25: a newer schema is not used; unknown fields are ignored and kept; an older schema is read") {
  const std::string text = file_text(some_records());
  SUBCASE("newer") {
    const auto file =
        parse_record_file(replaced(text, "\"varmoe_tuning\": 1", "\"varmoe_tuning\": 2"), "a.json");
    REQUIRE(!file.ok());
    CHECK(file.error().code() == ErrorCode::unsupported);
    CHECK(file.error().message().find("varmoe_tuning is 2") != std::string::npos);
  }
  SUBCASE("unknown fields") {
    std::string more = replaced(text, "\"records\": [",
                                "\"note\": {\"b\": [1, 2.50, null], \"a\": \"\\u00e4\\n\"},\n\"records\": [");
    more = replaced(more, "\"candidates\": 412}",
                    "\"candidates\": 412, \"power_watts\": 612.50, \"big\": 18446744073709551615}");
    const auto file = parse_record_file(more, "a.json");
    REQUIRE(file.ok());
    CHECK(file->problems.empty());
    CHECK(file->records.size() == 4);
    const std::string written = *record_file_text(*file);
    CHECK(written.find("\"power_watts\": 612.50") != std::string::npos);
    CHECK(written.find("\"big\": 18446744073709551615") != std::string::npos);
    CHECK(written.find("\"note\": {\"a\": \"ä\\u000a\", \"b\": [1, 2.50, null]}") != std::string::npos);
    CHECK(*record_file_text(*parse_record_file(written, "a.json")) == written);
    // Also where the record is replaced by a better one.
    RecordFile changed = *file;
    TuningRecord better_one = record_number(0);
    better_one.date = "2027-01-01T00:00:00Z";
    CHECK(merge_record(changed, better_one));
    CHECK(record_file_text(changed)->find("power_watts") != std::string::npos);
  }
  SUBCASE("older, as a later version of this library sees this one's files") {
    const auto file = parse_record_file(text, "a.json", kSchema + 1);
    REQUIRE(file.ok());
    CHECK(file->records.size() == 4);
  }
  SUBCASE("none, or nonsense") {
    for (const std::string schema : {"0", "-1", "true", "\"1\"", "1.0", "9223372036854775808", "null"}) {
      CAPTURE(schema);
      const auto file =
          parse_record_file(replaced(text, "\"varmoe_tuning\": 1", "\"varmoe_tuning\": " + schema), "a.json");
      REQUIRE(!file.ok());
      CHECK(file.error().code() == ErrorCode::invalid_argument);
      CHECK(file.error().message().find("varmoe_tuning") != std::string::npos);
    }
    CHECK(!parse_record_file(replaced(text, "\"varmoe_tuning\": 1,", ""), "a.json").ok());
    CHECK(!parse_record_file("{\"varmoe_tuning\": 1}", "a.json").ok());
    CHECK(!parse_record_file("{\"varmoe_tuning\": 1, \"records\": {}}", "a.json").ok());
  }
}

TEST_CASE("fault 21: hostile JSON is refused with a message, or its records are skipped") {
  const std::string good = file_text({record_number(0)});
  const std::vector<std::pair<std::string, std::string>> corpus = {
      {"empty", ""},
      {"byte order mark", "\xEF\xBB\xBF" + good},
      {"duplicate key of the file", replaced(good, "\"records\"", "\"varmoe_tuning\": 1, \"records\"")},
      {"duplicate key of a record", replaced(good, "\"topk\": 2", "\"topk\": 2, \"topk\": 2")},
      {"NaN", replaced(good, "\"us\": 10", "\"us\": NaN")},
      {"Infinity", replaced(good, "\"us\": 10", "\"us\": -Infinity")},
      {"1e400", replaced(good, "\"us\": 10", "\"us\": 1e400")},
      {"deep", replaced(good, "\"us\": 10", "\"us\": " + std::string(1000000, '['))},
      {"NUL", good + std::string(1, '\0')},
      {"bad UTF-8", replaced(good, "0.1.0", "\xff\xfe")},
      {"trailing bytes", good + "{}"},
      {"comment", "// records\n" + good},
      {"merge conflict", "<<<<<<< HEAD\n" + good + "=======\n" + good + ">>>>>>> branch\n"},
      {"a list", "[" + good + "]"},
      {"a number", "17"},
      {"null", "null"},
  };
  for (const auto& [name, text] : corpus) {
    CAPTURE(name);
    const auto file = parse_record_file(text, "a.json");
    REQUIRE(!file.ok());
    CHECK(file.error().code() == ErrorCode::invalid_argument);
    CHECK(file.error().message().rfind("a.json: ", 0) == 0);
    CHECK(file.error().message().size() < 500);
  }
  // Values without end: bounded by bytes and by values.
  std::string many = "{\"varmoe_tuning\": 1, \"records\": [";
  for (int i = 0; i < 20000; ++i) many += "{},";
  CHECK(!parse_record_file(many + "{}]}", "a.json").ok());
  CHECK(!parse_record_file(std::string((32u << 20) + 1, ' '), "a.json").ok());
}

TEST_CASE("faults 15 and 41: a file cut at every length gives no record that nobody wrote") {
  const std::vector<TuningRecord> records = {record_number(0), record_of(mixed_layer(), 64)};
  const std::string text = file_text(records);
  for (std::size_t length = 0; length < text.size(); ++length) {
    const auto file = parse_record_file(std::string_view(text).substr(0, length), "a.json");
    if (!file.ok()) continue;
    CHECK(length + 1 == text.size());  // the last newline alone may be missing
    for (const StoredRecord& stored : file->records) CHECK(is_one_of(stored.record, records));
  }
}

TEST_CASE("fault 16: a flipped bit in every byte costs one record at most its place, never a crash") {
  const std::vector<TuningRecord> records = {record_number(0), record_of(mixed_layer(), 64)};
  const std::string text = file_text(records);
  std::size_t read = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string damaged = text;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    const auto file = parse_record_file(damaged, "a.json");
    if (!file.ok()) continue;
    ++read;
    // No checksum tells a digit that became another one, but each record that is read is in range, and the
    // other is intact.
    std::size_t intact = 0;
    for (const StoredRecord& stored : file->records) {
      CHECK(check_record(stored.record).ok());
      intact += is_one_of(stored.record, records) ? 1 : 0;
    }
    CHECK(intact >= 1);
  }
  CHECK(read > 100);
}

TEST_CASE("a file that could not be read again is not written") {
  RecordFile file;
  for (int i = 0; i < 16385; ++i) file.records.push_back({record_number(0), {}});
  CHECK(!record_file_text(file).ok());
}
