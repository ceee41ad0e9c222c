#include <dirent.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <thread>

#include "model/config_json.hpp"
#include "tuner/misbehaviour.hpp"
#include "tuner/serve_worker.hpp"
#include "tuner/worker_protocol.hpp"

/// A tuning worker for tests:
///   misbehaving_worker [--silent] [--chaos SEED]        does with each config what it says
///   (misbehaviour.hpp), or what
///                                                       a hash of it says; silent: without naming the one it
///                                                       works on
///   misbehaving_worker --honest [--hang]                serve_worker as a tool runs it; its configs may hang
///   misbehaving_worker --die TEXT | --die-once FILE TEXT | --mute | --deaf | --hello TEXT  how it starts
using namespace varmoe;
using namespace varmoe::test;

namespace {

bool silent = false;
std::string chaos;

void say(const std::string& text) {
  std::cout << text << std::flush;
}

[[noreturn]] void sleep_forever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

/// One that can be checked: the time of the whole is a function of fc1's tile.
tuner::Measurement good(const LayerConfig& config) {
  tuner::Measurement m;
  m.fc1_us = 100 + config.fc1.block_m;
  m.fc2_us = 50 + config.fc2.block_n;
  m.us = m.fc1_us + m.fc2_us + 5;
  m.skewed_us = m.us + 20;
  m.spread = 0.01;
  m.verified = true;
  return m;
}

Misbehaviour chosen(const LayerConfig& config) {
  if (chaos.empty()) return misbehaviour_of(config);
  const std::string text = model::layer_config_json(config) + chaos;
  std::seed_seq seed(text.begin(), text.end());
  std::mt19937 random(seed);
  constexpr Misbehaviour kinds[] = {Misbehaviour::crash,        Misbehaviour::exit_quietly,
                                    Misbehaviour::garbage,      Misbehaviour::nan,
                                    Misbehaviour::zero,         Misbehaviour::negative,
                                    Misbehaviour::wrong_result, Misbehaviour::another_config,
                                    Misbehaviour::cut_line,     Misbehaviour::hang};
  return random() % 4 != 0 ? Misbehaviour::none : kinds[random() % 10];
}

/// The answer's line with its "us" put as `text`.
std::string with_us(std::int64_t id, std::size_t index, const LayerConfig& config, const std::string& text) {
  std::string line = tuner::answer_line(id, index, config, good(config));
  const std::size_t begin = line.find("\"us\": ") + 6;
  return line.replace(begin, line.find(',', begin) - begin, text) + "\n";
}

std::string inherited() {
  std::string text = "descriptors";
  DIR* folder = ::opendir("/proc/self/fd");
  while (const dirent* entry = ::readdir(folder)) {
    if (entry->d_name[0] != '.' && std::atoi(entry->d_name) != ::dirfd(folder))
      text += std::string(" ") + entry->d_name;
  }
  ::closedir(folder);
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("SigBlk:", 0) == 0 || line.rfind("SigIgn:", 0) == 0)
      text += "; " + line.substr(0, 7) + line.substr(8);
  }
  return text;
}

void answer(std::int64_t id, std::size_t index, const LayerConfig& config) {
  tuner::Measurement m = good(config);
  switch (chosen(config)) {
    case Misbehaviour::crash:
      std::cerr << "an illegal memory access\n";
      ::signal(SIGSEGV, SIG_DFL);  // a sanitizer would make an exit of it
      ::raise(SIGSEGV);
      break;
    case Misbehaviour::exit_quietly:
      std::_Exit(0);
    case Misbehaviour::hang:
      sleep_forever();
    case Misbehaviour::garbage:
      return say("warning: something that a library prints\n");
    case Misbehaviour::endless_line:
      for (;;) say(std::string(4096, 'x'));
    case Misbehaviour::nan:
      return say(with_us(id, index, config, "NaN"));
    case Misbehaviour::zero:
      return say(with_us(id, index, config, "0"));
    case Misbehaviour::negative:
      return say(with_us(id, index, config, "-12.5"));
    case Misbehaviour::overflow:
      return say(with_us(id, index, config, "1e999"));
    case Misbehaviour::wrong_result:
      m.verified = false;
      m.err2 = 0.25;
      break;
    case Misbehaviour::another_config: {
      LayerConfig other = config;
      other.fc1.raster = other.fc1.raster == 8 ? 4 : 8;
      return say(tuner::answer_line(id, index, other, m) + "\n");
    }
    case Misbehaviour::another_index:
      return say(tuner::answer_line(id, 1000, config, m) + "\n");
    case Misbehaviour::cut_line:
      say(tuner::answer_line(id, index, config, m).substr(0, 40));
      std::_Exit(4);
    case Misbehaviour::grandchild:
      if (const pid_t pid = ::fork(); pid > 0) std::cerr << "grandchild " << pid << " here" << std::endl;
      sleep_forever();
    case Misbehaviour::give_up:
      say(tuner::error_line(id, "the context is lost") + "\n");
      std::_Exit(1);
    case Misbehaviour::report:
      m.failure = inherited();
      break;
    case Misbehaviour::twice:
      say(tuner::answer_line(id, index, config, m) + "\n");
      break;
    case Misbehaviour::turn_forever:
      for (;;) {
        say(tuner::turn_line(id, index) + "\n");
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    default:
      break;
  }
  say(tuner::answer_line(id, index, config, m) + "\n");
}

int misbehave() {
  say(tuner::hello_line() + "\n");
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = tuner::read_request(line);
    if (!request) {
      std::cerr << "bad request: " << request.error().message() << "\n";
      return 9;
    }
    for (std::size_t i = 0; i < request->request.products.size(); ++i) {
      say(tuner::turn_line(request->id, i) + "\n");
      const BackwardConfig& products = request->request.products[i];
      if (products.dh.raster == test::kCrashingRaster) std::abort();
      tuner::Measurement m;
      m.us = m.skewed_us = 100 + products.dx.raster;
      m.products = BackwardFigures{1, 2, 3, 4, 0, 0, 0, 0};
      m.verified = true;
      say(tuner::answer_line(request->id, i, request->request, m) + "\n");
    }
    const auto& configs = request->request.configs;
    for (const LayerConfig& config : configs) {
      if (chosen(config) == Misbehaviour::compile_crash) std::abort();
    }
    for (std::size_t i = 0; i < configs.size(); ++i) {
      if (!silent) say(tuner::turn_line(request->id, i) + "\n");
      answer(request->id, i, configs[i]);
    }
  }
  return 0;
}

class Honest final : public tuner::Measurer {
 public:
  explicit Honest(bool hangs) : hangs_(hangs) {}
  Status measure(const tuner::MeasureRequest& request, tuner::MeasureEvents& events) override {
    for (std::size_t i = 0; i < request.configs.size(); ++i) {
      events.turn(i);
      say("a line that a library prints on stdout\n");
      if (hangs_) sleep_forever();
      events.answer(i, good(request.configs[i]));
    }
    return {};
  }
  std::string description() const override { return "honest"; }

 private:
  bool hangs_;
};

int be_honest(bool hangs) {
  const auto out = tuner::take_stdout();
  if (!out) return 8;
  const tuner::ExitOnHangUp guard(STDIN_FILENO);
  Honest measurer(hangs);
  return tuner::serve_worker(STDIN_FILENO, *out, measurer) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const std::string next = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--silent") {
      silent = true;
    } else if (flag == "--chaos") {
      chaos = next;
      ++i;
    } else if (flag == "--honest") {
      return be_honest(next == "--hang");
    } else if (flag == "--mute") {
      sleep_forever();
    } else if (flag == "--hello") {
      say(next + "\n");
      sleep_forever();
    } else if (flag == "--deaf") {
      ::close(STDIN_FILENO);
      say(tuner::hello_line() + "\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      return 10;
    } else if (flag == "--die") {
      std::cerr << next << std::endl;
      return 5;
    } else if (flag == "--die-once") {
      struct stat info;
      if (::stat(next.c_str(), &info) != 0) {
        std::ofstream(next) << "started once\n";
        return 6;
      }
      ++i;
    } else {
      return 7;
    }
  }
  return misbehave();
}
