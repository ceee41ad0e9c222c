#!/usr/bin/env bash
# Builds varmoe and runs every test that this machine can run; needs no GPU.
#
# usage: tools/test.sh [--no-install] [--build DIR] [--jobs N]
#   --no-install  install and download nothing (packagers)
#   --build DIR   build folder; default build/test
#   --jobs N      processes at a time; default one per core
# Exit status: 0 all passed, 1 a test or the build failed, 2 usage, 3 something is missing on this machine.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tools/setup.sh"
varmoe_options "$@"
mkdir -p "$build"

varmoe_install "${varmoe_packages[@]}"
varmoe_cuda
varmoe_disassembler
say "Building (headers and NVRTC from $cuda_home)"
varmoe_build all -- -DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O2" "-DCMAKE_C_FLAGS=-O2" -DVARMOE_QUICK_TESTS=ON \
  "-DVARMOE_TEST_PATH=$disassembler_path"

say "Testing"
status=0
(cd "$build" && ctest --output-on-failure -j "$jobs" --output-log "$build/ctest.log") || status=1

say "GPU evidence"
python3 "$root/tools/check_gpu_evidence" --warn-only
exit $status
