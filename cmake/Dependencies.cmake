# Packages. fmt is linked statically and spdlog used header-only on top of it, so that a host may have other versions.
find_package(Threads REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(spdlog 1.10 REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_path(VARMOE_XXHASH_INCLUDE_DIR xxhash.h REQUIRED)

add_library(varmoe_fmt INTERFACE)
get_target_property(_fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
find_library(VARMOE_FMT_STATIC libfmt.a REQUIRED)
target_link_libraries(varmoe_fmt INTERFACE ${VARMOE_FMT_STATIC})
if(_fmt_include)
  target_include_directories(varmoe_fmt SYSTEM INTERFACE ${_fmt_include})
endif()

add_library(varmoe_spdlog INTERFACE)
get_target_property(_spdlog_include spdlog::spdlog_header_only INTERFACE_INCLUDE_DIRECTORIES)
target_compile_definitions(varmoe_spdlog INTERFACE SPDLOG_FMT_EXTERNAL)
target_link_libraries(varmoe_spdlog INTERFACE varmoe_fmt Threads::Threads)
if(_spdlog_include)
  target_include_directories(varmoe_spdlog SYSTEM INTERFACE ${_spdlog_include})
endif()

add_library(varmoe_xxhash INTERFACE)
target_include_directories(varmoe_xxhash SYSTEM INTERFACE ${VARMOE_XXHASH_INCLUDE_DIR})
target_compile_definitions(varmoe_xxhash INTERFACE XXH_INLINE_ALL)

if(VARMOE_BUILD_TOOLS)
  find_package(CLI11 2.1 REQUIRED)
endif()
if(VARMOE_BUILD_TESTS)
  find_package(doctest 2.4 REQUIRED)
  add_library(varmoe_doctest INTERFACE)
  target_link_libraries(varmoe_doctest INTERFACE doctest::doctest)
endif()

# cuda.h and nvrtc.h are needed to build (types and prototypes only: neither library is linked).
find_path(VARMOE_CUDA_INCLUDE_DIR cuda.h
          HINTS ${CUDAToolkit_ROOT} $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES include REQUIRED)
find_path(VARMOE_NVRTC_INCLUDE_DIR nvrtc.h
          HINTS ${CUDAToolkit_ROOT} $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES include REQUIRED)
add_library(varmoe_cuda_headers INTERFACE)
target_include_directories(varmoe_cuda_headers SYSTEM INTERFACE ${VARMOE_CUDA_INCLUDE_DIR} ${VARMOE_NVRTC_INCLUDE_DIR})
