# The shipped libraries, made of the rooms' objects: shared varmoe_jit and static varmoe_jit_static. Neither links libcuda
# or NVRTC; both contain fmt and spdlog and show nothing of them.
include(GNUInstallDirs)
get_property(_rooms GLOBAL PROPERTY VARMOE_ROOMS)
set(_objects "")
foreach(room ${_rooms})
  list(APPEND _objects $<TARGET_OBJECTS:${room}>)
endforeach()
if(TARGET varmoe_fmt_compiled)
  list(APPEND _rooms varmoe_fmt_compiled)
  list(APPEND _objects $<TARGET_OBJECTS:varmoe_fmt_compiled>)
endif()
set(_version_script ${PROJECT_SOURCE_DIR}/cmake/varmoe_jit.map)

add_library(varmoe_jit SHARED ${_objects})
set_target_properties(varmoe_jit PROPERTIES
  LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS ${_version_script})
target_link_options(varmoe_jit PRIVATE
  LINKER:--version-script=${_version_script} LINKER:--exclude-libs,ALL LINKER:-z,relro,-z,now)
if(VARMOE_SANITIZE)
  # The sanitizer's symbols come with the program.
  target_link_options(varmoe_jit PRIVATE -fsanitize=${VARMOE_SANITIZE})
else()
  target_link_options(varmoe_jit PRIVATE LINKER:--no-undefined)
endif()
target_link_libraries(varmoe_jit PRIVATE Threads::Threads ${CMAKE_DL_LIBS})

# The static library is one object: all of the above linked, then every symbol but varmoe's own made local. Without that, a host
# with another spdlog (whose namespace carries no version) would mix the two at link time.
find_program(VARMOE_OBJCOPY NAMES ${CMAKE_OBJCOPY} objcopy REQUIRED)
set(_whole ${PROJECT_BINARY_DIR}/varmoe_jit_static.o)
add_custom_command(
  OUTPUT ${_whole}
  COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${_whole}.all ${_objects}
  COMMAND ${VARMOE_OBJCOPY} --wildcard --localize-hidden --keep-global-symbol=*varmoe* ${_whole}.all ${_whole}
  COMMAND ${CMAKE_COMMAND} -E rm ${_whole}.all
  DEPENDS ${_rooms} ${_objects}
  COMMAND_EXPAND_LISTS VERBATIM COMMENT "Linking the object of libvarmoe_jit.a")
set_source_files_properties(${_whole} PROPERTIES GENERATED ON EXTERNAL_OBJECT ON)
add_library(varmoe_jit_static STATIC ${_whole})
set_target_properties(varmoe_jit_static PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME varmoe_jit)
target_compile_definitions(varmoe_jit_static INTERFACE VARMOE_STATIC)
target_link_libraries(varmoe_jit_static INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(VARMOE_SANITIZE)
  target_link_options(varmoe_jit_static INTERFACE -fsanitize=${VARMOE_SANITIZE})
endif()

foreach(library varmoe_jit varmoe_jit_static)
  # INTERFACE alone: a C program that links the shared library need not know C++20.
  target_compile_features(${library} INTERFACE cxx_std_20)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  add_library(varmoe::${library} ALIAS ${library})
endforeach()
