"""One training step: forward, backward, optimizer. It runs eagerly, or is captured once in a CUDA graph."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .recipes import Recipe

# Steps before the capture, in which cuDNN and cuBLAS choose algorithms and allocate. They are ordinary steps.
WARM_UP = 3
# Whether cuDNN benchmarks its convolutions in the first steps of a captured training. It takes seconds, and a training
# by `fast` lasts few; benchmarks/gpu_train.py --probe measures which is faster overall.
TRY_CONVOLUTIONS = False

Run = Callable[[], None]


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9. Biases and normalisation weights are not decayed by AdamW."""
    fused = recipe.graph and device.type == "cuda"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            fused=fused or None,
        )
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, object]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None, capturable=fused
    )


class Update:
    """Updates the network with a batch; `loss` and `correct` accumulate over a pass on the device.

    Args:
        network: called in the forward pass.
        optimizer: optimizer of its parameters.
        recipe: supplies the label smoothing.
        half: dtype of autocast, or None.
        device: device of the batches.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        half: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.network, self.optimizer, self.half, self.device = network, optimizer, half, device
        self.smoothing = recipe.label_smoothing
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)

    def begin(self) -> None:
        """The totals of a pass."""
        self.loss.zero_()
        self.correct.zero_()

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor, scale: float | None, weight: float) -> None:
        """One step.

        Args:
            x, y: the batch to learn.
            labels: (b,) int64, to count correct predictions.
            scale: factor on the loss before the backward pass, or None.
            weight: weight of the loss in the total.
        """
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            out = self.network(x)
            loss = nn.functional.cross_entropy(out, y, label_smoothing=self.smoothing)
        if scale is not None:
            loss = loss * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach() * weight
        self.correct += (out.detach().argmax(1) == labels).sum()


class GraphUpdate(Update):
    """As `Update`, but the whole step is one launch: batches are copied into buffers that the captured step reads, and
    the learning rate is a tensor. Batches with another shape than the first, and all batches if the capture fails, run
    eagerly.

    Args:
        capture: turns a function into one that replays what it launches.
        warm_up: steps before the capture.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        half: torch.dtype | None,
        device: torch.device,
        capture: Callable[[Run], Run] | None = None,
        warm_up: int = WARM_UP,
    ) -> None:
        super().__init__(network, optimizer, recipe, half, device)
        self.rate = torch.zeros((), device=device)
        # Set after loading, since a checkpoint brings its own rate.
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        self.capture, self.left = capture or captured, warm_up
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.buffers: tuple[Tensor, Tensor, Tensor] | None = None
        self.repeat: Run | None = None
        self.failed = False

    def set_rate(self, rate: float) -> None:
        self.rate.fill_(rate)

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor, scale: float | None, weight: float) -> None:
        batch = (x, y, labels)
        if self.buffers is None:
            self.buffers = (torch.empty_like(x), torch.empty_like(y), torch.empty_like(labels))
        fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(batch, self.buffers, strict=True))
        if self.failed or not fits:
            super().__call__(*batch, scale, weight)
        elif self.left:
            self.left -= 1
            with beside(self.side):
                super().__call__(*batch, scale, weight)
        else:
            for buffer, value in zip(self.buffers, batch, strict=True):
                buffer.copy_(value)
            if self.repeat is None:
                self._capture(scale, weight)
            if self.repeat is None:
                super().__call__(*batch, scale, weight)
            else:
                self.repeat()

    def _capture(self, scale: float | None, weight: float) -> None:
        assert self.buffers is not None
        x, y, labels = self.buffers
        # The captured backward pass must allocate its own gradients, where a replay finds them.
        self.optimizer.zero_grad(set_to_none=True)
        step = super().__call__
        try:
            self.repeat = self.capture(lambda: step(x, y, labels, scale, weight))
        except RuntimeError as error:
            self.failed = True
            self.optimizer.zero_grad(set_to_none=True)
            # An invalid capture fails once more at its end.
            while isinstance(error.__context__, RuntimeError):
                error = error.__context__
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"no CUDA graph of the training step ({reason}): the training runs without it", stacklevel=4)


def captured(run: Run) -> Run:
    """Records what `run` launches, without running it; the result launches everything at once.

    Raises:
        RuntimeError: something in it cannot be captured.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except BaseException:
        torch.cuda.set_stream(stream)  # a failed capture leaves its own stream current
        raise
    return graph.replay


@contextlib.contextmanager
def beside(side: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs on a separate stream, as code that is captured later must, ordered with the work before and after."""
    if side is None:
        yield
        return
    main = torch.cuda.current_stream(side.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


@contextlib.contextmanager
def convolutions(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Lets cuDNN benchmark its convolutions if steps are captured, and restores the setting afterwards."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (TRY_CONVOLUTIONS and recipe.graph and device.type == "cuda")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    half: torch.dtype | None,
    device: torch.device,
    parts: int,
) -> Update:
    """Captured if the recipe asks for it, on a GPU in a single process."""
    kind = GraphUpdate if recipe.graph and device.type == "cuda" and parts == 1 else Update
    return kind(network, optimizer, recipe, half, device)
