"""The values that the shell completes: the known names for options and arguments.

The registries that hold them import torch, which is too slow for completion, so the names are repeated here; a test
compares the two.
"""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

NAMES = {
    "poisons": (
        *("lsp", "ops", "ar", "regions-4", "regions-16", "cwrandom", "swrandom", "cuda", "em", "em-classwise", "aue"),
        *(
            "tap",
            "tap-untargeted",
            "aap",
            "adaptive",
            "rem",
            "sem",
            "hypo",
            "sep",
            "dune",
            "pil",
            "tue",
            "dc",
            "gue",
            "ntga",
            "file",
        ),
    ),
    "attacks": (
        *("none", "orthogonal", "orthogonal-classwise", "orthogonal-patch", "orthogonal-full", "mean-noise"),
        *(
            "class-centring",
            "deconvolve",
            "linear-noise",
            "sdaan",
            "d-vae",
            "avatar",
            "rsk",
            "ssk",
            "lowpass",
            "coin",
            "spectral-noise",
            "iss-gray",
        ),
        *(
            "iss-jpeg",
            "iss-bdr",
            "gaussian",
            "median",
            "dilate",
            "erode",
            "cutout",
            "mixup",
            "cutmix",
            "adversarial",
            "ueraser",
            "early-stop",
        ),
        *("finetune", "linear-probe", "dfr", "auto"),
    ),
    "models": ("cnn", "resnet18", "resnet18-16"),
    "recipes": ("quick", "quick-noflip", "fast", "paper", "paper-plain", "paper-dfr", "imagenet"),
    "data": ("sample", "cifar10", "cifar100", "svhn"),
    "formats": (
        *("ulfast", "cifar-python", "cifar-binary", "svhn", "idx", "stl10", "npz", "npy-pair", "pickle", "beton"),
        *("parquet", "wds", "imagefolder"),
    ),
    "layouts": ("png-index", "imagefolder", "npz", "wds", "parquet", "beton", "perturbation-pt"),
    "imports": (
        *("png-index", "perturbation-pt", "images-pt", "int8-pickle", "lsp-npy", "ntga-npy", "pairs-pickle"),
        *("images-npz", "npy"),
    ),
    "devices": ("auto", "cpu", "cuda"),
}
FILES = ("data", "grids")  # kinds for which a path is also accepted
JOINED = ("attacks",)  # kinds whose names can be joined with +


class Known(click.types.StringParamType):
    """Any text, completed from one of the kinds above or the shipped "grids"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, plus, last = incomplete.rpartition("+") if self.kind in JOINED else ("", "", incomplete)
        found = [CompletionItem(f"{before}{plus}{name}") for name in names(self.kind) if name.startswith(last)]
        if self.kind in FILES and not found:  # the shell's own path completion cannot be combined with names
            return [CompletionItem(incomplete, type="file")]
        return found


def names(kind: str) -> tuple[str, ...]:
    """The names of a kind."""
    if kind == "grids":
        return tuple(sorted(path.stem for path in (Path(__file__).parents[1] / "grids").glob("*.yaml")))
    return NAMES[kind]
