"""Writes the tables of README.md and docs/ (tables/ has one function for each kind) from the files in
benchmarks/results.

    python tools/results.py                     every table whose file is there
    python tools/results.py --keep FOLDER ...   first copies the results of `ulfast reproduce` and `ulfast attack`

A table is between `<!-- table: KIND NAME [what=a,b ...] -->` and `<!-- /table -->`. Where its file is missing, what
stands there stays: a table of an earlier commit whose file was not kept, which says so. `--keep` names the copy after
the grid (benchmarks/results/grids/GRID.json) or after the run's folder (benchmarks/results/attacks/FOLDER.json).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from tables import KINDS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = {kind: {"grid": "grids", "helps": "grids", "attack": "attacks"}.get(kind, "") for kind in KINDS}
BLOCK = re.compile(r"(<!-- table: (\S+) (\S+)((?: \w+=[^ ]+)*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pages() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str, results: Path = RESULTS) -> str:
    """A page with every table regenerated whose file is in `results`."""

    def table(found: re.Match[str]) -> str:
        start, kind, name, options, end = found.groups()
        path = results / FOLDERS[kind] / f"{name}.json"
        if not path.is_file():
            return found[0]
        wanted = {key: value.split(",") for key, value in (word.split("=") for word in options.split())}
        lines = KINDS[kind](json.loads(path.read_text(encoding="utf-8")), **wanted)
        return "\n".join([start, *lines, "", end])

    return BLOCK.sub(table, text)


def keep(folder: Path, results: Path = RESULTS) -> Path:
    """Copies the numbers of a finished grid or attack, without paths of this machine."""
    from ulfast.attacks import AttackResult
    from ulfast.grids import GridResult

    if (folder / "grid.json").is_file():
        found = GridResult.load(folder)
        if found.missing:
            raise SystemExit(f"{folder} is not finished: {len(found.missing)} trainings have no result")
        content = found.to_dict()
        kept = {key: content[key] for key in ("grid", "rows", "environments")}
        for row in kept["rows"]:
            del row["folders"]
        environments = kept["environments"]
        target = results / "grids" / f"{found.grid.name}.json"
    else:
        one = AttackResult.load(folder)
        names = ("method", "poison", "model", "recipe", "seed", "train_accuracy", "test_accuracy", "baselines")
        kept = {name: getattr(one, name) for name in (*names, "seconds", "environment")}
        kept["baseline_train"] = {key: rows_[-1]["train_accuracy"] for key, rows_ in one.baseline_history.items()}
        environments = [kept["environment"]]
        target = results / "attacks" / f"{folder.name}.json"
    for about in environments:
        about.pop("platform", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="+", type=Path, default=[], metavar="FOLDER")
    for folder in parser.parse_args().keep:
        print(f"kept {keep(folder).relative_to(ROOT)}")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        made = rendered(text)
        if made != text:
            page.write_text(made, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
