#!/usr/bin/env bash
# Make the environment that everything here runs in: PyTorch, fairseq and this package, in .venv.
#
#     scripts/setup.sh
#     PYTHON=python3.12 VENV=/somewhere/else scripts/setup.sh
#     FAIRSEQ=prebuilt scripts/setup.sh        # Python 3.11 and 3.12 without a compiler: docs/install.md
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

# --- Which fairseq -------------------------------------------------------------------------------------------------
# compiled here, or prebuilt: somebody else's wheel of nearly the same source (scripts/prebuilt.txt), which is taken where
# it is asked for, or where nothing can be compiled; and said. An environment that is there decides, unless the user does.
FAIRSEQ=${FAIRSEQ:-}
case $FAIRSEQ in
    '' | compiled | prebuilt) ;;
    *) fail "FAIRSEQ=$FAIRSEQ: it is compiled or prebuilt; without it fairseq is compiled where there is a compiler" ;;
esac
built=$VENV/.nar-fairseq
if [ -z "$FAIRSEQ" ] && [ -f "$built" ]; then
    case $(cat "$built") in prebuilt*) FAIRSEQ=prebuilt ;; *) FAIRSEQ=compiled ;; esac
fi
no_prebuilt=
case $wanted in
    3.11 | 3.12) [ "$(uname -sm)" = "Linux x86_64" ] || no_prebuilt="for Linux on x86_64, and this is $(uname -sm)" ;;
    *) no_prebuilt="for Python 3.11 and 3.12, and this is $wanted" ;;
esac
why_not_compiled() {  # one line that says what is missing, nothing if all is there
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        if ! command -v ${compiler%% *} >/dev/null; then
            echo "a C++ compiler and there is no '$compiler': install one (Debian, Ubuntu: apt install g++)"
            return
        fi
    done
    "$PYTHON" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
        echo "Python's headers: install them (Debian, Ubuntu: apt install python$wanted-dev)"
}
check_compiler() {
    missing=$(why_not_compiled)
    [ -z "$missing" ] && return
    if [ -n "$no_prebuilt" ]; then
        fail "fairseq needs $missing; a prebuilt one is only there $no_prebuilt"
    fi
    fail "fairseq needs $missing, or take a prebuilt one with FAIRSEQ=prebuilt"
}
if [ -z "$FAIRSEQ" ]; then
    FAIRSEQ=compiled
    missing=$(why_not_compiled)
    if [ -n "$missing" ] && [ -z "$no_prebuilt" ]; then
        echo "fairseq is taken prebuilt, because to compile it needs $missing"
        FAIRSEQ=prebuilt
    fi
fi
if [ "$FAIRSEQ" = prebuilt ] && [ -n "$no_prebuilt" ]; then
    fail "FAIRSEQ=prebuilt is only there $no_prebuilt: leave it out, or name another Python with PYTHON=..."
fi

# --- Nothing to do? ------------------------------------------------------------------------------------------------
# The two paths are in the stamp because the environment holds both: a moved project is set up again.
stamp=$VENV/.nar-setup
state=$({ echo "$wanted $root $VENV"; echo "$FAIRSEQ"; cat setup.py constraints.txt scripts/setup.sh scripts/prebuilt.txt; } | cksum)
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
[ "$FAIRSEQ" = prebuilt ] || [ -f "$built" ] || check_compiler  # before gigabytes are downloaded

# --- PyTorch, before fairseq ---------------------------------------------------------------------------------------
echo "[2/4] PyTorch: half a minute to some minutes, a download of 200 MB (CPU) to 3 GB (CUDA)"
pip_install pip || fail "pip could not be updated (its message is above): check the network and run this again"
pip_install torch numpy cython setuptools wheel ||
    fail "PyTorch could not be installed (pip's message is above): check the network and run this again"

# --- fairseq -------------------------------------------------------------------------------------------------------
# Anew when the kind or its PyTorch has changed, or the environment has moved (its commands name their interpreter's path).
torch="torch $("$python" -c 'from importlib.metadata import version; print(version("torch"))')"
case $FAIRSEQ-$wanted in
    prebuilt-*) fairseq=ve-fairseq build="prebuilt $(cksum <scripts/prebuilt.txt)" ;;
    compiled-3.9 | compiled-3.10) fairseq=fairseq build=$torch ;;
    compiled-3.11 | compiled-3.12) fairseq=fairseq-fixed build=$torch ;;
    *) fairseq=fairseq-fixed build="without the extensions of PyTorch" ;;
esac
build="$build in $VENV"
if [ ! -f "$built" ] || [ "$(cat "$built")" != "$build" ]; then
    [ "$FAIRSEQ" = prebuilt ] || check_compiler
    rm -f "$built"
    # Several distributions install the package fairseq: one that is there must go before another comes.
    "$python" -m pip uninstall -q -y --disable-pip-version-check fairseq fairseq-fixed ve-fairseq 2>/dev/null
    if [ "$FAIRSEQ" = prebuilt ]; then
        echo "[3/4] fairseq: prebuilt, $(sed -n 's/ \\$//; /==/p' scripts/prebuilt.txt), not compiled here"
        said=$VENV/.nar-pip
        "$python" -m pip install $quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
            -r scripts/prebuilt.txt >"$said" 2>&1 || {
            cat "$said" >&2
            ! grep -q "DO NOT MATCH THE HASHES" "$said" ||
                fail "the prebuilt fairseq is another file than the one in scripts/prebuilt.txt (its sha256 differs): not installed"
            fail "the prebuilt fairseq could not be installed (pip's message is above): check the network and run this again"
        }
        rm -f "$said"
    else
        echo "[3/4] fairseq: compiling, one to five minutes"
        # No build isolation: an isolated build downloads another PyTorch and is compiled against that one. The old
        # fairseq of Python 3.10 and earlier must not see PyTorch: it then leaves out the extensions whose sources its
        # archive lacks. From Python 3.13 on a stand-in for PyTorch's build tools leaves the same ones out: nothing here
        # uses them.
        # No cache: pip would reuse a wheel that was compiled against an earlier PyTorch.
        # No CUDA_HOME: with it fairseq compiles CUDA extensions, which nothing here uses and which need a matching nvcc.
        isolation=--no-build-isolation
        (
            unset CUDA_HOME
            case $wanted in
                3.9 | 3.10) isolation= ;;
                3.11 | 3.12) ;;
                *) export PYTHONPATH=$root/scripts/without_torch ;;
            esac
            pip_install $isolation --no-cache-dir --no-deps --force-reinstall "$fairseq"
        ) || fail "fairseq could not be built (the compiler's message is above)"
    fi
    echo "$build" >"$built"
fi

# --- This package, and everything that is pure Python ---------------------------------------------------------------
echo "[4/4] nar_plugins and the rest"
# PYTHONWARNINGS: setuptools warns about every editable installation, twelve lines long.
PYTHONWARNINGS=ignore pip_install --no-build-isolation -e ".[dev,plots]" "$fairseq" ||
    fail "the package could not be installed (pip's message is above): check the network and run this again"
"$python" -c 'import logging, torch; logging.disable(); import fairseq.data.data_utils_fast' ||
    fail "fairseq cannot be imported (the message is above): remove $VENV and run this again"
echo "$state" >"$stamp"
echo "Done. To use it: source \"$VENV/bin/activate\""
