#!/usr/bin/env bash
# Compiles every CUDA file for every default architecture and prints registers and spills; fails on a spill.
# Needs nvcc, no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v nvcc >/dev/null || { echo "compile_cuda: no nvcc here" >&2; exit 1; }
IFS=, read -ra architectures <<<"${ULFAST_CUDA_ARCHS:-75,80,86,89,90}"
codes=()
for a in "${architectures[@]}"; do codes+=(-gencode "arch=compute_${a/#8?/80},code=sm_$a"); done  # as setup.py has it
mkdir -p build/cuda
spilled=0
for file in csrc/cuda/*.cu; do
    log=build/cuda/$(basename "$file").log
    nvcc --threads 0 -std=c++17 -O3 --fmad=false -Xptxas -v -Xcompiler -fPIC "${codes[@]}" -c "$file" -o "build/cuda/$(basename "$file").o" 2>"$log" ||
        { cat "$log" >&2; exit 1; }
    if grep -E '[1-9][0-9]* bytes spill' "$log"; then spilled=1; fi
    printf '%s: %s kernels, most registers %s\n' "$file" "$(grep -c 'Compiling entry' "$log")" \
        "$(grep -oE 'Used [0-9]+' "$log" | sort -k2 -n | tail -1 | cut -d' ' -f2)"
done
exit $spilled
