#!/usr/bin/env bash
# Two machines on one: two network namespaces with host names of their own, joined by a cable that can be pulled, and one
# file system between them. `torchrun` starts a process on each, over gloo. Poison, fit and training must give what one
# machine gives; with the cable pulled the job must end within ULFAST_RANK_TIMEOUT, with one line of ulfast from each.
#
#     tools/two_machines.sh [PYTHON]      needs root, or the right to make namespaces; exit code 77 where there is none
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-.venv/bin/python}
A=ulfast-a-$$ B=ulfast-b-$$ PORT=29500
WORK=$(mktemp -d)
export OMP_WAIT_POLICY=passive PYTHONPATH=$PWD ULFAST_RANK_TIMEOUT=${ULFAST_RANK_TIMEOUT:-20}

end() {
    jobs -p | xargs -r kill 2>/dev/null || true
    ip netns del "$A" 2>/dev/null || true
    ip netns del "$B" 2>/dev/null || true
    rm -rf "$WORK"
}
trap end EXIT
ip netns add "$A" 2>/dev/null && ip netns add "$B" 2>/dev/null || { echo "no right to make network namespaces"; exit 77; }
ip link add veth-a netns "$A" type veth peer name veth-b netns "$B" 2>/dev/null || { echo "no veth devices"; exit 77; }
ip -n "$A" addr add 10.77.0.1/24 dev veth-a
ip -n "$B" addr add 10.77.0.2/24 dev veth-b
for end in "$A lo" "$A veth-a" "$B lo" "$B veth-b"; do ip -n "${end% *}" link set "${end#* }" up; done

# on NODE COMMAND...: one of the two machines, 0 or 1, in the foreground
on() {
    local node=$1 space=$A name=a
    [ "$node" = 0 ] || { space=$B name=b; }
    shift
    GLOO_SOCKET_IFNAME=veth-$name ip netns exec "$space" unshare --uts sh -c "hostname node-$name; exec \"\$@\"" sh \
        "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank "$node" \
        --master-addr 10.77.0.1 --master-port "$PORT" -m ulfast "$@"
}

# both COMMAND...: by both machines; what they printed in $WORK/0 and $WORK/1, their exit codes in CODES
both() {
    PORT=$((PORT + 1))
    on 0 "$@" >"$WORK/0" 2>&1 & local first=$!
    on 1 "$@" >"$WORK/1" 2>&1 & local second=$!
    CODES=(0 0)
    wait "$first" || CODES[0]=$?
    wait "$second" || CODES[1]=$?
}

together() {
    both "$@"
    [ "${CODES[*]}" = "0 0" ] || { echo "ended with ${CODES[*]}: $*"; tail -n 20 "$WORK/0" "$WORK/1"; exit 1; }
}

data=(--data sample --limit 400)
"$PYTHON" -m ulfast poison --method lsp "${data[@]}" --out "$WORK/one" --quiet >"$WORK/0"
together poison --method lsp "${data[@]}" --out "$WORK/two" --quiet
diff -r "$WORK/one" "$WORK/two" && echo "poison: the same bytes"

# A rate at which the descent does not oscillate: an oscillation makes any rounding grow.
fit=(fit --data "$WORK/one" --steps 50 --lr 0.001 --quiet)
"$PYTHON" -m ulfast "${fit[@]}" --out "$WORK/one.safetensors" >"$WORK/0"
together "${fit[@]}" --out "$WORK/two.safetensors"
"$PYTHON" - "$WORK" <<'END'
import sys
from pathlib import Path
import ulfast
one, two = (ulfast.Basis.load(Path(sys.argv[1]) / f"{name}.safetensors") for name in ("one", "two"))
off = float((one.weights - two.weights).abs().max() / one.weights.abs().max())
assert off < 1e-4, off
print(f"fit: the same weights within {off:.1g} of the largest")
END

train=(attack --data "$WORK/one" --basis "$WORK/one.safetensors" --epochs 2 --device cpu --quiet)
"$PYTHON" -m ulfast "${train[@]}" --out "$WORK/run-one" >"$WORK/0"
together "${train[@]}" --out "$WORK/run-two"
"$PYTHON" - "$WORK" <<'END'
import json, sys
from pathlib import Path
one, two = (json.loads((Path(sys.argv[1]) / name / "result.json").read_text()) for name in ("run-one", "run-two"))
losses = [[row["train_loss"] for row in result["history"]] for result in (one, two)]
assert all(abs(a - b) < 0.01 * a for a, b in zip(*losses, strict=True)), losses
print("training: losses of", " and ".join(", ".join(f"{loss:.4f}" for loss in each) for each in losses))
END

# The cable is pulled in the middle of a long training.
(
    until [ -n "$(ls "$WORK/run-cut/checkpoints" 2>/dev/null)" ]; do sleep 0.2; done
    ip -n "$A" link set veth-a down
    date +%s >"$WORK/cut"
) &
both attack --data "$WORK/one" --method none --epochs 500 --device cpu --quiet --out "$WORK/run-cut"
seconds=$(($(date +%s) - $(cat "$WORK/cut")))
[ "${CODES[0]}" != 0 ] && [ "${CODES[1]}" != 0 ] || { echo "a machine went on without the other: ${CODES[*]}"; exit 1; }
for node in 0 1; do
    [ "$(grep -c '^ulfast: ' "$WORK/$node")" = 1 ] || { echo "not one line:"; cat "$WORK/$node"; exit 1; }
    grep '^ulfast: ' "$WORK/$node"
done
most=$((${ULFAST_RANK_TIMEOUT%.*} + 15))
[ "$seconds" -le "$most" ] || { echo "ended $seconds s after the cut, more than $most"; exit 1; }
echo "a cut cable: ended after $seconds s (ULFAST_RANK_TIMEOUT=$ULFAST_RANK_TIMEOUT)"
