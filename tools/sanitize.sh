#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs the operators' tests on them. Leaks
# are not looked for: the interpreter keeps its own. The quick tests have every kernel of every level meet every size;
# `tools/sanitize.sh -m ""` takes the full products.
export ULFAST_SANITIZE=1
source "$(dirname "$0")/variant.sh" sanitize
libraries=$(for name in libasan libubsan libstdc++; do "${CXX:-g++}" -print-file-name=$name.so; done | tr '\n' ' ')
LD_PRELOAD=$libraries ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH=$tree ULFAST_SANITIZED=1 OMP_NUM_THREADS=2 "$python" -m pytest -q -x -p no:cacheprovider \
    -n auto --maxprocesses 8 "$@" ops
