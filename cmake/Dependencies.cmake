# Packages. fmt is compiled into the library and spdlog used header-only on top of it, so that a host may have other versions. Both
# are found by file, not by find_package: a host that adds this folder may have its own targets of those names.
find_package(Threads REQUIRED)

# varmoe_header_version(<out> <file> <regex with one group>…): the first match of each regex in a header, joined with dots.
function(varmoe_header_version out file)
  file(READ ${file} text)
  set(version "")
  foreach(regex ${ARGN})
    if(text MATCHES "${regex}")
      list(APPEND version ${CMAKE_MATCH_1})
    endif()
  endforeach()
  list(JOIN version "." version)
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

# fmt: FMT_VERSION is 90100 for 9.1.0; it moved from core.h to base.h in fmt 11.
find_path(VARMOE_FMT_INCLUDE_DIR fmt/core.h REQUIRED)
set(_fmt_header ${VARMOE_FMT_INCLUDE_DIR}/fmt/core.h)
if(EXISTS ${VARMOE_FMT_INCLUDE_DIR}/fmt/base.h)
  set(_fmt_header ${VARMOE_FMT_INCLUDE_DIR}/fmt/base.h)
endif()
varmoe_header_version(VARMOE_FMT_VERSION ${_fmt_header} "#define FMT_VERSION ([0-9]+)")
if(NOT VARMOE_FMT_VERSION OR VARMOE_FMT_VERSION LESS 90000)
  message(FATAL_ERROR "fmt 9 or newer is needed; ${_fmt_header} has FMT_VERSION '${VARMOE_FMT_VERSION}'")
endif()
add_library(varmoe_fmt INTERFACE)
target_include_directories(varmoe_fmt SYSTEM INTERFACE ${VARMOE_FMT_INCLUDE_DIR})
if(NOT DEFINED VARMOE_FMT_COMPILES)
  try_compile(VARMOE_FMT_COMPILES ${CMAKE_CURRENT_BINARY_DIR}/fmt_probe
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/fmt/fmt.cpp ${CMAKE_CURRENT_LIST_DIR}/fmt/probe.cpp
    CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${VARMOE_FMT_INCLUDE_DIR} CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
endif()
if(VARMOE_FMT_COMPILES)
  add_library(varmoe_fmt_compiled STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt/fmt.cpp)
  varmoe_common_settings(varmoe_fmt_compiled)
  target_include_directories(varmoe_fmt_compiled SYSTEM PRIVATE ${VARMOE_FMT_INCLUDE_DIR})
  target_link_libraries(varmoe_fmt INTERFACE varmoe_fmt_compiled)
else()
  target_compile_definitions(varmoe_fmt INTERFACE FMT_HEADER_ONLY=1)
endif()

find_path(VARMOE_SPDLOG_INCLUDE_DIR spdlog/spdlog.h REQUIRED)
varmoe_header_version(VARMOE_SPDLOG_VERSION ${VARMOE_SPDLOG_INCLUDE_DIR}/spdlog/version.h
  "#define SPDLOG_VER_MAJOR ([0-9]+)" "#define SPDLOG_VER_MINOR ([0-9]+)")
if(VARMOE_SPDLOG_VERSION VERSION_LESS 1.10)
  message(FATAL_ERROR "spdlog 1.10 or newer is needed; ${VARMOE_SPDLOG_INCLUDE_DIR} has '${VARMOE_SPDLOG_VERSION}'")
endif()
add_library(varmoe_spdlog INTERFACE)
target_compile_definitions(varmoe_spdlog INTERFACE SPDLOG_FMT_EXTERNAL)
target_link_libraries(varmoe_spdlog INTERFACE varmoe_fmt Threads::Threads)
target_include_directories(varmoe_spdlog SYSTEM INTERFACE ${VARMOE_SPDLOG_INCLUDE_DIR})

if(NOT TARGET nlohmann_json::nlohmann_json)
  find_package(nlohmann_json 3.11 REQUIRED)
endif()

find_path(VARMOE_XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
add_library(varmoe_xxhash INTERFACE)
target_include_directories(varmoe_xxhash SYSTEM INTERFACE ${VARMOE_XXHASH_INCLUDE_DIR})
target_compile_definitions(varmoe_xxhash INTERFACE XXH_INLINE_ALL)

if(VARMOE_BUILD_TOOLS)
  find_package(CLI11 2.1 REQUIRED)
endif()
if(VARMOE_BUILD_TESTS)
  find_package(doctest 2.4 REQUIRED)
  find_package(Python3 3.9 COMPONENTS Interpreter REQUIRED)
  add_library(varmoe_doctest INTERFACE)
  target_link_libraries(varmoe_doctest INTERFACE doctest::doctest)
  # No try and catch around each assertion, which is much of a test's code: what throws in one ends its test case, as a failure.
  target_compile_definitions(varmoe_doctest INTERFACE DOCTEST_CONFIG_SUPER_FAST_ASSERTS)
endif()

# cuda.h and nvrtc.h are needed to build (types and prototypes only: neither library is linked).
set(_cuda_hints ${CUDAToolkit_ROOT} $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda)
find_path(VARMOE_CUDA_INCLUDE_DIR cuda.h HINTS ${_cuda_hints} PATH_SUFFIXES include REQUIRED)
find_path(VARMOE_NVRTC_INCLUDE_DIR nvrtc.h HINTS ${_cuda_hints} PATH_SUFFIXES include REQUIRED)
varmoe_header_version(VARMOE_CUDA_HEADER_VERSION ${VARMOE_CUDA_INCLUDE_DIR}/cuda.h "#define CUDA_VERSION ([0-9]+)")
if(NOT VARMOE_CUDA_HEADER_VERSION OR VARMOE_CUDA_HEADER_VERSION LESS 12040)
  message(FATAL_ERROR "Headers of CUDA 12.4 or newer are needed; ${VARMOE_CUDA_INCLUDE_DIR}/cuda.h has CUDA_VERSION "
                      "'${VARMOE_CUDA_HEADER_VERSION}'. Name a folder with -D CUDAToolkit_ROOT=…")
endif()
add_library(varmoe_cuda_headers INTERFACE)
target_include_directories(varmoe_cuda_headers SYSTEM INTERFACE ${VARMOE_CUDA_INCLUDE_DIR} ${VARMOE_NVRTC_INCLUDE_DIR})

# What tools/test.sh fetches into the build folder where this machine has none: NVRTC and a disassembler.
set(VARMOE_TEST_CUDA_HOME "" CACHE PATH "CUDA_HOME of the tests; empty: the environment's")
set(VARMOE_TEST_PATH "" CACHE PATH "A folder added to the tests' PATH")
