"""The tables of README.md and docs/: what stands in a result file, as lines of Markdown. results.py puts them there."""

from __future__ import annotations

from collections.abc import Callable

from . import findings, scale, speed, trainings

KINDS: dict[str, Callable[..., list[str]]] = {
    "grid": trainings.grid,
    "helps": trainings.helps,
    "attack": trainings.attack,
    "speed": speed.speed,
    "loaders": speed.loaders,
    "gpu": speed.gpu,
    "gpu-train": speed.gpu_train,
    "separability": findings.separability,
    "imagenet": scale.imagenet,
    "deconvolution": findings.deconvolution,
    "centring": findings.centring,
    "unlearned": findings.unlearned,
    "looks": scale.looks,
    "campaign": scale.campaign,
    "compat": scale.compat,
    "photographs": scale.photographs,
    "after-jpeg": scale.after_jpeg,
    "full-size": scale.full_size,
    "diagnosis": findings.diagnosis,
    "looked": findings.looked,
    "detectors": findings.detectors,
    "rules": findings.rules,
    "plan": scale.plan,
}
