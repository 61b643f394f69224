"""Filters against poisons that are filters themselves: `rsk`, `ssk`, `lowpass`, `coin` and `spectral-noise` are redrawn
in every pass; `median`, `dilate` and `erode` change the stored images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..data.mapped import ImageMap
from ..errors import InputError
from ..parameters import parameter
from ..projection.filters import LowPass, PixelShift, RandomSharpening, SpectralNoise, class_spectra
from .base import Attack, Context, Plan
from .squeeze import Squeeze

RSK = "Kim and Sandoval-Segura, Learning from Convolution-based Unlearnable Datasets, 2024 (arXiv 2411.01742)"


@dataclass(frozen=True)
class Sharpening(Attack):
    """Sharpens every training image by its own 3 x 3 kernel, redrawn in every pass. `rsk+lowpass` is the published
    pair.
    """

    summary = "random sharpening kernels"
    source = RSK
    aliases: ClassVar[tuple[str, ...]] = ("sharpen",)

    centre: float = parameter(2.5, "mean of the kernel's centre; 1 does nothing", at_least=0)
    deviation: float = parameter(0.1, "of each of the kernel's weights", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        plan.draw(RandomSharpening(self.centre, self.deviation))


@dataclass(frozen=True)
class FixedSharpening(Sharpening):
    """`rsk` without randomness."""

    summary = "one sharpening kernel"
    aliases: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[dict[str, str]] = {"rsk": "both sharpen: choose one"}

    deviation: float = parameter(0.0, "of each of the kernel's weights", at_least=0)


@dataclass(frozen=True)
class LowPassFilter(Attack):
    """Keeps the lowest frequencies of every training image."""

    summary = "low frequencies only (DCT)"
    source = RSK
    aliases = ("frequency-filter",)

    keep: float = parameter(0.3, "share of the frequencies to keep along each axis", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        sides = plan.train.image_shape[:2]
        if not (self.keep <= 1 and int(self.keep * min(sides)) >= 1):
            raise InputError(
                f"lowpass: keep must leave at least one of {min(sides)} frequencies and be at most 1, got {self.keep:g}"
            )
        plan.draw(LowPass(self.keep))


@dataclass(frozen=True)
class Corrupting(Attack):
    """Reads every pixel at a random place nearby, redrawn in every pass, before the crop; the published program does it
    after the crop.
    """

    summary = "every pixel read at a random place nearby"
    source = "Wang et al., Corrupting Convolution-based Unlearnable Datasets (COIN), AAAI 2025"

    reach: float = parameter(2.0, "largest step along each axis in pixels", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        if self.reach > min(plan.train.image_shape[:2]):
            raise InputError(f"coin: reach must be at most the image's shorter side, got {self.reach:g}")
        plan.draw(PixelShift(self.reach))


@dataclass(frozen=True)
class SpectrumNoise(Attack):
    """Filters every training image by a random mixture of the differences between the classes' spectra, redrawn in
    every pass.

    Fitted in one pass over the images, without clean images.
    """

    summary = "filters mixed from the classes' spectra"
    source = "ulfast, docs/guide/attack.md"

    spectrum_scale: float = parameter(1.0, "deviation of the mixture's weights", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        with plan.timed("fit"):
            spectra = class_spectra(plan.train, progress=context.progress)
        plan.draw(SpectralNoise(spectra - spectra.mean(0), self.spectrum_scale))


@dataclass(frozen=True)
class RankFilter(Squeeze):
    """Base of the three rank filters: one value, by rank, of those in a square around a pixel, per channel."""

    kind: ClassVar[str] = ""

    window: int = parameter(3, "side of the square in pixels, odd", at_least=1)

    def image_map(self, channels: int) -> ImageMap:
        from PIL import Image, ImageFilter

        if self.window % 2 == 0:
            raise InputError(f"window must be odd, got {self.window}")
        rank = getattr(ImageFilter, self.kind)(self.window)

        def filtered(images: np.ndarray) -> np.ndarray:
            out = np.empty_like(images)
            for image, result in zip(images, out, strict=True):
                picture = Image.fromarray(image[..., 0] if channels == 1 else image)
                result[...] = np.asarray(picture.filter(rank)).reshape(result.shape)
            return out

        return filtered


@dataclass(frozen=True)
class Median(RankFilter):
    """The median of a square around every pixel."""

    kind = "MedianFilter"
    summary = "median filter"
    source = "Tukey, Exploratory Data Analysis, 1977"


@dataclass(frozen=True)
class Dilate(RankFilter):
    """The largest value of a square around every pixel."""

    kind = "MaxFilter"
    summary = "morphological dilation"
    source = "Hapuarachchi et al., Nonlinear Transformations Against Unlearnable Datasets, 2024 (arXiv 2406.02883)"


@dataclass(frozen=True)
class Erode(RankFilter):
    """The smallest value of a square around every pixel."""

    kind = "MinFilter"
    summary = "morphological erosion"
    source = Dilate.source
