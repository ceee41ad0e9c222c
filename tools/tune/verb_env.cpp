#include <fmt/core.h>

#include <map>

#include "base/env.hpp"
#include "tools/common/command_line.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

int env_verb(const Output& out) {
  auto environment = Environment::read();
  if (!environment) return out.fail(environment.error());
  std::map<std::string, std::string> set;
  for (const auto& setting : environment->settings) set[setting.name] = setting.value;
  Table table({"variable", "value", "default", "choices", ""});
  for (const EnvVariable& v : env_table()) {
    const auto found = set.find(v.name);
    const std::string value = found == set.end() ? "" : found->second;
    table.add({v.name, value.empty() ? "-" : value.substr(0, 60),
               *v.default_value == '\0' ? "-" : v.default_value, v.choices, v.help});
    out.event("variable", Json()
                              .add("name", v.name)
                              .add("value", value)
                              .add("set", found != set.end())
                              .add("default", v.default_value)
                              .add("choices", v.choices)
                              .add("help", v.help));
  }
  out.say(table.text());
  for (const std::string& warning : environment->warnings) {
    out.say("warning: " + warning);
    out.event("warning", Json().add("message", warning));
  }
  return 0;
}

}  // namespace

void add_env(Command& app, Action& run) {
  auto* verb = app.add_subcommand("env", "Lists every VARMOE_* variable with its value, default and choices");
  verb->callback([&run] { run = env_verb; });
}

}  // namespace varmoe::tools
