#!/usr/bin/env bash
# Builds varmoe's two programs and shows in about two minutes what they do; needs no GPU.
#
# usage: tools/quickstart.sh [--no-install] [--build DIR] [--jobs N]
#   --no-install  install and download nothing (packagers)
#   --build DIR   build folder; default build/quickstart
#   --jobs N      processes at a time; default one per core
# Exit status: 0 everything went as it must, 1 something did not, 2 usage, 3 something is missing on this machine.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tools/setup.sh"
varmoe_options "$@"
mkdir -p "$build"

varmoe_install "${varmoe_packages[@]}"
varmoe_cuda
say "Building varmoe-tune and varmoe-bench (headers and NVRTC from $cuda_home)"
varmoe_build varmoe-tune varmoe-bench -- -DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O2" "-DCMAKE_C_FLAGS=-O2"
"$root/tools/demonstration.sh" "$build/bin" "$build/quickstart-cache"
