# A room is one folder of src/. Each is a static library of its own, so that its tests link it and the rooms below it and
# nothing else; the shipped libraries are made of the same objects.
set(VARMOE_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-align -Wimplicit-fallthrough)

function(varmoe_common_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE ${VARMOE_WARNINGS})
  # Unique symbols cannot be made local, as the static library does with those of fmt and spdlog (Library.cmake).
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
  if(VARMOE_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${VARMOE_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${VARMOE_SANITIZE})
  endif()
endfunction()

# varmoe_room(base SOURCES a.cpp … [DEPS model emit] [LINK fmt::fmt …])
function(varmoe_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LINK" ${ARGN})
  add_library(varmoe_room_${name} STATIC ${ARG_SOURCES})
  varmoe_common_settings(varmoe_room_${name})
  target_include_directories(varmoe_room_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  list(TRANSFORM ARG_DEPS PREPEND varmoe_room_)
  target_link_libraries(varmoe_room_${name} PUBLIC ${ARG_DEPS} ${ARG_LINK})
  set_property(GLOBAL APPEND PROPERTY VARMOE_ROOMS varmoe_room_${name})
endfunction()

# varmoe_test(base SOURCES a_test.cpp … ROOMS base [LINK …] [LABELS …]): one doctest runner a folder of tests/.
function(varmoe_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;ROOMS;LINK;LABELS;DEFINITIONS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(varmoe_test_${name} ${ARG_SOURCES} ${PROJECT_SOURCE_DIR}/tests/main.cpp)
  varmoe_common_settings(varmoe_test_${name})
  list(TRANSFORM ARG_ROOMS PREPEND varmoe_room_)
  target_link_libraries(varmoe_test_${name} PRIVATE ${ARG_ROOMS} ${ARG_LINK} varmoe_doctest)
  target_include_directories(varmoe_test_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(varmoe_test_${name} PRIVATE
    VARMOE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" VARMOE_BINARY_DIR="${PROJECT_BINARY_DIR}" ${ARG_DEFINITIONS})
  add_test(NAME ${name} COMMAND varmoe_test_${name})
  varmoe_test_settings(${name} ${ARG_TIMEOUT} "${ARG_LABELS}")
endfunction()

# varmoe_script_test(stories COMMAND python3 … [TIMEOUT s] [LABELS …]): a test that is no doctest runner.
function(varmoe_script_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${ARG_COMMAND})
  varmoe_test_settings(${name} ${ARG_TIMEOUT} "${ARG_LABELS}")
endfunction()

# What every test gets: a time limit, labels, and the places of what was fetched into the build folder.
function(varmoe_test_settings name timeout labels)
  set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} LABELS "${labels}")
  set(changes "")
  if(VARMOE_TEST_CUDA_HOME)
    list(APPEND changes "CUDA_HOME=set:${VARMOE_TEST_CUDA_HOME}")
  endif()
  if(VARMOE_TEST_PATH)
    list(APPEND changes "PATH=path_list_append:${VARMOE_TEST_PATH}")
  endif()
  set_tests_properties(${name} PROPERTIES ENVIRONMENT_MODIFICATION "${changes}")
endfunction()
