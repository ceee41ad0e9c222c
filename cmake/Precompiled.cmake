# Precompiled headers: what most sources read of the standard library, fmt and doctest, read once for each set of flags. They
# save time alone: every source still includes what it uses, and builds without them (with a compiler cache, which caches less well
# with them, and in a host's build).
set(_varmoe_precompile ${PROJECT_IS_TOP_LEVEL})
if(CMAKE_CXX_COMPILER_LAUNCHER OR VARMOE_SANITIZE)
  set(_varmoe_precompile OFF)
endif()
option(VARMOE_PRECOMPILED_HEADERS "Precompile headers; off by default with sanitizers and with a compiler launcher such as ccache" ${_varmoe_precompile})

set(_varmoe_precompiled_common
  <algorithm> <array> <atomic> <bit> <cerrno> <chrono> <cmath> <cstddef> <cstdint> <cstdlib> <cstring> <functional> <limits> <map>
  <memory> <mutex> <new> <optional> <random> <set> <span> <sstream> <string> <string_view> <thread> <unordered_map> <utility>
  <vector> <fmt/format.h>)

# varmoe_precompile(<target> <set>): <set> is `library` (position-independent code), or of executables `program`, `test`,
# `optimised_test` or `gpu_test`. Every source of <target> must be compiled with the flags of the set, VARMOE_FLAGS_<set>: GCC takes a
# precompiled header made with another -O without a word, and may crash on it.
function(varmoe_precompile target set)
  if(NOT VARMOE_PRECOMPILED_HEADERS)
    return()
  endif()
  set(owner varmoe_precompiled_${set})
  if(NOT TARGET ${owner})
    add_library(${owner} OBJECT ${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp)
    varmoe_common_settings(${owner})
    if(NOT set STREQUAL library)
      set_target_properties(${owner} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${owner} PRIVATE ${CMAKE_CXX_COMPILE_OPTIONS_PIE})
    endif()
    set(headers ${_varmoe_precompiled_common})
    target_link_libraries(${owner} PRIVATE varmoe_fmt Threads::Threads)
    if(set MATCHES "test")
      list(APPEND headers <doctest/doctest.h>)
      target_link_libraries(${owner} PRIVATE varmoe_doctest)
    endif()
    target_compile_options(${owner} PRIVATE ${VARMOE_FLAGS_${set}})
    # The rooms have it from `base`; a precompiled header and its users agree on every macro.
    if(VARMOE_BUILD_TESTS)
      target_compile_definitions(${owner} PRIVATE VARMOE_KILL_POINTS)
    endif()
    target_precompile_headers(${owner} PRIVATE ${headers})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${owner})
endfunction()
