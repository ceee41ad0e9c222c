# cmake -DEMBED=…/EmbedFiles.cmake -DFOLDER=… -DGENERATOR=… -P embed_files_test.cmake
# Embeds files of awkward names and contents in a small project, builds and runs it, and changes one.
set(source "${FOLDER}/a source")
set(build "${FOLDER}/a build")
file(REMOVE_RECURSE "${FOLDER}")
file(WRITE "${source}/room/one.txt" "quote \" backslash \\ dollar \${x} @y@ semicolon ; bracket [ end")
file(WRITE "${source}/room/sub folder/two's.txt" "second\n")
file(WRITE "${source}/room/empty" "")
file(WRITE "${source}/CMakeLists.txt" "cmake_minimum_required(VERSION 3.22)
project(embed CXX)
include(\"${EMBED}\")
add_subdirectory(room)
")
file(WRITE "${source}/room/CMakeLists.txt" "add_executable(show show.cpp)
target_compile_features(show PRIVATE cxx_std_20)
set_target_properties(show PROPERTIES RUNTIME_OUTPUT_DIRECTORY \"\${PROJECT_BINARY_DIR}\")
varmoe_embed_files(show things one.txt \"sub folder/two's.txt\" empty)
")
file(WRITE "${source}/room/show.cpp" "#include \"room/embedded/things.hpp\"
#include <cstdio>
int main() {
  for (const auto& f : varmoe::embedded::things::files())
    std::printf(\"%s|%zu|%s|%d\\n\", f.name.data(), f.text.size(), f.text.data(), f.text.data()[f.text.size()]);
}
")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGN}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

function(expect text)
  run("${build}/show")
  if(NOT output STREQUAL text)
    message(FATAL_ERROR "expected\n${text}\ngot\n${output}")
  endif()
endfunction()

set(first "quote \" backslash \\ dollar \${x} @y@ semicolon ; bracket [ end")
string(LENGTH "${first}" length)
run("${CMAKE_COMMAND}" -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${COMPILER}" -S "${source}" -B "${build}")
run("${CMAKE_COMMAND}" --build "${build}")
expect("empty|0||0\none.txt|${length}|${first}|0\nsub folder/two's.txt|7|second\n|0\n")

file(WRITE "${source}/room/sub folder/two's.txt" "changed, longer")
run("${CMAKE_COMMAND}" --build "${build}")
expect("empty|0||0\none.txt|${length}|${first}|0\nsub folder/two's.txt|15|changed, longer|0\n")
