"""Tables for papers and pages: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io

from .collect import Table, Value


def cell(value: Value | None, plus_minus: str = "±") -> str:
    """Percent as "61.7" or "61.7 ± 0.4"; nothing where there is no value."""
    if value is None:
        return ""
    spread = f" {plus_minus} {100 * value.std:.1f}" if value.std is not None else ""
    return f"{100 * value.mean:.1f}{spread}"


def markdown(tables: list[Table]) -> str:
    """A heading and a table for each, then the verdicts."""
    parts = []
    for table in tables:
        lines = [f"**{table.title}**: clean test accuracy in %", ""]
        lines.append("| trained on | " + " | ".join(table.attacks) + " |")
        lines.append("|---|" + "---|" * len(table.attacks))
        for poison in table.poisons:
            lines.append(
                f"| {poison} | " + " | ".join(cell(table.values.get((poison, a))) for a in table.attacks) + " |"
            )
        lines += ["", *(f"- {v.poison}: {v.sentence()}" for v in table.verdicts())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


COLUMNS = (
    "data",
    "model",
    "recipe",
    "poison",
    "attack",
    "seed",
    "test_accuracy",
    "train_accuracy",
    "seconds_fit",
    "seconds_project",
    "seconds_train",
    "images_per_second",
    "commit",
    "folder",
)


def as_csv(tables: list[Table]) -> str:
    """One line per training."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        for value in table.values.values():
            for e in value.entries:
                attack = e.stage == "attack"
                seconds = e.result.seconds if attack else {}
                train = e.result.train_accuracy if attack else e.history[-1]["train_accuracy"]
                writer.writerow(
                    [
                        e.result.config["data"]["name"],
                        e.model,
                        e.result.recipe,
                        e.poison,
                        e.attack,
                        e.seed,
                        f"{e.accuracy:.4f}",
                        f"{train:.4f}",
                        *(f"{seconds[k]:.2f}" if k in seconds else "" for k in ("fit", "project", "train")),
                        f"{e.result.images_per_second:.0f}" if attack else "",
                        e.result.environment.get("commit") or "",
                        e.folder,
                    ]
                )
    return out.getvalue()


SPECIAL = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(c, c) for c in text)


def latex(tables: list[Table]) -> str:
    """`booktabs` tables."""
    parts = []
    for table in tables:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}: clean test accuracy in \%}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(table.attacks)}}}", r"\toprule"]
        lines.append(" & ".join(["trained on", *map(_tex, table.attacks)]) + r" \\")
        lines.append(r"\midrule")
        for poison in table.poisons:
            row = [cell(table.values.get((poison, a)), r"$\pm$") for a in table.attacks]
            lines.append(" & ".join([_tex(poison), *row]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
