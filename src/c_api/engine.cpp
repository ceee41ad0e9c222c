#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "c_api/convert.hpp"
#include "c_api/handles.hpp"
#include "c_api/last_error.hpp"
#include "c_api/structs.hpp"

using namespace varmoe;
using namespace varmoe::c_api;

extern "C" {

int varmoe_engine_create(const varmoe_engine_options* options, varmoe_engine** engine) {
  if (!engine) return fail_null("engine");
  *engine = nullptr;
  return guarded([&] {
    auto converted = to_cpp(options);
    if (!converted) return fail(converted.error());
    auto created = Engine::create(*converted);
    if (!created) return fail(created.error());
    *engine = new varmoe_engine{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_engine_destroy(varmoe_engine* engine) {
  delete engine;
}

int varmoe_engine_counters(const varmoe_engine* engine, varmoe_counters* counters) {
  if (!engine) return fail_null("engine");
  if (!counters) return fail_null("counters");
  return guarded([&] {
    const Counters c = engine->engine.counters();
    varmoe_counters values{};
    values.cache_hits = c.cache_hits;
    values.cache_misses = c.cache_misses;
    values.compiles = c.compiles;
    values.kernels_loaded = c.kernels_loaded;
    values.module_bytes = c.module_bytes;
    values.forwards = c.forwards;
    values.configs_override = c.configs_override;
    values.configs_tuned = c.configs_tuned;
    values.configs_predicted = c.configs_predicted;
    Status status = write_struct(counters, counters->struct_size, "varmoe_counters", values);
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

int varmoe_engine_description(const varmoe_engine* engine, char* buffer, size_t capacity, size_t* needed) {
  if (needed) *needed = 0;
  if (!engine) return fail_null("engine");
  if (!buffer && capacity > 0) return fail_null("buffer");
  return guarded([&] {
    const std::string text = engine->engine.device_description();
    if (needed) *needed = text.size() + 1;
    if (capacity > 0) {
      const std::size_t length = std::min(text.size(), capacity - 1);
      std::memcpy(buffer, text.data(), length);
      buffer[length] = '\0';
    }
    return int{VARMOE_OK};
  });
}
}
