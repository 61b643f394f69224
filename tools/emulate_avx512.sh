#!/usr/bin/env bash
# Builds the AVX-512 kernels for a processor without AVX-512, its intrinsics lane by lane (tests/ops/avx512.h), and runs
# the operators' and the generators' tests on them: they stand in for the baseline level. Says nothing of their speed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
tree=build/emulate
mkdir -p "$tree"
rm -rf "$tree/ulfast"
cp -r ulfast csrc setup.py pyproject.toml README.md LICENSE "$tree/"
rm -f "$tree"/ulfast/*.so
header=$PWD/tests/ops/avx512.h
(cd "$tree" && ULFAST_BASELINE="-march=x86-64-v3 -Wno-psabi -include '$header'" ULFAST_CUDA=0 "$python" setup.py -q build_ext --inplace)
cd tests
PYTHONPATH=$PWD/../$tree "$python" -m pytest -q -x -p no:cacheprovider -n 2 "$@" ops poisons/test_generators.py
