"""The benchmark table: ours against the best of what PyTorch users write, interleaved in one run.

    python benchmarks/run.py [CASE ...] [--list] [--json FILE] [--compile] [--base REV]

Every round runs each contestant once, so that a slow moment affects all; medians are compared. "roof" is the larger of
bytes / measured copy bandwidth and flops / measured sgemm rate, both measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning pools take the cores from the next contestant
ROOT = Path(__file__).resolve().parent.parent
if "ulfast" not in sys.modules and os.environ.get("ULFAST_BENCH_TREE"):
    sys.path.insert(0, os.environ["ULFAST_BENCH_TREE"])

import torch  # noqa: E402
from cases import cases  # noqa: E402

from ulfast.profiling.measure import Timing, measure, roof  # noqa: E402
from ulfast.runtime import environment  # noqa: E402


def show(row: Timing) -> str:
    s, error = row.seconds, f"{row.error[0]:.1e}" if row.error else ""
    roof_share = f"{row.x_roof:.2f}" if row.x_roof is not None else ""
    return (
        f"| {row.case} | {1e3 * s[row.ours]:.2f} ({row.ours}) | {1e3 * s[row.best_peer]:.2f}"
        f" ({row.best_peer}) | {row.x_best:.1f} | {row.x_plain:.1f} | {roof_share} | {error} |"
    )


HEAD = "| case | ours, ms | best peer, ms | x best | x plain | of roof | error |\n|---|---|---|---|---|---|---|"


def compare(base: str, names: list[str]) -> int:
    """The same cases on another revision, built separately and run alternately, three times each."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", folder, base], check=True)
        try:
            subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)
            found: dict[str, dict[str, list[float]]] = {}
            for _ in range(3):
                for label, tree in (("now", str(ROOT)), (base, folder)):
                    out = Path(folder) / "result.json"
                    environ = {**os.environ, "ULFAST_BENCH_TREE": tree, "PYTHONPATH": tree}
                    subprocess.run(
                        [sys.executable, __file__, *names, "--json", str(out)],
                        env=environ,
                        check=True,
                        stdout=subprocess.DEVNULL,
                    )
                    for row in json.loads(out.read_text())["rows"]:
                        value = row["seconds"][row["ours"]]
                        found.setdefault(row["case"], {}).setdefault(label, []).append(value)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", folder], check=False)
    print(f"| case | now, ms | {base}, ms | {base} / now |\n|---|---|---|---|")
    for name, by in found.items():
        now, then = statistics.median(by["now"]), statistics.median(by.get(base, [float("nan")]))
        print(f"| {name} | {1e3 * now:.2f} | {1e3 * then:.2f} | {then / now:.2f} |")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="all of them if none is named")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--compile", action="store_true", help="also race torch.compile")
    parser.add_argument("--base", metavar="REV", help="compare with another revision instead")
    options = parser.parse_args()
    table = cases(options.compile)
    if options.list:
        print("\n".join(table))
        return 0
    unknown = [name for name in options.names if name not in table]
    if unknown:
        parser.error(f"no case {unknown[0]}; --list names them")
    if options.base:
        return compare(options.base, options.names)
    about, top = environment.describe(), roof()
    print(
        f"{about['cpu']}, {about['threads']} threads, level {about['cpu_level']}; torch {about['torch']},"
        f" ulfast {about['commit']}; copy {top['copy_bytes_per_s'] / 1e9:.1f} GB/s,"
        f" sgemm {top['sgemm_flops_per_s'] / 1e9:.0f} GFLOP/s\n\n{HEAD}"
    )
    rows = []
    for name in options.names or table:
        torch.manual_seed(0)
        row = measure(table[name](), top)
        rows.append({"key": name, **row.to_dict()})
        print(show(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "roof": top, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
