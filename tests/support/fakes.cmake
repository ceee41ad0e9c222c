# The fake NVRTC and the fake CUDA driver: shared libraries that tests load in place of the real ones. Include this file and
# link varmoe_fake_cuda / varmoe_fake_nvrtc (their control functions); VARMOE_FAKE_CUDA and VARMOE_FAKE_NVRTC are then the
# paths to load.
include_guard(GLOBAL)

foreach(fake cuda nvrtc)
  if(fake STREQUAL "cuda")
    set(sources fake_cuda.cpp fake_cuda_entries.cpp fake_cuda_streams.cpp fake_cuda_tensor_maps.cpp fake_cubin.cpp)
  else()
    set(sources fake_nvrtc.cpp fake_cubin.cpp)
  endif()
  list(TRANSFORM sources PREPEND ${PROJECT_SOURCE_DIR}/tests/support/)
  add_library(varmoe_fake_${fake} SHARED ${sources})
  varmoe_common_settings(varmoe_fake_${fake})
  set_target_properties(varmoe_fake_${fake} PROPERTIES
    CXX_VISIBILITY_PRESET default LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests/fakes)
  target_include_directories(varmoe_fake_${fake} PUBLIC ${PROJECT_SOURCE_DIR}/tests
    PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(varmoe_fake_${fake} PRIVATE varmoe_cuda_headers)
  string(TOUPPER ${fake} upper)
  target_compile_definitions(varmoe_fake_${fake} INTERFACE VARMOE_FAKE_${upper}="$<TARGET_FILE:varmoe_fake_${fake}>")
endforeach()
