"""The networks: a two-convolution `cnn`, CIFAR ResNets of any width, and everything in timm."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..registry import nearest


class CNN(nn.Sequential):
    """Two 3 x 3 convolutions (32 and 64 channels), each pooled, and two linear layers; 62 to 72% on CIFAR-10 in
    minutes on a CPU.

    Pooling comes before the ReLU: the two commute, and a quarter of the values is left for the second.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        height, width, channels = image_shape
        side = [((s - 2) // 2 - 2) // 2 for s in (height, width)]
        if min(side) < 1:
            raise InputError(
                f"the cnn needs images of at least 10 px per side, got {width} x {height}: use resnet18-16"
            )
        # Above 64 px the features are pooled to a fixed grid, or the first linear layer would dwarf the network.
        grid = [min(s, 14) for s in side]
        shrink = nn.AdaptiveAvgPool2d((grid[0], grid[1])) if grid != side else nn.Identity()
        super().__init__(
            nn.Conv2d(channels, 32, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            shrink,
            nn.Flatten(),
            nn.Linear(64 * grid[0] * grid[1], 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution of every `stride`-th pixel, which are picked first.

    oneDNN's own way of skipping pixels writes past its workspace in the backward pass where there are fewer input
    channels than a vector has lanes (uxlfoundation/oneDNN#6035): wrong gradients, a hang, or a damaged heap.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.every, :: self.every])


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = (
                nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                if inputs >= 16
                else Pointwise(inputs, outputs, stride)
            )
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 (He et al., 2016) with the CIFAR stem, a 3 x 3 convolution; the ImageNet stem from 96 px on.

    Args:
        width: channels of the first stage (64 in the paper; 16 trains about ten times faster).
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], width: int = 64) -> None:
        channels = image_shape[2]
        if min(image_shape[:2]) >= 96:
            stem: list[nn.Module] = [
                nn.Conv2d(channels, width, 7, 2, 3, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            ]
        else:
            stem = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width << stage
            blocks += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


Builder = Callable[[int, tuple[int, int, int]], nn.Module]
# name -> (builder, one line). `resnet18-W` and `timm:NAME` are patterns, handled in `build_model`.
MODELS: dict[str, tuple[Builder, str]] = {
    "cnn": (CNN, "two convolutions; minutes on a CPU"),
    "resnet18": (ResNet18, "ResNet-18, CIFAR stem below 96 px"),
    "resnet18-16": (lambda c, s: ResNet18(c, s, 16), "ResNet-18 starting at 16 channels (any resnet18-W)"),
}
PATTERNS = "resnet18-WIDTH, timm:NAME"


def build_model(name: str, *, num_classes: int, image_shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """A randomly initialised network in channels_last memory format.

    Args:
        name: `cnn`, `resnet18`, `resnet18-W` (W channels in the first stage) or `timm:NAME`.
        num_classes: outputs.
        image_shape: (H, W, C).
        seed: draws the initialisation; the global generator is left as it was.

    Raises:
        InputError: unknown name, or timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _builder(name)(num_classes, image_shape)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _builder(name: str) -> Builder:
    low = name.lower()
    if low in MODELS:
        return MODELS[low][0]
    match = re.fullmatch(r"resnet18-([1-9]\d{0,3})", low)
    if match:
        width = int(match[1])
        return lambda classes, shape: ResNet18(classes, shape, width)
    if low.startswith("timm:"):
        return lambda classes, shape: timm_network(name[5:], shape, num_classes=classes)
    raise InputError(f"unknown model {name!r}{nearest(name, MODELS)}: known are {', '.join(MODELS)}, {PATTERNS}")


def timm_network(name: str, image_shape: tuple[int, int, int], **options: Any) -> nn.Module:
    """A network of timm for images (H, W, C); `name` may end in `.TAG`, which names pretrained weights.

    Raises:
        InputError: timm is not installed, or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name} needs timm ({error}): pip install 'ulfast[timm]'") from None
    if name.partition(".")[0] not in timm.list_models():
        close = nearest(name, timm.list_models())
        raise InputError(f"timm has no model {name!r}{close}: timm.list_models() names them all")
    options["in_chans"] = image_shape[2]
    try:
        return timm.create_model(name, img_size=image_shape[:2], **options)
    except TypeError:  # most convolutional networks take any size and no such argument
        return timm.create_model(name, **options)
