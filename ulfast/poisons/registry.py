"""The poisons by name. A new poison is a file here and a line below."""

from __future__ import annotations

from ..errors import InputError
from ..registry import nearest, resolve
from .adaptive import Adaptive
from .ar import AR
from .base import Poison
from .classwise import ClassWiseRandom, Regions, SampleWiseRandom
from .convolution import ConvolutionPoison
from .dc import DeepConfuse
from .em import AugmentedErrorMinimising, ErrorMinimising
from .file import FilePoison
from .gue import GameUnlearnable
from .hypo import Hypocritical
from .lsp import LSP
from .ntga import NeuralTangentGeneralisation
from .ops import OnePixelShortcut
from .pil import PerturbationInducedLinearisation
from .rem import RobustErrorMinimising, StableErrorMinimising
from .sep import ColourAndSpace, SelfEnsemble
from .tap import AugmentedAdversarial, TargetedAdversarial
from .tue import ClassWiseSeparability

POISONS: dict[str, Poison] = {
    "lsp": LSP(),
    "ops": OnePixelShortcut(),
    "ar": AR(),
    "regions-4": Regions(blocks=2),
    "regions-16": Regions(blocks=4),
    "cwrandom": ClassWiseRandom(),
    "swrandom": SampleWiseRandom(),
    "cuda": ConvolutionPoison(),
    "em": ErrorMinimising(),
    "em-classwise": ErrorMinimising(wise="class"),
    "aue": AugmentedErrorMinimising(),
    "tap": TargetedAdversarial(),
    "tap-untargeted": TargetedAdversarial(targeted=False),
    "aap": AugmentedAdversarial(),
    "adaptive": Adaptive(),
    "rem": RobustErrorMinimising(),
    "sem": StableErrorMinimising(),
    "hypo": Hypocritical(),
    "sep": SelfEnsemble(),
    "dune": ColourAndSpace(),
    "pil": PerturbationInducedLinearisation(),
    "tue": ClassWiseSeparability(),
    "dc": DeepConfuse(),
    "gue": GameUnlearnable(),
    "ntga": NeuralTangentGeneralisation(),
    "file": FilePoison(),
}


def get_poison(name: str) -> tuple[str, Poison]:
    """The registered name and the poison for a name or alias.

    Raises:
        InputError: the name is unknown; the message suggests the nearest.
    """
    key = resolve(name, POISONS)
    if key is None:
        raise InputError(f"unknown poison {name!r}{nearest(name, POISONS)}: known are {', '.join(POISONS)}")
    return key, POISONS[key]
