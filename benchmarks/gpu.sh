#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, without a network: builds the kernels, runs the gpu tests and compute-sanitizer.
# Fails where no GPU or nvcc is. Never run on a GPU yet.
#   benchmarks/gpu.sh [FOLDER]      (default benchmarks/results/gpu-NAME)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
fail() { echo "gpu.sh: $*" >&2; exit 1; }

command -v nvcc >/dev/null || fail "no nvcc on the PATH: install the CUDA toolkit, then repeat."
name=$("$python" -c 'import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name())' 2>/dev/null) ||
    fail "torch sees no NVIDIA GPU here: nothing was built or measured."
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
out=${1:-benchmarks/results/gpu-$(echo "$name" | tr ' A-Z' '-a-z')}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} ULFAST_CUDA_KERNELS=1 OMP_WAIT_POLICY=passive
status=0
step() { # seconds, log, command: within its budget, and what fails is said at the end
    local budget=$1 log=$2 start=$SECONDS
    shift 2
    if timeout "$budget" "$@" >"$out/$log" 2>&1; then
        echo "ok    $log: $((SECONDS - start)) s"
    else
        echo "FAIL  $log: exit $? after $((SECONDS - start)) s" >&2
        tail -5 "$out/$log" >&2
        status=1
    fi
}

step 150 build.log env ULFAST_CUDA=1 ULFAST_CUDA_ARCHS="$arch" "$python" setup.py build_ext --inplace
[ $status = 0 ] || fail "the kernels did not build; see $out/build.log"
step 90 tests.log "$python" -m pytest -q -m gpu tests/ops/test_cuda.py
# Still to come: a small sweep and the table. The tests stand in as the sanitizer's load; the rest is ulfast profile.
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        step 60 "$tool.log" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x -m gpu tests/ops/test_cuda.py
    done
else
    echo "compute-sanitizer is not installed: not run" | tee "$out/sanitizer.log"
fi
exit $status
