"""Tables of test accuracies: grids and single attacks."""

from __future__ import annotations

from typing import Any

from .lines import machine, machines, rows


def grid(
    result: dict[str, Any],
    poisons: Any = None,
    attacks: Any = None,
    models: Any = None,
    short: Any = None,
    regret: Any = None,
) -> list[str]:
    """Poisons x attacks of a grid, and how it was made; `short=1` leaves that out. `regret=auto` adds, for one model,
    how far that attack is below the best of all.
    """
    asked = result["grid"]
    poisons = poisons or [poison["label"] for poison in asked["poisons"]]
    attacks = attacks or [attack["label"] for attack in asked["attacks"]]
    models = models or asked["models"]
    found = {(row["poison"], row["attack"], row["model"]): row for row in result["rows"]}

    def accuracy(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
        return f"{100 * row['mean']:.1f}{spread}"

    columns = [(model, attack) for model in models for attack in attacks]
    named = [f"`{model}`: {attack}" if len(models) > 1 else attack for model, attack in columns]
    body = [
        [poison, *(accuracy(found.get((poison, attack, model))) for model, attack in columns)] for poison in poisons
    ]
    if regret:
        (chosen,), (model,) = regret, models
        named.append(f"best less {chosen}")
        for poison, line in zip(poisons, body, strict=True):
            cells = [found.get((poison, attack, model)) for attack in attacks]
            best = max(row["mean"] for row in cells if row is not None)
            line.append(f"{100 * (best - found[poison, chosen, model]['mean']):.1f}")
    table = rows(["trained on", *named], body)
    if short:
        return table
    images = f"{asked['limit']:,} images of {asked['data']}" if asked["limit"] else f"all images of {asked['data']}"
    images += f" at {asked['resize']} px" if asked.get("resize") else ""
    model = f"`{models[0]}`, " if len(models) == 1 else ""
    epochs = f", {asked['epochs']} epochs" if asked.get("epochs") else ""
    seeds = asked["seeds"]
    count = "one seed" if len(seeds) == 1 else f"mean ± standard deviation of {len(seeds)} seeds"
    minutes = sum(row["seconds"] * len(row["seeds"]) for row in result["rows"]) / 60
    cells = sum(len(row["seeds"]) for row in result["rows"])
    made = machines(result.get("environments", []))
    return [
        *table,
        "",
        f"`ulfast reproduce {asked['name']}`: {model}recipe `{asked['recipe']}`{epochs}, {images}, {count}; clean test "
        f"accuracy in %. {cells} trainings of {minutes / cells:.1f} minutes on average{f'; {made}' if made else ''}.",
    ]


def helps(result: dict[str, Any], model: Any, least: Any = ("3",)) -> list[str]:
    """What each attack of a grid costs clean images, and which poisons it changes by at least so many points."""
    found = {(row["poison"], row["attack"]): 100 * row["mean"] for row in result["rows"] if row["model"] == model[0]}
    names = [poison["label"] for poison in result["grid"]["poisons"] if poison["label"] != "clean"]

    def listed(attack: str, sign: int) -> str:
        gains = {name: found[name, attack] - found[name, "none"] for name in names if (name, attack) in found}
        chosen = sorted((-sign * gain, name) for name, gain in gains.items() if sign * gain >= float(least[0]))
        return ", ".join(f"{name} {gains[name]:+.0f}" for _, name in chosen)

    body = [
        [attack, f"{found['clean', attack] - found['clean', 'none']:+.1f}", listed(attack, 1), listed(attack, -1)]
        for attack in (attack["label"] for attack in result["grid"]["attacks"])
        if attack != "none" and ("clean", attack) in found
    ]
    head = [f"`{model[0]}`", "clean images", f"helps by {least[0]} points or more", "harms by as many"]
    return rows(head, body)


def attack(result: dict[str, Any], short: Any = None) -> list[str]:
    """One attack with its baselines; `short=1` leaves out how it was made."""
    head = ["trained on", "test accuracy", "train accuracy"]
    names = {"clean": "clean images", "poisoned": f"poisoned images ({result['poison']})"}
    body = [
        [name, f"{100 * result['baselines'][key]:.1f} %", f"{100 * result['baseline_train'][key]:.1f} %"]
        for key, name in names.items()
    ]
    last = [f"{100 * result[key]:.1f} %" for key in ("test_accuracy", "train_accuracy")]
    body.append([f"poisoned images, {result['method']}", *last])
    if short:
        return rows(head, body)
    about = (
        f"`{result['model']}`, recipe `{result['recipe']}`, seed {result['seed']}; {machine(result['environment'])}."
    )
    return [*rows(head, body), "", about]
