#!/usr/bin/env bash
# Shows what varmoe's two programs do, and that each step ends as it must; needs no GPU. tools/quickstart.sh builds them first.
#
# usage: tools/demonstration.sh PROGRAMS CACHE [TOKENS]
#   PROGRAMS  folder of varmoe-tune and varmoe-bench
#   CACHE     folder; compiled kernels go to CACHE/demonstration, which is removed first
#   TOKENS    token counts that kernels are compiled for; default 1,64,4096
# Exit status: 0 everything went as it must, 1 something did not, 2 usage.

set -euo pipefail
[ $# -ge 2 ] && [ $# -le 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=$1 cache=$2 tokens=${3:-1,64,4096}
tune=$programs/varmoe-tune
bench=$programs/varmoe-bench
say() { printf '\n== %s\n' "$*"; }
# The demonstration looks after a cache of its own, and hears no variable of yours.
for name in $(env | sed -n 's/^\(VARMOE_[A-Z0-9_]*\)=.*/\1/p'); do unset "$name"; done
export VARMOE_CACHE_DIR=$cache/demonstration
rm -rf "$VARMOE_CACHE_DIR"
target=h200

wrong() { printf '\nNOT AS IT MUST BE: %s\n' "$*" >&2; exit 1; }
# must STATUS COMMAND…: runs it, shows it, and expects this exit status. Its output stays in $shown.
must() {
  local expected=$1 status=0
  shift
  local line=${*//$programs\//}
  printf '$ %s\n' "${line//$root\//}"
  shown=$("$@" 2>&1) || status=$?
  printf '%s\n' "$shown"
  [ "$status" = "$expected" ] || wrong "exit status $status instead of $expected"
}
mentions() { case $shown in *"$1"*) ;; *) wrong "the output does not mention '$1'" ;; esac; }

say "1. What is here: NVRTC, driver, target"
must 0 "$tune" doctor --device $target

say "2. The kernels of Qwen3-30B-A3B's layer for $tokens tokens on an H200: compiled"
must 0 "$tune" compile --model "$root/models/qwen3-30b-a3b.json" --device $target --tokens "$tokens"
mentions " 0 hits, "
mentions " 0 failed"

say "3. Again: all hits, and NVRTC is not even loaded"
must 0 "$tune" compile --model "$root/models/qwen3-30b-a3b.json" --device $target --tokens "$tokens"
mentions " 0 compiled, 0 failed"
mentions "NVRTC not loaded"

pruned=(--model "$root/models/pruned-qwen3-30b.json" --layer 0 --tokens 16)
say "4. A layer of a pruned model, experts of different widths, run and checked against the fp64 oracle"
must 0 "$bench" "${pruned[@]}" --detailed
mentions "ok"

say "5. One weight altered behind the oracle's back: the check fails, as it must"
must 1 "$bench" "${pruned[@]}" --inject-error
mentions "the check failed as it must"

say "6. A tile override is taken …"
must 0 env VARMOE_FC1_CONFIG=stages=2 "$tune" plan --model "$root/models/qwen3-30b-a3b.json" --device $target --tokens 64
mentions "override"
mentions "stages=2"
say "   … and a bad one refused with what would be right"
must 3 env VARMOE_FC1_CONFIG=block_m=77 "$tune" plan --model "$root/models/qwen3-30b-a3b.json" --device $target --tokens 64
mentions "block_m=77: must be"

say "Done"
if "$bench" --set 8_uniform --tokens 8 --device 0 --iterations 1 >/dev/null 2>&1; then
  echo "The layers above ran on this machine's GPU."
else
  echo "Not run for want of a GPU: the compiled kernels themselves (the CPU backend ran instead), CUDA graphs, the share of the"
  echo "floor. With a GPU: $bench --model models/qwen3-30b-a3b.json --tokens 1,64,4096"
fi
