#!/usr/bin/env bash
# Set up an environment: [PYTHON=python3.12] install.sh [TORCH [MMENGINE [VENV [STACK]]]].
# It can run at any time: it skips finished work and does not trust interrupted work.
#
# $VENV/agvm_mm.stamp holds the state:
#   a key        installed and checked for exactly this key
#   unfinished   a run was killed: the environment is created again
#   no file      an environment of the user, or a step failed: completed in place
# pip caches downloads and the compiled mmcv, so creating the environment again takes a
# minute or two, without another compilation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

DEFAULT_TORCH=2.13.0
TORCH=${1:-$DEFAULT_TORCH}
MMENGINE=${2:-0.10.7}
VENV=${3:-.venv}
STACK=${4:-openmmlab}
PINS=tools/dev/pins
LANE=("$PINS/torch-$TORCH.txt" "$PINS/stack-$STACK.txt")
# Installed without their requirements: panopticapi works with numpy 2, openmim's client
# for data sets pins an old setuptools and is not needed for training, and imaug works
# with OpenCV 5.
NO_DEPS=(panopticapi-lite==0.2.0 openmim==0.3.9)
case $STACK in
  openmmlab) MMCV=mmcv LANE+=("$PINS/mmengine-$MMENGINE.txt") ;;
  onedl) MMCV=onedl-mmcv NO_DEPS+=(onedl-mmdetection==3.5.1 imaug==0.4.3) ;;
esac
PY=$VENV/bin/python
STAMP=$VENV/agvm_mm.stamp
# torch with CUDA, which PyPI has for x86-64, takes most of it.
NEEDED_GB=8

say() { printf '==> %s\n' "$*" >&2; }

# Stop with a message. Finished steps are kept, unless a signal ended the run.
working= interrupted=
trap 'interrupted=1' INT TERM
die() {
  if [ -n "$interrupted" ]; then
    say 'interrupted; the next run creates the environment again'
    exit 130
  fi
  [ -z "$working" ] || rm -f "$STAMP"
  printf '\nInstallation stopped: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# Everything that the environment depends on, also the folder: environments cannot move.
key() {
  { cat tools/dev/install.sh agvm_mm/doctor.py "$PINS/common.txt" "${LANE[@]}" \
      setup.py agvm_mm/version.py
    echo "$TORCH $MMENGINE $STACK $PWD"
    "$PY" -V; } 2>&1 | cksum
}
state() { cat "$STAMP" 2>/dev/null || true; }
finished() { [ -e "$STAMP" ] && [ "$(state)" = "$(key)" ]; }

supported() {
  "$1" -c 'import sys
sys.exit(sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info < (3, 13))' \
    2>/dev/null
}
minor() {
  local version
  version=$("$1" -V 2>&1)
  version=${version#Python }
  echo "${version%.*}"
}
# pyenv's commands run only the selected releases; look among all installed ones.
in_pyenv() {
  local path found=
  command -v pyenv >/dev/null || return 0
  for path in "$(pyenv root)"/versions/*/bin/"$1"; do
    [ ! -x "$path" ] || found=$path
  done
  echo "$found"
}
find_python() {
  local name found=
  for name in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
    supported "$name" || name=$(in_pyenv "$name")
    supported "$name" || continue
    found=${found:-$name}
    if "$name" -c 'import venv, ensurepip' 2>/dev/null; then
      # If this is the Python of an environment, use its base: an activated
      # environment comes first on the PATH and may be the one deleted below.
      BASE=$("$name" -c 'import sys; print(sys._base_executable)')
      return
    fi
  done
  [ -z "$found" ] || die "$found cannot create environments (no venv or ensurepip)." \
    "Debian, Ubuntu: apt install $("$found" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  die "no CPython 3.10, 3.11 or 3.12 found${PYTHON:+ under the name $PYTHON}." \
    'Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev' \
    'Other releases: pyenv install 3.12, or uv python install 3.12' \
    'If it is not on the PATH: make install PYTHON=/path/to/python3.11'
}

# mmcv needs a C++17 compiler that finds its headers, not just one with that name.
check_toolchain() {
  local cxx=${CXX:-c++} include
  include=$("$BASE" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -e "$include/Python.h" ] || die "the headers of Python are missing ($BASE has no Python.h)." \
    "Debian, Ubuntu: apt install $("$BASE" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"
  "$cxx" -std=c++17 -x c++ -fsyntax-only - <<<$'#include <vector>\nint main() {}' 2>/dev/null ||
    die "no working C++ compiler ($cxx), which mmcv's operators need." \
      'Debian, Ubuntu: apt install g++    Fedora: dnf install gcc-c++    macOS: xcode-select --install' \
      'Another compiler: CC=clang CXX=clang++ make install'
}
check_disk() {
  local free_kb
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $((NEEDED_GB * 1024 * 1024)) ] ||
    die "only $((free_kb / 1024)) MB free in $PWD, $NEEDED_GB GB are needed." \
      'Free some space, or clone the repository to a larger disk.'
}

pip() { "$PY" -m pip --disable-pip-version-check "$@"; }
ops_load() { "$PY" -c 'import torch, mmcv._ext' 2>/dev/null; }

[ -e "${LANE[0]}" ] || die "no pinned versions for torch $TORCH." \
  "There are: $(cd $PINS && echo torch-*.txt)"
[ -e "${LANE[1]}" ] || die "no pinned versions for the stack $STACK." \
  "There are: $(cd $PINS && echo stack-*.txt)"
if [ "$STACK" = openmmlab ]; then
  [ -e "${LANE[2]}" ] || die "no pinned versions for MMEngine $MMENGINE." \
    "There are: $(cd $PINS && echo mmengine-*.txt)"
elif [ "$MMENGINE" != 0.10.7 ]; then
  die "the stack $STACK has its own MMEngine, so MMENGINE=$MMENGINE has no effect." \
    "Leave out MMENGINE or STACK."
fi
# PYTHON only creates environments. An existing one must have the same release.
if [ -n "${PYTHON:-}" ]; then
  find_python
  if "$PY" -c pass 2>/dev/null && [ "$(minor "$PY")" != "$(minor "$BASE")" ]; then
    die "$VENV has $("$PY" -V 2>&1), but PYTHON=$PYTHON is $("$BASE" -V 2>&1)." \
      "Move or delete $VENV, or use another folder for the release:" \
      "make install PYTHON=python$(minor "$BASE")"
  fi
fi
if finished; then exit 0; fi

# One installation at a time. The lock is released when its owner's last child ends.
if command -v flock >/dev/null; then
  exec 9<tools/dev/install.sh
  flock -n 9 || { say 'another installation is running; waiting for it'; flock 9; }
  if finished; then exit 0; fi
fi

again=
if [ -e "$VENV" ]; then
  if [ "$(state)" = unfinished ]; then
    again='its installation was interrupted'
  elif ! "$PY" -c pass 2>/dev/null; then
    again='its Python does not run'
  elif ! supported "$PY"; then
    die "$VENV has $("$PY" -V 2>&1), but CPython 3.10, 3.11 or 3.12 is needed." \
      "Move or delete $VENV, then run this again."
  fi
fi
if [ -d "$VENV" ] && [ -z "$again" ]; then BASE=$PY; else find_python; fi
if [ -n "$again" ] || ! ops_load; then
  check_toolchain
  check_disk
fi

if [ -n "$again" ]; then
  say "creating $VENV again: $again"
  # Renamed first: a deletion cut short must not leave half an environment.
  rm -rf "$VENV.old"
  mv "$VENV" "$VENV.old"
fi
rm -rf "$VENV.old"
mkdir -p "$VENV"
working=1
echo unfinished >"$STAMP"
if ! pip --version >/dev/null 2>&1; then
  say "creating $VENV with $("$BASE" -V 2>&1)"
  "$BASE" -m venv "$VENV" || die "creating $VENV failed, see above."
fi
# mmcv's build looks for ninja on the PATH and takes twice as long without it.
export PATH="$PWD/$VENV/bin:$PATH"

failed='see the messages of pip above; run this again to continue.'
pins=(-c "$PINS/common.txt" "${LANE[@]/#/-c}")
say "installing torch $TORCH"
pip install "${pins[@]}" setuptools wheel ninja packaging || die "$failed"
pip install "${pins[@]}" -r "${LANE[0]}" || die "$failed"

if ! ops_load; then
  # If torch sees a GPU, mmcv compiles for CUDA, which needs the toolkit.
  "$PY" -c 'import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and torch.version.hip is None and CUDA_HOME is None)' ||
    die 'torch sees a GPU, but there is no CUDA toolkit (nvcc) to compile mmcv with.' \
      'Install the toolkit, set CUDA_HOME if it is not found, and run this again,' \
      'or ignore the GPU: CUDA_VISIBLE_DEVICES= make demo'
  jobs=${MAX_JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
  say "installing $MMCV; compiling its operators takes about 10 minutes on 2 cores, once"
  # pip knows a cached wheel by its Python, not by the torch that it was compiled with.
  cache=()
  [ "$TORCH" = "$DEFAULT_TORCH" ] || cache=(--cache-dir "$(pip cache dir)/torch-$TORCH")
  # The headers of torch 2.14 and newer are C++20. mmcv asks for 17; the last one counts.
  headers=$("$PY" -c 'from torch.utils import cpp_extension as c; print(c.include_paths()[0])')
  if [[ $(cat "$headers/ATen/ATen.h" 2>/dev/null) == *C++20* ]]; then
    printf '#!/bin/sh\nexec %s "$@" -std=c++20\n' "${CXX:-c++}" >"$VENV/bin/c++20"
    chmod +x "$VENV/bin/c++20"
    export CXX=$PWD/$VENV/bin/c++20 NVCC_APPEND_FLAGS=-std=c++20
  fi
  # No build isolation, because the build needs torch: without it mmcv silently
  # installs without its operators.
  mmcv() { MAX_JOBS=$jobs MMCV_WITH_OPS=1 pip install "${pins[@]}" --no-build-isolation "$@" "$MMCV"; }
  mmcv "${cache[@]}" || die "$failed" 'Out of memory? MAX_JOBS=1 make install'
  if ! ops_load; then
    say 'the cached operators belong to another torch; compiling again'
    mmcv --no-cache-dir --force-reinstall --no-deps || die "$failed"
  fi
fi

say 'installing the other packages'
pip install -q "${pins[@]}" -r "$PINS/common.txt" "${LANE[@]/#/-r}" || die "$failed"
pip install -q --no-deps "${NO_DEPS[@]}" || die "$failed"
pip install -q --no-deps --no-build-isolation -e . || die "$failed"

# Packages can install without errors and still not work together.
say 'checking'
"$PY" -W ignore -m agvm_mm.doctor ||
  die 'the packages are installed but do not work together, see above.' \
    "If this remains: rm -rf $VENV, and run this again."
[ -z "$interrupted" ] || die ''
key >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
say "ready: $VENV"
