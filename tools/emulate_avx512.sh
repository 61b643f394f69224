#!/usr/bin/env bash
# Builds the AVX-512 kernels for a processor without AVX-512, its intrinsics lane by lane (tests/ops/avx512.h), and runs
# the operators' and the generators' tests on them: they stand in for the baseline level. Says nothing of their speed.
header=$(cd "$(dirname "$0")/.." && pwd)/tests/ops/avx512.h
export ULFAST_BASELINE="-march=x86-64-v3 -Wno-psabi -Wno-ignored-attributes -include '$header'"
source "$(dirname "$0")/variant.sh" emulate
PYTHONPATH=$tree "$python" -m pytest -q -x -p no:cacheprovider -n 2 "$@" ops poisons/test_generators.py
