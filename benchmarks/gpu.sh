#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc, without a network. Fails where either is missing.
#   benchmarks/gpu.sh check [FOLDER]       within five minutes: builds for this GPU; tests, memcheck, racecheck at once
#   benchmarks/gpu.sh measure [FOLDER]     within six minutes: the table, shares of training steps, trainings
#   benchmarks/gpu.sh check|measure --dry FOLDER    on the CPU, tiny: tests the scripts, measures nothing
# Writes gpu-NAME.json, .md and -train.json, and a log and a JSON of each part, into FOLDER (benchmarks/results).
# Environment: STEPS="build tests" runs only these; LIMIT: seconds in all; SERIAL=1: one step after another;
# TABLE: flags of gpu.py ("--only REGEX"); SWEEP: of gpu_sweep.py ("--kernels project"); TESTS: of pytest; TRAIN: of
# gpu_train.py ("--data FOLDER"); NAME: in the file names, instead of the GPU's; ULFAST_COMMIT: recorded where there is
# no git; PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD python=${PYTHON:-python3}
fail() { echo "gpu.sh: $*" >&2; exit 1; }

part=${1:-} dry=
case $part in check | measure) shift ;; *) fail "say check or measure: benchmarks/gpu.sh check [FOLDER]" ;; esac
if [ "${1:-}" = --dry ]; then
    dry=--dry name=dry
    shift
    [ -n "${1:-}" ] || fail "--dry needs a folder for its results: benchmarks/gpu.sh $part --dry FOLDER."
else
    command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
    command -v nvcc >/dev/null || fail "no nvcc on the PATH: install the CUDA toolkit, then repeat."
    # nvidia-smi answers at once; importing torch may take half a minute.
    about=$(nvidia-smi --id=0 --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null) ||
        about=$("$python" -c 'import torch
assert torch.cuda.is_available()
print(torch.cuda.get_device_name(), "%d.%d" % torch.cuda.get_device_capability(), sep=", ")' 2>/dev/null) ||
        fail "no NVIDIA GPU is seen here: nothing was built or measured."
    about=${about%%$'\n'*} arch=${about##*, }
    arch=${arch//[!0-9]/} name=$(echo "${about%,*}" | tr ' A-Z' '-a-z' | tr -cd 'a-z0-9-')
    export ULFAST_CUDA_KERNELS=1
fi
out=$(mkdir -p "${1:-benchmarks/results}" && cd "${1:-benchmarks/results}" && pwd)
stem=gpu-${NAME:-$name}
if [ "$part" = check ]; then all=300; else all=360; fi
limit=${LIMIT:-$all}
work=$(mktemp -d)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1

order=()
pack() { # every log in one file, and how each step ended as JSON
    local step log state comma=''
    local to=$out/$stem-$part tiny=false commit=${ULFAST_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}
    [ -z "$dry" ] || tiny=true
    : >"$to.log"
    printf '{"part": "%s", "dry": %s, "gpu": "%s", "commit": "%s", "seconds": %d, "steps": {' \
        "$part" "$tiny" "$name" "$commit" $SECONDS >"$to.json"
    for step in "${order[@]}"; do
        log=$work/$step.log state=("cut" 0)
        [ ! -f "$work/$step.state" ] || read -r -a state <"$work/$step.state"
        printf '%s\n  "%s": {"exit": "%s", "seconds": %s}' "$comma" "$step" "${state[@]}" >>"$to.json"
        comma=,
        printf '\n======== %s: exit %s, %s s\n' "$step" "${state[@]}" >>"$to.log"
        cat "$log" >>"$to.log" 2>/dev/null || true
    done
    printf '\n}}\n' >>"$to.json"
    rm -rf "$work"
}
trap pack EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM

wanted() { [ -z "${STEPS:-}" ] || case " $STEPS " in *" $1 "*) ;; *) return 1 ;; esac; }
run() { # step, seconds, command: within its budget and what is left of all
    local step=$1 budget=$2 start=$SECONDS code=0
    shift 2
    if [ $budget -gt $((limit - SECONDS)) ]; then budget=$((limit - SECONDS)); fi
    if [ $budget -le 0 ]; then
        echo "not begun: the $limit seconds of all were over" >"$work/$step.log"
        code=left
    else
        timeout -k 5 "$budget" "$@" >"$work/$step.log" 2>&1 || code=$?
    fi
    case $step in tests | compiled) [ $code != 0 ] || grep -q '[0-9] passed' "$work/$step.log" || code=skipped ;; esac
    echo "$code $((SECONDS - start))" >"$work/$step.state"
    case $code in
        0) echo "ok    $step: $((SECONDS - start)) s" ;;
        124 | 137) echo "FAIL  $step: not done within $budget s" ;;
        *) echo "FAIL  $step: exit $code after $((SECONDS - start)) s" ;;
    esac
}
step() { # as `run`, in the background unless SERIAL
    wanted "$1" || return 0
    order+=("$1")
    if [ -n "${SERIAL:-}" ]; then run "$@"; else run "$@" & fi
}
ended() { [ -f "$work/$1.state" ] && grep -q '^0 ' "$work/$1.state"; }

# --- what the steps do ----------------------------------------------------------------------------------------------

versions() { # also brings torch into the page cache while the compilers run
    step versions 120 "$python" -c '
import importlib.util, os, platform, sys, sysconfig
print("Python", platform.python_version(), os.cpu_count(), "cores")
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
print("Python.h is", "there" if os.path.exists(header) else "MISSING")
import setuptools, pybind11, torch
print("setuptools", setuptools.__version__, "pybind11", pybind11.__version__)
print("torch", torch.__version__, torch.version.cuda)
wanted = "pytest xdist pytest_timeout hypothesis sklearn scipy timm torchvision triton pooch simplejpeg kornia ffcv"
for name in wanted.split():
    if importlib.util.find_spec(name) is None: print("without", name)
if len(sys.argv) == 1:
    assert torch.cuda.is_available(), "torch sees no GPU"
    print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))' $dry
}

# Where no pyproject.toml is: an older setuptools would stop at its license. What is built already stays.
build() {
    local hash
    wanted build || return 0
    hash=$(cat setup.py $(find csrc -type f | sort) | sha256sum | cut -c1-16)-$arch
    if [ "$(cat build/gpu.hash 2>/dev/null)" = "$hash" ] && ls ulfast/_C*.so >/dev/null 2>&1; then
        echo "ok    build: is there"
        return
    fi
    mkdir -p build/gpu "$work/empty"
    rm -f build/gpu.hash ulfast/_C*.so
    # shellcheck disable=SC2016
    step build 170 bash -c 'cd "$1" && export ULFAST_CUDA=1 ULFAST_CUDA_ARCHS="$2" &&
        exec "$3" "$4/setup.py" build_ext --build-lib "$4" --build-temp "$4/build/gpu"' \
        build "$work/empty" "$arch" "$python" "$root"
    wait
    ended build || { tail -40 "$work/build.log" >&2 && fail "the kernels did not build; see $out/$stem-$part.log"; }
    echo "$hash" >build/gpu.hash
}

check() {
    local pytest=(-v --tb=short -m gpu -p no:cacheprovider --durations=5) sweep name help filter=--kernel-name
    local files=(tests/ops/test_cuda*.py) more
    read -r -a more <<<"${TESTS:-}"
    read -r -a sweep <<<"${SWEEP:-}"
    has() { "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"; }
    if [ -n "$dry" ]; then
        versions
        step sweep 60 "$python" benchmarks/gpu_sweep.py --dry
        step tests 60 "$python" -m pytest -q -p no:cacheprovider -x tests/ops/test_cuda_and_cpu.py
        wait
        return
    fi
    versions
    build
    ! wanted versions || ended versions || { cat "$work/versions.log" >&2 && fail "torch cannot use this GPU."; }
    # By a thread: a call that hangs in the driver hears no signal.
    ! has pytest_timeout || pytest+=(--timeout 60 --timeout-method thread)
    ! has xdist || pytest+=(--dist worksteal --max-worker-restart 40 -n)
    local six=6 three=3
    has xdist || six='' three=''
    step tests 170 "$python" -m pytest "${pytest[@]}" $six -k "not compiled" "${more[@]}" "${files[@]}"
    step compiled 170 env TORCHINDUCTOR_COMPILE_THREADS=1 \
        "$python" -m pytest "${pytest[@]}" $three -k compiled "${more[@]}" "${files[@]}"
    if command -v compute-sanitizer >/dev/null; then
        help=$(compute-sanitizer --help 2>&1 || true)
        [[ $help == *--kernel-name* ]] || filter=--kernel-regex # its name of old
        for name in memcheck racecheck; do
            step $name 200 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
                compute-sanitizer --tool $name --error-exitcode 9 --report-api-errors no --print-limit 30 \
                $filter kns=ulfast "$python" benchmarks/gpu_sweep.py "${sweep[@]}"
        done
    else
        step memcheck 5 sh -c 'echo "compute-sanitizer is not installed: not run"; exit 1'
    fi
    wait
}

measure() {
    local SERIAL=1 table=() train=() seconds
    [ -n "$dry" ] || build
    read -r -a table <<<"${TABLE:-}"
    seconds=$((limit - SECONDS - 100))
    if [ $seconds -gt 150 ]; then seconds=150; fi
    if [ $seconds -lt 20 ]; then seconds=20; fi
    step table 190 "$python" benchmarks/gpu.py $dry --out "$out" --name "$stem" --seconds $seconds "${table[@]}"
    step steps 70 "$python" benchmarks/gpu.py $dry --out "$out" --name "$stem" --seconds 45 --part steps
    if [ -f benchmarks/gpu_train.py ]; then
        mkdir -p "$work/train"
        seconds=$((limit - SECONDS - 15))
        read -r -a train <<<"${TRAIN:-}"
        step train $((seconds + 10)) \
            "$python" benchmarks/gpu_train.py $dry --out "$work/train" --seconds $seconds "${train[@]}"
        [ ! -f "$work/train/train.json" ] || cp "$work/train/train.json" "$out/$stem-train.json"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------

$part
echo
status=0
for step in "${order[@]}"; do
    if ! ended "$step"; then
        status=1
        echo "---- FAIL $step"
        said='^(FAILED|ERROR |E  )|=========.*(ERROR|hazard|Invalid|Race|Address)'
        grep -E "$said|^left out|broken off|from its twin|Error:" "$work/$step.log" | sort | uniq -c | sort -rn | head -25 || true
        tail -8 "$work/$step.log"
    fi
done
for step in tests compiled memcheck racecheck; do
    if ended $step; then tail -1 "$work/$step.log"; fi
done
if [ "$part" = measure ] && [ -f "$out/$stem.md" ]; then cat "$out/$stem.md"; fi
echo "$stem: $SECONDS s in all; logs in $out/$stem-$part.log"
exit $status
