"""Linear separability by the paper's protocol: LBFGS, 500 steps of 20 evaluations, full batch
(docs/research/findings.md).

    python experiments/separability.py [--data cifar10] [--images 10000] [--of clean lsp ar ...] [--json FILE]

Each result is written to FILE when it is ready; results already in FILE are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import ulfast
from ulfast.analysis.separability import Separability, separability
from ulfast.poisons import perturbation
from ulfast.runtime import environment

ALL = ("clean", "lsp", "ops", "regions-16", "cwrandom", "ar", "swrandom")


def result(of: str, data: ulfast.Dataset, steps: int) -> Separability:
    """The images themselves, or what a poison adds to them with seed 0."""
    inputs = torch.from_numpy(data.images) if of == "clean" else perturbation(data, ulfast.poison(data, of))

    def tell(stage: str, step: int, total: int, **numbers: float) -> None:
        if step % 25 == 0:
            print(f"{of}: step {step}, loss {numbers['loss']:.4f}, accuracy {numbers['accuracy']:.4f}", flush=True)

    return separability(inputs, torch.from_numpy(data.labels), steps=steps, progress=tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--of", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = ulfast.load_dataset(options.data, limit=options.images)
    about = {"data": options.data, "images": len(data), "steps": options.steps, "seed": 0}
    kept = {**about, "environment": environment.describe(), "results": {}}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        if {key: kept[key] for key in about} != about:
            raise SystemExit(f"{options.json} has other settings: give another file")
    for of in options.of:
        if of not in kept["results"]:
            start = time.perf_counter()
            found = result(of, data, options.steps)
            curve = found.curve
            after = {str(n): round(curve[min(n, len(curve)) - 1]["accuracy"], 4) for n in (500, 2000, 10000)}
            kept["results"][of] = {
                "accuracy": found.accuracy,
                "loss": found.loss,
                "steps": found.steps,
                "converged": found.converged,
                "evaluations": len(curve),
                "accuracy_after": after,
                "seconds": round(time.perf_counter() - start, 1),
            }
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(kept, indent=2) + "\n")
        row = kept["results"][of]
        ended = "converged" if row["converged"] else "stopped"
        print(f"| `{of}` | {100 * row['accuracy']:.1f} % | {row['evaluations']:,} ({ended}) | {row['loss']:.3g} |")


if __name__ == "__main__":
    main()
