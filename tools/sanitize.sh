#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer beside the usual ones and runs the operators'
# tests on them. Leaks are not looked for: the interpreter keeps its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
tree=build/sanitize
mkdir -p "$tree"
rm -rf "$tree/ulfast"
cp -r ulfast csrc setup.py pyproject.toml README.md LICENSE "$tree/"
rm -f "$tree"/ulfast/*.so
"$python" -c 'import pybind11, ninja' 2>/dev/null || "$python" -m pip --quiet install pybind11 ninja
(cd "$tree" && ULFAST_SANITIZE=1 ULFAST_CUDA=0 "$python" setup.py -q build_ext --inplace)
libraries=$(for name in libasan libubsan libstdc++; do "${CXX:-g++}" -print-file-name=$name.so; done | tr '\n' ' ')
cd tests
LD_PRELOAD=$libraries ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH=$PWD/../$tree ULFAST_SANITIZED=1 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -x -p no:cacheprovider -n 2 "$@" ops
