"""What is removed from images: directions of a linear model or of patches, and the noise that hides the rest."""

from .basis import Basis
from .fit import fit_basis
from .layer import OrthogonalProjection
from .mean_noise import MeanNoise, fit_mean_noise, noise_scale
from .other_fits import partial_rows
from .patches import PatchBasis, PatchProjection, fit_patches

__all__ = [
    "Basis",
    "MeanNoise",
    "OrthogonalProjection",
    "PatchBasis",
    "PatchProjection",
    "fit_basis",
    "fit_mean_noise",
    "fit_patches",
    "noise_scale",
    "partial_rows",
]
