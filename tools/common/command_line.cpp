#include "tools/common/command_line.hpp"

#include <CLI/CLI.hpp>
#include <memory>
#include <utility>

#include "tools/common/exit_status.hpp"
#include "varmoe/version.hpp"

namespace varmoe::tools {

Option* Option::group(const std::string& title) {
  option_->group(title);
  return this;
}
Option* Option::capture_default_str() {
  option_->capture_default_str();
  return this;
}
Option* Option::required() {
  option_->required();
  return this;
}
Option* Option::needs(Option* other) {
  option_->needs(other->option_);
  return this;
}
Option* Option::excludes(Option* other) {
  option_->excludes(other->option_);
  return this;
}
Option* Option::range(int least, int most) {
  option_->check(CLI::Range(least, most));
  return this;
}
Option* Option::range(std::int64_t least, std::int64_t most) {
  option_->check(CLI::Range(least, most));
  return this;
}
Option* Option::range(double least, double most) {
  option_->check(CLI::Range(least, most));
  return this;
}
Option* Option::positive() {
  option_->check(CLI::PositiveNumber);
  return this;
}
Option* Option::member(std::vector<std::string> choices) {
  option_->check(CLI::IsMember(std::move(choices)));
  return this;
}

Option* Command::keep(CLI::Option* option) {
  return &options_.emplace_back(*option);
}

template <class T>
Option* Command::add_option(const std::string& names, T& value, const std::string& help) {
  return keep(app_->add_option(names, value, help));
}

template Option* Command::add_option(const std::string&, std::string&, const std::string&);
template Option* Command::add_option(const std::string&, int&, const std::string&);
template Option* Command::add_option(const std::string&, std::int64_t&, const std::string&);
template Option* Command::add_option(const std::string&, double&, const std::string&);
template Option* Command::add_option(const std::string&, std::optional<double>&, const std::string&);
template Option* Command::add_option(const std::string&, std::optional<int>&, const std::string&);
template Option* Command::add_option(const std::string&, std::vector<std::string>&, const std::string&);
template Option* Command::add_option(const std::string&, std::uint64_t&, const std::string&);

Option* Command::add_flag(const std::string& names, bool& value, const std::string& help) {
  return keep(app_->add_flag(names, value, help));
}
Option* Command::get_option(const std::string& name) {
  return keep(app_->get_option(name));
}
Command* Command::add_subcommand(const std::string& name, const std::string& help) {
  return &commands_.emplace_back(*app_->add_subcommand(name, help));
}
Command* Command::callback(std::function<void()> parsed) {
  app_->callback(std::move(parsed));
  return this;
}
Command* Command::require_subcommand(int count) {
  app_->require_subcommand(count);
  return this;
}
Command* Command::group(const std::string& title) {
  app_->group(title);
  return this;
}

Program::Program(const std::string& name, const std::string& what, const std::string& footer)
    : Command(*std::make_unique<CLI::App>(what).release()) {
  app_->name(name);
  app_->set_version_flag("--version", std::string("varmoe ") + version());
  app_->footer(footer);
  app_->fallthrough();
}
Program::~Program() {
  delete app_;
}

std::optional<int> Program::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app_->exit(error) == 0 ? kDone : kUsage;
  }
  return std::nullopt;
}

}  // namespace varmoe::tools
