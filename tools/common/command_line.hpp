#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

/// Options and verbs of a program. Behind it stands CLI11, whose headers cost seconds in every file that
/// reads them: command_line.cpp alone does.
namespace varmoe::tools {

/// An option or flag; each function returns the option itself. Belongs to its command.
class Option {
 public:
  explicit Option(CLI::Option& option) : option_(&option) {}

  Option* group(const std::string& title);  ///< heading that --help shows it under
  Option* capture_default_str();            ///< --help shows the variable's value of now as the default
  Option* required();
  Option* needs(Option* other);
  Option* excludes(Option* other);
  /// Both ends are allowed.
  Option* range(int least, int most);
  Option* range(std::int64_t least, std::int64_t most);
  Option* range(double least, double most);
  Option* positive();
  Option* member(std::vector<std::string> choices);

 private:
  CLI::Option* option_;
};

/// A program, or one of its verbs. What it hands out lives as long as it does.
class Command {
 public:
  explicit Command(CLI::App& app) : app_(&app) {}
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  /// `names`: as in "--jobs,-j", or a bare name for an argument by position. `value` is written while parsing
  /// and must outlive it. T is one of those that command_line.cpp instantiates.
  template <class T>
  Option* add_option(const std::string& names, T& value, const std::string& help);
  Option* add_flag(const std::string& names, bool& value, const std::string& help);
  /// An option that was added; `name` is one of its names.
  Option* get_option(const std::string& name);
  Command* add_subcommand(const std::string& name, const std::string& help);
  Command* callback(std::function<void()> parsed);
  Command* require_subcommand(int count);
  Command* group(const std::string& title);  ///< heading in --help; empty: hidden

 protected:
  CLI::App* app_;

 private:
  Option* keep(CLI::Option* option);
  std::deque<Option> options_;
  std::deque<Command> commands_;
};

/// What main() parses. Options of the program may also stand behind a verb's name.
class Program : public Command {
 public:
  Program(const std::string& name, const std::string& what, const std::string& footer);
  ~Program();

  /// The exit status where the program has nothing more to do: help or version was asked for, or the command
  /// line is wrong; it was printed then.
  std::optional<int> parse(int argc, char** argv);
};

}  // namespace varmoe::tools
