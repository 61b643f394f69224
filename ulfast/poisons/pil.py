"""`pil`: noise that is linearly separable by class and hides the image's own linear features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..errors import InputError
from ..parameters import parameter
from .base import Perturb, Poison, Workplace


@dataclass(frozen=True)
class PerturbationInducedLinearisation(Poison):
    """Sample-wise noise found by sign steps against a linear classifier of the clean images. It goes down two terms,
    both linear in the image: the classifier should know the class from the noise alone, and nothing of the image
    without it. What is published is image minus noise.

    The classifier has no bias and starts at zero, which keeps its rows in the span of the images.
    """

    summary = "sample-wise noise against a linear surrogate"
    source = "Perturbation-Induced Linearisation, ICLR 2026"
    aliases = ("perturbation-induced-linearization", "perturbation-induced-linearisation")

    eps: float = parameter(8 / 255, "L-infinity bound, pixels in [0, 1]", at_least=0)
    alpha: float | None = parameter(None, "size of a step (default eps / 10)", at_least=0)
    steps: int = parameter(30, "sign steps", at_least=0)
    share: float = parameter(0.9, "weight of the noise's own term, the rest is the image's", at_least=0)
    epochs: int = parameter(30, "passes of the linear fit", at_least=1)
    lr: float = parameter(0.003, "learning rate of the linear fit", at_least=0)
    batch_size: int = parameter(128, "of the linear fit", at_least=1)

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.share > 1:
            raise InputError(f"pil: share must be between 0 and 1, got {self.share:g}")
        weight, accuracy = self.fit(dataset, seed, work)
        work.facts |= {"train_accuracy": accuracy}
        alpha = self.eps / 10 if self.alpha is None else self.alpha

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            return ops.perturb_linear(
                as_tensor(images),
                torch.from_numpy(labels),
                weight,
                steps=self.steps,
                alpha=alpha,
                eps=self.eps,
                share=self.share,
            ).numpy()

        return perturb

    def fit(self, dataset: Dataset, seed: int, work: Workplace) -> tuple[Tensor, float]:
        """The classifier, (c, d) float32, and its accuracy in the last pass."""
        images, labels = as_tensor(dataset.images), as_tensor(dataset.labels)
        weight = torch.zeros(dataset.num_classes, math.prod(dataset.image_shape))
        generator = torch.Generator().manual_seed(seed)
        correct = 0.0
        for epoch in range(self.epochs):
            correct, loss = 0.0, 0.0
            for index in torch.randperm(len(labels), generator=generator).split(self.batch_size):
                state = ops.softmax_regression_step(images, labels, weight, self.lr, index=index)
                loss, correct = loss + float(state[0]) * len(index), correct + float(state[1])
            if not math.isfinite(loss):
                raise InputError(f"pil: the linear fit diverged at lr {self.lr:g}: give a smaller --set lr=")
            work.tell("linear fit", epoch + 1, self.epochs, loss=loss / len(labels), accuracy=correct / len(labels))
        return weight, correct / len(labels)
