"""`pil`: noise that is linearly separable by class and hides the image's own linear features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.reference import unit, whole_levels
from ..parameters import parameter
from .base import PRESETS, Perturb, Poison, Workplace

BLOCK = 1 << 22  # values processed at a time in the steps from random noise


@dataclass(frozen=True)
class PerturbationInducedLinearisation(Poison):
    """Sample-wise noise found by sign steps against a linear classifier of the clean images. It descends two terms,
    both linear in the image: the classifier should predict the class from the noise alone and learn nothing from the
    image without it. The poisoned image is the image minus the noise.

    The classifiers have no bias. In the preset "quick" it is one layer that starts at zero, which keeps its rows in the
    span of the images, fitted by plain SGD; the noise starts at zero. In the preset "published" it is two layers, the
    first as wide as the number of classes, with random initialisation, fitted by SGD with momentum 0.9 and a cosine
    schedule; the noise starts at random, uniformly in its ball.
    """

    summary = "sample-wise noise against a linear surrogate"
    source = "Perturbation-Induced Linearisation, ICLR 2026"
    aliases = ("perturbation-induced-linearization", "perturbation-induced-linearisation")

    preset: str = parameter("quick", "quick, or published: the authors' classifier and start", choices=PRESETS)
    eps: float = parameter(8 / 255, "L-infinity bound, pixels in [0, 1]", at_least=0)
    alpha: float | None = parameter(None, "size of a step (default eps / 10)", at_least=0)
    steps: int = parameter(30, "sign steps", at_least=0)
    share: float = parameter(0.9, "weight of the noise's term; the rest is the image's", at_least=0)
    epochs: int = parameter(30, "epochs of the linear fit", at_least=1)
    lr: float = parameter(0.003, "learning rate of the linear fit", at_least=0)
    batch_size: int | None = parameter(None, "batch size of the linear fit (default 128; published 512)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {
            **self.parameters(),
            "alpha": self.eps / 10 if self.alpha is None else self.alpha,
            "batch_size": self.batch_size or (512 if self.preset == "published" else 128),
        }

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.share > 1:
            raise InputError(f"pil: share must be between 0 and 1, got {self.share:g}")
        values, published = self.resolved(dataset), self.preset == "published"
        fit = self._fit_two if published else self._fit_one
        weight, accuracy = fit(dataset, seed, work, values["batch_size"])
        work.facts |= {"train_accuracy": accuracy}
        # Always fitted on the CPU: a classifier that differs in the last bit flips signs of the steps.
        weight, alpha = work.place(weight), values["alpha"]

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            clean, y = work.place(images), work.place(labels)
            if published:
                out = self._from_random(first, clean, y, weight, alpha, seed)
            else:
                out = ops.perturb_linear(
                    clean, y, weight, steps=self.steps, alpha=alpha, eps=self.eps, share=self.share
                )
            return out.cpu().numpy()

        return perturb

    def _fit_one(self, dataset: Dataset, seed: int, work: Workplace, size: int) -> tuple[Tensor, float]:
        """One layer, (c, d) float32, and its accuracy in the last pass."""
        images, labels = as_tensor(dataset.images), as_tensor(dataset.labels)
        weight = torch.zeros(dataset.num_classes, math.prod(dataset.image_shape))
        generator = torch.Generator().manual_seed(seed)
        correct = 0.0
        for epoch in range(self.epochs):
            correct, loss = 0.0, 0.0
            for index in torch.randperm(len(labels), generator=generator).split(size):
                state = ops.softmax_regression_step(images, labels, weight, self.lr, index=index)
                loss, correct = loss + float(state[0]) * len(index), correct + float(state[1])
            self._tell(work, epoch, loss / len(labels), correct / len(labels))
        return weight, correct / len(labels)

    def _fit_two(self, dataset: Dataset, seed: int, work: Workplace, size: int) -> tuple[Tensor, float]:
        """The product of two layers, (c, d) float32, and its accuracy in the last pass."""
        images, labels = as_tensor(dataset.images), as_tensor(dataset.labels)
        c, d = dataset.num_classes, math.prod(dataset.image_shape)
        generator = torch.Generator().manual_seed(seed)
        # Uniform within 1 / sqrt(inputs), torch's initialisation of linear layers.
        layers = [
            ((torch.rand(c, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)).requires_grad_()
            for inputs in (d, c)
        ]
        optimizer = torch.optim.SGD(layers, lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        correct = 0.0
        for epoch in range(self.epochs):
            correct, total = 0.0, 0.0
            for index in torch.randperm(len(labels), generator=generator).split(size):
                y = labels[index]
                logits = unit(images[index]).reshape(-1, d) @ layers[0].T @ layers[1].T
                loss = nn.functional.cross_entropy(logits, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(y)
                correct += float((logits.argmax(1) == y).sum())
            schedule.step()
            self._tell(work, epoch, total / len(labels), correct / len(labels))
        return (layers[1] @ layers[0]).detach(), correct / len(labels)

    def _tell(self, work: Workplace, epoch: int, loss: float, accuracy: float) -> None:
        """Checks and reports a pass of the fit.

        Raises:
            InputError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise InputError(f"pil: the linear fit diverged at lr {self.lr:g}: give a smaller --set lr=")
        work.tell("linear fit", epoch + 1, self.epochs, loss=loss, accuracy=accuracy)

    def _from_random(
        self, first: int, images: Tensor, labels: Tensor, weight: Tensor, alpha: float, seed: int
    ) -> Tensor:
        """As `ops.perturb_linear`, starting from noise drawn from (seed, image number) alone.

        It uses float64, in which rounding flips no sign, so that an image does not depend on the others in its batch.
        """
        n, (c, d), weight = len(images), weight.shape, weight.double()
        most, out = whole_levels(self.eps), torch.empty_like(images)
        step = max(1, BLOCK // d)
        for begin in range(0, n, step):
            block, y = images[begin : begin + step], labels[begin : begin + step]
            stream = ops.philox.STREAM_SURROGATE
            u = ops.philox_uniform(seed, stream, first + begin, len(block), d, device=images.device)
            noise = (u.double() * 2 - 1) * self.eps
            of_images = unit(block).reshape(-1, d).double() @ weight.T
            onehot = nn.functional.one_hot(y, c)
            for _ in range(self.steps):
                own = noise @ weight.T
                residual = self.share * (own.softmax(1) - onehot)
                residual -= (1 - self.share) * ((of_images - own).softmax(1) - 1 / c)
                noise.sub_((residual @ weight).sign_(), alpha=alpha).clamp_(-self.eps, self.eps)
            levels = (255 * noise).round().clamp(-most, most)
            out[begin : begin + step] = (block.reshape(-1, d) - levels).clamp(0, 255).view_as(block)
        return out
