"""The attacks by name. A new attack is a file here and a line below."""

from __future__ import annotations

from ..errors import InputError
from ..registry import nearest, resolve
from .adversarial import AdversarialTraining, UEraser
from .auto import Auto
from .base import IMAGES, Attack
from .centring import ClassCentring
from .d_vae import DisentanglingVAE
from .deconvolve import Deconvolve
from .diffusion import DiffusionPurification
from .filters import (
    Corrupting,
    Dilate,
    Erode,
    FixedSharpening,
    LowPassFilter,
    Median,
    Sharpening,
    SpectrumNoise,
)
from .full import OrthogonalFull
from .hidden_noise import LinearNoise, StrongerAugmentation
from .mix import CutMix, Cutout, MixUp
from .noise import ClassMeanNoise
from .none import NoAttack
from .orthogonal import ClassWiseProjection, OrthogonalProjection
from .patch import OrthogonalPatch
from .squeeze import JPEG, BitDepth, GaussianBlur, Gray
from .trusted import DeepFeatureReweighting, EarlyStop, FineTune, LinearProbe

ATTACKS: dict[str, Attack] = {
    "none": NoAttack(),
    "orthogonal": OrthogonalProjection(),
    "orthogonal-classwise": ClassWiseProjection(),
    "orthogonal-patch": OrthogonalPatch(),
    "orthogonal-full": OrthogonalFull(),
    "mean-noise": ClassMeanNoise(),
    "class-centring": ClassCentring(),
    "deconvolve": Deconvolve(),
    "linear-noise": LinearNoise(),
    "sdaan": StrongerAugmentation(),
    "d-vae": DisentanglingVAE(),
    "avatar": DiffusionPurification(),
    "rsk": Sharpening(),
    "ssk": FixedSharpening(),
    "lowpass": LowPassFilter(),
    "coin": Corrupting(),
    "spectral-noise": SpectrumNoise(),
    "iss-gray": Gray(),
    "iss-jpeg": JPEG(),
    "iss-bdr": BitDepth(),
    "gaussian": GaussianBlur(),
    "median": Median(),
    "dilate": Dilate(),
    "erode": Erode(),
    "cutout": Cutout(),
    "mixup": MixUp(),
    "cutmix": CutMix(),
    "adversarial": AdversarialTraining(),
    "ueraser": UEraser(),
    "early-stop": EarlyStop(),
    "finetune": FineTune(),
    "linear-probe": LinearProbe(),
    "dfr": DeepFeatureReweighting(),
    "auto": Auto(),
}


def get_attack(name: str) -> tuple[str, list[Attack]]:
    """The canonical name and the attacks for a name, an alias, or several combined with ``+``.

    They are ordered by stage: on stored images, on the projection, on batches, on the trained network.

    Raises:
        InputError: a name is unknown (the message suggests the nearest), or the combination makes no sense.
    """
    keys: list[str] = []
    for part in name.split("+"):
        key = resolve(part.strip(), ATTACKS)
        if key is None:
            raise InputError(f"unknown attack {part!r}{nearest(part, ATTACKS)}: known are {', '.join(ATTACKS)}")
        if key in keys:
            raise InputError(f"attack {name!r} names {key} twice: name it once")
        keys.append(key)
    stages = [ATTACKS[key].stage for key in keys]
    for late, key in enumerate(keys):
        before = [other for other, stage in zip(keys[:late], stages, strict=False) if stage > IMAGES]
        if stages[late] == IMAGES and before:
            rest = "+".join([key, *(k for k in keys if k != key)])
            raise InputError(
                f"attack {name!r}: {key} changes stored bytes, which a projected or augmented image no longer is:"
                f" write {rest}"
            )
        for other in keys:
            why = ATTACKS[key].excludes.get(other) or ATTACKS[other].excludes.get(key)
            if why:
                raise InputError(f"attack {name!r}: {key} and {other} {why}")
    alone = [key for key in keys if ATTACKS[key].alone]
    if len(keys) > 1 and alone:
        raise InputError(f"attack {name!r} combines `{alone[0]}` with others: leave it out")
    keys.sort(key=lambda key: ATTACKS[key].stage)  # stable: the order within a stage is the user's
    return "+".join(keys), [ATTACKS[key] for key in keys]
