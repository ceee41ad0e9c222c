# Sourced by quickstart.sh and test.sh: packages, CUDA headers and NVRTC, configure and build. Sets `build`, `jobs` and, where NVRTC
# was fetched, CUDA_HOME.
# shellcheck shell=bash disable=SC2034,SC2154

# Debian and Ubuntu names. Elsewhere install their like and pass --no-install.
varmoe_packages=(g++ cmake ninja-build libfmt-dev libspdlog-dev nlohmann-json3-dev libxxhash-dev libcli11-dev doctest-dev
  python3 pkg-config)
# The public wheels that bring NVRTC and the headers; 13.0 is the version that this release was measured with.
varmoe_wheels=('nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*')

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 3; }

# varmoe_options "$@": the options that both scripts take.
varmoe_options() {
  install=1 build="$root/build/${0##*/}" jobs=$(nproc 2>/dev/null || echo 2)
  build=${build%.sh}
  while [ $# -gt 0 ]; do
    case $1 in
      --no-install) install=0 ;;
      --build) [ $# -ge 2 ] || fail "--build needs a folder"; shift; mkdir -p "$1"; build=$(cd "$1" && pwd) ;;
      --jobs) [ $# -ge 2 ] || fail "--jobs needs a number"; shift; jobs=$1 ;;
      -h|--help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
      *) printf 'unknown option %s\n' "$1" >&2; sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "not root and no sudo: as root, run: $*"; fi
}

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# Installs what is missing of the packages named.
varmoe_install() {
  [ "$install" = 1 ] || return 0
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: install the like of these yourself: $*"
    return 0
  fi
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "Installing ${missing[*]}"
  apt_install "${missing[@]}" >/dev/null 2>&1 && return 0
  as_root apt-get update >/dev/null || echo "apt-get update failed; trying with the lists at hand"
  apt_install "${missing[@]}" || fail "could not install ${missing[*]}; install them yourself and pass --no-install"
}

# True where $1 holds headers of CUDA 12.4 or newer and an NVRTC.
usable_cuda() {
  local version file
  [ -f "$1/include/cuda.h" ] && [ -f "$1/include/nvrtc.h" ] || return 1
  version=$(sed -n 's/^#define CUDA_VERSION \([0-9]*\).*/\1/p' "$1/include/cuda.h")
  [ "${version:-0}" -ge 12040 ] || return 1
  for file in "$1"/lib64/libnvrtc.so* "$1"/lib/libnvrtc.so* "$1"/targets/*/lib/libnvrtc.so*; do
    [ -e "$file" ] && return 0
  done
  return 1
}

# Sets cuda_home to a toolkit of this machine, or to the wheels' files in the build folder.
varmoe_cuda() {
  local folder wheel
  cuda_fetched=0
  for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
    if [ -n "$folder" ] && usable_cuda "$folder"; then
      cuda_home=$folder
      return 0
    fi
  done
  cuda_fetched=1
  cuda_home=$build/cuda/nvidia/cu13
  if ! usable_cuda "$cuda_home"; then
    [ "$install" = 1 ] || fail "no CUDA toolkit (12.4 or newer, with nvrtc.h) in CUDA_HOME, CUDA_PATH, /usr/local/cuda, /opt/cuda"
    say "No CUDA toolkit here: fetching NVRTC and headers (${varmoe_wheels[*]}) into $build/cuda"
    python3 -m pip --version >/dev/null 2>&1 || varmoe_install python3-pip
    rm -rf "$build/cuda"
    mkdir -p "$build/cuda/wheels"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$build/cuda/wheels" \
      "${varmoe_wheels[@]}" || fail "could not fetch the wheels; install a CUDA toolkit and set CUDA_HOME"
    for wheel in "$build"/cuda/wheels/*.whl; do
      python3 -m zipfile -e "$wheel" "$build/cuda"
    done
    rm -rf "$build/cuda/wheels"
    usable_cuda "$cuda_home" || fail "the wheels do not hold what was expected under $cuda_home"
  fi
  export CUDA_HOME=$cuda_home
}

# Sets disassembler_path to a folder with nvdisasm that is not in PATH, fetched into the build folder; best effort: a test of the machine
# code is left out without it.
varmoe_disassembler() {
  disassembler_path=
  local tool
  for tool in nvdisasm cuobjdump; do
    if command -v $tool >/dev/null || [ -x "$cuda_home/bin/$tool" ]; then return 0; fi
  done
  local folder=$build/disassembler
  if [ ! -x "$folder/nvidia/cu13/bin/nvdisasm" ]; then
    [ "$install" = 1 ] || return 0
    python3 -m pip --version >/dev/null 2>&1 || varmoe_install python3-pip
    rm -rf "$folder"
    mkdir -p "$folder"
    if ! python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$folder" \
      'nvidia-cuda-nvdisasm==13.*'; then
      echo "no disassembler could be fetched"
      return 0
    fi
    python3 -m zipfile -e "$folder"/*.whl "$folder"
    chmod +x "$folder/nvidia/cu13/bin/nvdisasm"
  fi
  disassembler_path=$folder/nvidia/cu13/bin
}

# varmoe_build <target…> -- <cmake options…>
varmoe_build() {
  local targets=() options=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  options=("$@" "-DCUDAToolkit_ROOT=$cuda_home")
  [ "$cuda_fetched" = 0 ] || options+=("-DVARMOE_TEST_CUDA_HOME=$cuda_home")
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_C_COMPILER_LAUNCHER=ccache); fi
  local generator=()
  [ -f "$build/CMakeCache.txt" ] || { command -v ninja >/dev/null && generator=(-G Ninja); }
  cmake -S "$root" -B "$build" "${generator[@]}" "${options[@]}" >"$build/configure.log" 2>&1 ||
    { cat "$build/configure.log"; fail "CMake failed"; }
  cmake --build "$build" -j "$jobs" --target "${targets[@]}" || { echo "error: the build failed" >&2; exit 1; }
}
