#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, without a network, within eight minutes: builds the kernels, runs the gpu tests,
# compute-sanitizer on a small sweep, and the table. Fails where no GPU or nvcc is. Never run on a GPU yet.
#   benchmarks/gpu.sh [FOLDER]      (default benchmarks/results/gpu-NAME)
#   benchmarks/gpu.sh --dry FOLDER  the sweep and the table on the CPU, tiny: tests the script, measures nothing
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
fail() { echo "gpu.sh: $*" >&2; exit 1; }

dry=
if [ "${1:-}" = --dry ]; then
    dry=--dry
    out=${2:-}
    [ -n "$out" ] || fail "--dry needs a folder for its results: benchmarks/gpu.sh --dry FOLDER."
else
    command -v nvcc >/dev/null || fail "no nvcc on the PATH: install the CUDA toolkit, then repeat."
    name=$("$python" -c 'import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name())' 2>/dev/null) ||
        fail "torch sees no NVIDIA GPU here: nothing was built or measured."
    arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    out=${1:-benchmarks/results/gpu-$(echo "$name" | tr ' A-Z' '-a-z')}
    export ULFAST_CUDA_KERNELS=1
fi
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=passive
status=0 limit=470
step() { # seconds, log, command: within its budget and what is left of all, and what fails is said at the end
    local budget=$1 log=$2 start=$SECONDS
    shift 2
    if [ $budget -gt $((limit - SECONDS)) ]; then budget=$((limit - SECONDS)); fi
    if [ $budget -le 0 ]; then
        echo "FAIL  $log: not begun, the eight minutes are over" >&2
        status=1
    elif timeout "$budget" "$@" >"$out/$log" 2>&1; then
        echo "ok    $log: $((SECONDS - start)) s"
    else
        echo "FAIL  $log: exit $? after $((SECONDS - start)) s" >&2
        tail -5 "$out/$log" >&2
        status=1
    fi
}

if [ -n "$dry" ]; then
    step 60 sweep.log "$python" benchmarks/gpu_sweep.py --dry
else
    step 150 build.log env ULFAST_CUDA=1 ULFAST_CUDA_ARCHS="$arch" "$python" setup.py build_ext --inplace
    [ $status = 0 ] || fail "the kernels did not build; see $out/build.log"
    step 60 tests.log "$python" -m pytest -q -m gpu tests/ops/test_cuda.py tests/ops/test_cuda_generators.py
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck initcheck; do
            step 35 "$tool.log" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu_sweep.py
        done
    else
        echo "FAIL  compute-sanitizer is not installed: not run" | tee "$out/sanitizer.log" >&2
        status=1
    fi
fi
left=$((limit - SECONDS - 20)) # a case that has begun may end
step 400 table.log "$python" benchmarks/gpu.py $dry --out "$out" --seconds "$((left > 10 ? left : 10))"
[ ! -f "$out/gpu.md" ] || cat "$out/gpu.md"
exit $status
