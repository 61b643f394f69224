"""`iss-gray`, `iss-jpeg`, `iss-bdr` and `gaussian`: discard the detail that holds small perturbations.

All of them change the stored images once, before training; test images stay as they are unless `squeeze_test` is set,
as in the published experiments.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..data.mapped import ImageMap, map_images
from ..errors import InputError
from ..parameters import parameter
from .base import IMAGES, Attack, Context, Plan

ISS = "Liu, Zhao and Larson, Image Shortcut Squeezing, ICML 2023"
# Rec. 601 luma in units of 2^-16, rounded as in image libraries.
LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class Squeeze(Attack):
    """Base of the four. `image_map` returns the function on (b, H, W, C) uint8."""

    stage: ClassVar[int] = IMAGES

    squeeze_test: bool = parameter(False, "change the test images too")

    def image_map(self, channels: int) -> ImageMap:
        raise TypeError(f"{type(self).__name__} does not say what to do")

    def apply(self, plan: Plan, context: Context) -> None:
        with plan.timed("project"):
            function = self.image_map(plan.train.image_shape[2])
            plan.train = map_images(plan.train, function, context.progress)
            if self.squeeze_test:
                plan.test = map_images(plan.test, function)


@dataclass(frozen=True)
class Gray(Squeeze):
    """Replaces every channel by the luma (Rec. 601)."""

    summary = "image shortcut squeezing: grayscale"
    source = ISS
    aliases = ("gray", "grayscale", "iss-g")

    def image_map(self, channels: int) -> ImageMap:
        def gray(images: np.ndarray) -> np.ndarray:
            if images.shape[3] == 1:
                return images
            luma = (images.astype(np.uint32) @ np.array(LUMA, np.uint32) + (1 << 15)) >> 16
            return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=3)

        return gray


@dataclass(frozen=True)
class JPEG(Squeeze):
    """Compress and decompress. The bytes are those of Pillow's `save(..., "JPEG", quality=...)` and `open`, and also
    OpenCV's: the exact integer DCT, with colour at half the resolution.
    """

    summary = "image shortcut squeezing: JPEG"
    source = ISS
    aliases = ("jpeg", "iss-j")

    quality: int = parameter(10, "JPEG quality, 1 to 100; lower removes more", at_least=1)

    def image_map(self, channels: int) -> ImageMap:
        from PIL import Image

        try:
            from simplejpeg import decode_jpeg
        except ImportError:
            decode_jpeg = None

        if self.quality > 100:
            raise InputError(f"iss-jpeg: quality must be at most 100, got {self.quality}")
        space = "GRAY" if channels == 1 else "RGB"

        # Pillow encodes, as simplejpeg uses the approximate DCT below quality 96. Both decode to the same bytes;
        # simplejpeg, if installed, takes a fraction of the time.
        def jpeg(images: np.ndarray) -> np.ndarray:
            out = np.empty_like(images)
            for image, squeezed in zip(images, out, strict=True):
                stream = io.BytesIO()
                Image.fromarray(image[..., 0] if channels == 1 else image).save(stream, "JPEG", quality=self.quality)
                if decode_jpeg is not None:
                    squeezed[...] = decode_jpeg(stream.getbuffer(), space)
                else:
                    squeezed[...] = np.asarray(Image.open(stream)).reshape(squeezed.shape)
            return out

        return jpeg


@dataclass(frozen=True)
class BitDepth(Squeeze):
    """Keep the highest bits of every value."""

    summary = "image shortcut squeezing: bit depth reduction"
    source = ISS
    aliases = ("bdr", "iss-b")

    bits: int = parameter(2, "bits kept of each value, 1 to 8", at_least=1)

    def image_map(self, channels: int) -> ImageMap:
        if self.bits > 8:
            raise InputError(f"iss-bdr: bits must be at most 8, got {self.bits}")
        mask = np.uint8(0xFF & ~((1 << (8 - self.bits)) - 1))
        return lambda images: images & mask


@dataclass(frozen=True)
class GaussianBlur(Squeeze):
    """Gaussian blur with mirrored borders. The published sigma of 0.1 at 3 x 3 changes no byte; 1.0 is our default."""

    summary = "Gaussian blur"
    source = ISS + " (low-pass filter)"
    aliases = ("blur", "gaussian-blur")

    sigma: float = parameter(1.0, "standard deviation of the blur, in pixels", at_least=0)

    def image_map(self, channels: int) -> ImageMap:
        from scipy.ndimage import gaussian_filter

        def blur(images: np.ndarray) -> np.ndarray:
            soft = gaussian_filter(images.astype(np.float32), (0, self.sigma, self.sigma, 0), mode="mirror")
            return np.rint(soft).astype(np.uint8)

        return blur
