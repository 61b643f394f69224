#!/usr/bin/env bash
# Makes .venv and installs ulfast into it, kernels compiled, with what the tests need. `make setup` calls it.
# A torch >= 2.6 that PYTHON (default python3) already has is used; otherwise constraints.txt says which comes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
fail() { echo "setup: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "no $python here. Install Python 3.10 or newer (Debian, Ubuntu: apt-get install python3 python3-venv)."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$python" --version) is too old: 3.10 or newer is needed; name one with PYTHON=..."
command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler. Install one (Debian, Ubuntu: apt-get install g++), or name yours with CXX=..."

torch_of() { "$1" -c 'import torch; v = torch.__version__; assert tuple(map(int, v.split(".")[:2])) >= (2, 6); print(v)' 2>/dev/null || true; }

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    site=
    [ -z "$(torch_of "$python")" ] || site=--system-site-packages
    "$python" -m venv $site .venv || fail "no virtual environment could be made (Debian, Ubuntu: apt-get install python3-venv)."
fi
# CUDA kernels are for the GPU that is here; where nvcc is and no GPU, for one architecture, so that they are linked.
if [ -z "${ULFAST_CUDA_ARCHS:-}" ]; then
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | paste -sd, || true)
    export ULFAST_CUDA_ARCHS=${found:-90}
fi
version=$(torch_of .venv/bin/python)
if [ -n "$version" ]; then echo "torch==$version" >.venv/constraints.txt; else cp constraints.txt .venv/constraints.txt; fi
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
[ -n "$version" ] || { echo "setup: torch"; pip install -c .venv/constraints.txt torch; }
echo "setup: ulfast${EXTRAS:+ with $EXTRAS}"
pip install -c .venv/constraints.txt -e ".[${EXTRAS:-test}]"
tools/ffcv.sh
