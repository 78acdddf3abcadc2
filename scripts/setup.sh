#!/usr/bin/env bash
# Make the environment that everything here runs in: PyTorch, fairseq and this package, in .venv.
#
#     scripts/setup.sh
#     PYTHON=python3.12 VENV=/somewhere/else scripts/setup.sh
#
# The first run takes some minutes, because fairseq is compiled. A run with nothing to do takes a second, and a run after
# one that was interrupted goes on from there.
set -euo pipefail

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac  # before the cd
cd "$root"
python=$VENV/bin/python

has_pip() { [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
pip_install() { "$python" -m pip install $quiet --disable-pip-version-check -c constraints.txt "$@"; }
quiet=-q
if [ -t 1 ]; then quiet=; fi  # progress bars for a person, not for a log

# --- Which Python --------------------------------------------------------------------------------------------------
# An environment that is there decides, unless the user names an interpreter.
if [ -z "${PYTHON:-}" ]; then
    if has_pip; then PYTHON=$python; else PYTHON=python3; fi
fi
command -v "$PYTHON" >/dev/null || fail "there is no '$PYTHON': install Python 3.9 or later, or name one with PYTHON=..."
wanted=$(version_of "$PYTHON") || fail "'$PYTHON' does not run: name another Python with PYTHON=..."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "Python 3.9 or later is needed and $PYTHON is $wanted: name a newer one with PYTHON=..."

# --- Nothing to do? ------------------------------------------------------------------------------------------------
# The two paths are in the stamp because the environment holds both: a moved project is set up again.
stamp=$VENV/.nar-setup
state=$({ echo "$wanted $root $VENV"; cat setup.py constraints.txt scripts/setup.sh; } | cksum)
all_there() {
    # Looks without importing, which would take seconds; -I, so that the current folder does not count as installed.
    "$python" -I -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, "torch fairseq sacrebleu sentencepiece pytest nar_plugins".split())))'
}
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && has_pip && all_there; then
    exit 0
fi

# --- The environment -----------------------------------------------------------------------------------------------
if has_pip; then
    [ "$(version_of "$python")" = "$wanted" ] ||
        fail "$VENV holds Python $(version_of "$python") and PYTHON is $wanted: remove that folder or set VENV=..."
else
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$PYTHON has no venv module: install it (Debian, Ubuntu: apt install python$wanted-venv)"
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        fail "$VENV is not a virtual environment: remove it or set VENV=..."
    fi
    mkdir -p "$VENV" || fail "$VENV cannot be made: set VENV=... to a place that can be written"
    # Measured: the finished folder is 1.3 GB with a CPU build of PyTorch, 5 to 7 GB with CUDA; the rest is for pip's
    # downloads and the build. Which PyTorch pip will take cannot be known here, so only the smaller is insisted on.
    free=$(df -Pk "$VENV" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge 3000 ] || fail "$free MB are free at $VENV and 3000 are needed (10000 for a CUDA PyTorch): make room or set VENV=..."
    echo "[1/4] Python $wanted in $VENV"
    "$PYTHON" -m venv --clear "$VENV"  # --clear: what an interrupted run left of it
fi
rm -f "$stamp"

# --- PyTorch, before fairseq ---------------------------------------------------------------------------------------
echo "[2/4] PyTorch: half a minute to some minutes, a download of 200 MB (CPU) to 3 GB (CUDA)"
pip_install pip || fail "pip could not be updated (its message is above): check the network and run this again"
pip_install torch numpy cython setuptools wheel ||
    fail "PyTorch could not be installed (pip's message is above): check the network and run this again"

# --- fairseq, compiled against that PyTorch ------------------------------------------------------------------------
# Compiled again when PyTorch has changed, or the environment has moved (its commands name their interpreter's path).
built=$VENV/.nar-fairseq
build="torch $("$python" -c 'from importlib.metadata import version; print(version("torch"))') in $VENV"
if [ ! -f "$built" ] || [ "$(cat "$built")" != "$build" ]; then
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        command -v ${compiler%% *} >/dev/null ||
            fail "fairseq needs a C++ compiler and there is no '$compiler': install one (Debian, Ubuntu: apt install g++)"
    done
    "$python" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
        fail "fairseq needs Python's headers: install them (Debian, Ubuntu: apt install python$wanted-dev)"
    echo "[3/4] fairseq: compiling, two to five minutes"
    # No build isolation: an isolated build downloads another PyTorch and is compiled against that one. The old fairseq
    # of Python 3.10 and earlier must not see PyTorch: it then leaves out the extensions whose sources its archive lacks.
    # No cache: pip would reuse a wheel that was compiled against an earlier PyTorch.
    # No CUDA_HOME: with it fairseq compiles CUDA extensions, which nothing here uses and which need a matching nvcc.
    isolation=--no-build-isolation
    case $wanted in 3.9 | 3.10) isolation= ;; esac
    (
        unset CUDA_HOME
        pip_install $isolation --no-cache-dir --no-deps --force-reinstall \
            'fairseq-fixed; python_version >= "3.11"' 'fairseq; python_version < "3.11"'
    ) || fail "fairseq could not be built (the compiler's message is above)"
    echo "$build" >"$built"
fi

# --- This package, and everything that is pure Python ---------------------------------------------------------------
echo "[4/4] nar_plugins and the rest"
# PYTHONWARNINGS: setuptools warns about every editable installation, twelve lines long.
PYTHONWARNINGS=ignore pip_install --no-build-isolation -e ".[dev,plots]" ||
    fail "the package could not be installed (pip's message is above): check the network and run this again"
"$python" -c 'import logging, torch; logging.disable(); import fairseq.data.data_utils_fast' ||
    fail "fairseq cannot be imported (the message is above): remove $VENV and run this again"
echo "$state" >"$stamp"
echo "Done. To use it: source \"$VENV/bin/activate\""
