"""Readable PyTorch twins of all kernels: the oracle of the tests, and the fallback for other devices.

Nothing here is tuned. Each function computes in plain PyTorch what its kernel computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import philox


def unit(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as floats in [0, 1]: uint8 is divided by 255, floats pass through."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def inside(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A mask (b,) of the numbers outside [0, n), and the numbers with those moved into it.

    Indexing a GPU tensor out of range triggers a device assertion, after which the process can no longer use the
    device; and -1 would mean the last row.
    """
    return (index < 0) | (index >= n), index.clamp(0, max(0, n - 1))


def picked(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """A mask (b,) of the numbers outside the rows of `values`, and ``values[index]``, with arbitrary values there."""
    outside, index = inside(index, len(values))
    return outside, (values if len(values) else values.new_zeros(1, *values.shape[1:]))[index]


def _each(rows: Tensor, like: Tensor) -> Tensor:
    """Reshapes (b,) to (b, 1, ...), to broadcast with the rows of `like`."""
    return rows.view(-1, *[1] * (like.dim() - 1))


def projected_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of projected rows: pixels become floats, floats keep their dtype."""
    return torch.float32 if dtype == torch.uint8 else dtype


def project(x: Tensor, basis: Tensor) -> Tensor:
    """``x - (x @ basis.T) @ basis`` over flattened rows; x (n, ...), basis (k, d) -> like x (uint8 -> float32)."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = unit(x, compute).reshape(x.shape[0], basis.shape[1])
    b = basis.to(compute)
    return (rows - (rows @ b.T) @ b).to(projected_dtype(x.dtype)).reshape(x.shape)


def project_out(x: Tensor, basis: Tensor, out: Tensor) -> None:
    """`project` into existing memory."""
    out.copy_(project(x, basis))


def project_(x: Tensor, basis: Tensor) -> None:
    """`project` in place."""
    x.copy_(project(x, basis))


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    """`project` for every row with ``bases[label]``; x (n, ...), bases (c, r, d), labels (n,) int64.

    The products of all classes are computed and those of other classes set to zero, so there is no (n, r, d) gather and
    no wait for the device. A label out of range makes its row NaN; the CPU kernel raises.
    """
    c, r, d = bases.shape
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, flat = unit(x, compute).reshape(x.shape[0], d), bases.to(compute).reshape(c * r, d)
    own = labels[:, None] == torch.arange(c, dtype=torch.int64, device=labels.device)
    coef = (rows @ flat.T).view(len(rows), c, r) * own[:, :, None]
    out = rows - coef.view(len(rows), c * r) @ flat
    out = torch.where(own.any(1)[:, None], out, torch.nan)
    return out.to(projected_dtype(x.dtype)).reshape(x.shape)


def project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    """`project_classwise` into existing memory."""
    out.copy_(project_classwise(x, bases, labels))


def ingest(
    images: Tensor,  # (N, H, W, C) uint8, or float in [0, 1]
    basis: Tensor | None,  # (k, H*W*C), or (c, r, H*W*C) with labels
    mean: Tensor,  # (C,) float32
    std: Tensor,  # (C,) float32
    dtype: torch.dtype,
    index: Tensor | None = None,  # (n,) int64 rows of images, or None for all of them
    shift: Tensor | None = None,  # (n, 2) int32 (dy, dx): out[y, x] = image[y + dy, x + dx], zero outside
    flip: Tensor | None = None,  # (n,) bool: mirror left-right after the shift
    labels: Tensor | None = None,  # (n,) int64: the class whose basis applies to each result
) -> Tensor:  # (n, C, H, W) out_dtype, channels_last
    """NHWC, uint8 or float -> [0, 1] -> project -> shift (zeros outside) -> flip -> normalise -> channels_last.

    An index or a label out of range makes its image NaN; the CPU kernel raises.
    """
    outside, images = (None, images) if index is None else picked(images, index)
    x = unit(images)
    if basis is not None:
        x = project(x, basis) if labels is None else project_classwise(x, basis, labels)
    if basis is not None and labels is not None:
        strange = inside(labels, len(basis))[0]
        outside = strange if outside is None else outside | strange
    return augment(x, mean, std, dtype, shift, flip, outside)


def augment(
    x: Tensor,  # (n, H, W, C) float
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    outside: Tensor | None = None,  # (n,) bool: images that become NaN
) -> Tensor:  # (n, C, H, W) dtype, channels_last
    """The second half of `ingest`: shift (zeros outside) -> flip -> normalise -> channels_last."""
    n, h, w, _ = x.shape
    if x.numel() and (shift is not None or flip is not None):  # where each pixel comes from
        rows, ys, xs = (torch.arange(size, dtype=torch.int64, device=x.device) for size in (n, h, w))
        ys, xs = ys.expand(n, h), xs.expand(n, w)
        if flip is not None:
            xs = torch.where(flip[:, None], w - 1 - xs, xs)
        if shift is not None:
            ys, xs = ys + shift[:, :1].long(), xs + shift[:, 1:].long()
        x = x[rows[:, None, None], ys.clamp(0, h - 1)[:, :, None], xs.clamp(0, w - 1)[:, None, :]]
        if shift is not None:
            seen = ((ys >= 0) & (ys < h))[:, :, None] & ((xs >= 0) & (xs < w))[:, None, :]
            x = torch.where(seen[..., None], x, 0.0)
    mean = mean.float()
    if outside is not None:  # through the mean, which costs no pass over the pixels
        mean = torch.where(outside[:, None, None, None], torch.nan, mean)
    x = (x - mean) / std.float()
    return x.to(dtype).permute(0, 3, 1, 2)


def softmax_regression_step(
    x: Tensor,  # (N, ...) uint8 (read as x/255) or float
    labels: Tensor,  # (N,) int64
    weight: Tensor,  # (c, d) float32, updated in place
    lr: float,
    index: Tensor | None = None,  # (n,) int64 rows of x that form the batch, or None for all
) -> Tensor:  # (2,) float64: mean cross-entropy before the update, number of correct rows
    """One SGD step of a linear classifier without bias: ``weight -= lr * d/dweight mean CE(x @ weight.T, y)``.

    An index or a label out of range makes the loss and the weight NaN; the CPU kernel raises.
    """
    lost = None
    if index is not None:
        (lost, x), (_, labels) = picked(x, index), picked(labels, index)
    if not len(x) or not len(weight):
        return torch.zeros(2, dtype=torch.float64, device=x.device)
    outside, labels = inside(labels, len(weight))
    outside = outside if lost is None else outside | lost
    rows = unit(x, weight.dtype).reshape(len(x), weight.shape[1])
    logits = rows @ weight.T
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    loss = torch.where(outside, torch.nan, losses).sum() / len(labels)
    correct = ((logits.argmax(1) == labels) & ~outside).sum()
    if lr:
        own = labels[:, None] == torch.arange(len(weight), dtype=torch.int64, device=x.device)
        residual = (logits.softmax(1) - own.to(logits.dtype)).masked_fill_(outside[:, None], torch.nan)
        weight.sub_(residual.T @ rows, alpha=lr / len(labels))
    return torch.stack([loss, correct.double()])


def apply_perturbation(
    images: Tensor,  # (n, ...) uint8
    delta: Tensor,  # (m, ...) float32 in units of [0, 1]
    index: Tensor | None = None,  # (n,) int64: row of delta for each image; None: row i for image i
    truncate: bool = False,  # round down (as published for LSP) instead of to nearest even
) -> Tensor:  # (n, ...) uint8
    """``clamp(images + 255 * delta[index], 0, 255)``, rounded to uint8.

    An index out of range leaves its image unchanged; the CPU kernel raises.
    """
    outside, d = (None, delta) if index is None else picked(delta, index)
    x = (images.to(torch.float32) + 255 * d).clamp(0, 255)
    out = (x.floor() if truncate else x.round()).to(torch.uint8)
    return out if outside is None else torch.where(_each(outside, out), images, out)


def pgd_step(
    x: Tensor,  # (n, ...) float32, stepped in place
    grad: Tensor,
    start: Tensor,  # the centre of the ball
    alpha: float,
    eps: float,
    norm: str,  # "linf" or "l2", of each row
    clamp: bool = True,
) -> None:
    """``x = clamp(start + P(x + alpha * direction(grad) - start), 0, 1)``, P the projection onto the ball of eps."""
    if norm == "linf":
        delta = (x + alpha * grad.sign() - start).clamp(-eps, eps)
    else:

        def size(t: Tensor) -> Tensor:
            norms = torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64).clamp_min(1e-12)
            return norms.view(-1, *[1] * (t.dim() - 1))

        delta = x + (alpha / size(grad)).float() * grad - start
        delta = delta * (eps / size(delta)).clamp(max=1.0).float()
    stepped = start + delta
    x.copy_(stepped.clamp(0, 1) if clamp else stepped)


def philox_uniform(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    """(n, d) float32 in [0, 1) on a grid of 2**-24; row i depends on (seed, stream, first + i) alone."""
    return philox.uniform(philox.words(seed, stream, first, n, d, device or "cpu"))


def philox_normal(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    """(n, d) float32 standard normals (Box-Muller); row i depends on (seed, stream, first + i) alone."""
    return philox.normal(philox.words(seed, stream, first, n, d + d % 2, device or "cpu"))[:, :d].contiguous()


def perturb_lsp(
    labels: Tensor,  # (n,) int64
    centroids: Tensor,  # (c, m) float32: the class's hypercube vertex; m = gh * gw * channels
    mixing: Tensor,  # (c, m, m) float32: the class's covariance factor
    seed: int,
    first: int,  # image index of row 0
    height: int,
    width: int,
    channels: int,
    patch: int,
    norm: float,  # L2 norm of every image's perturbation, in units of [0, 1]
    images: Tensor | None = None,  # (n, height, width, channels) uint8: add to these
    truncate: bool = False,
) -> Tensor:  # (n, height, width, channels) float32, or uint8 with images
    """Linearly separable perturbations (Yu et al., KDD 2022): one Gaussian cluster per class, enlarged to patches.

    A label out of range gives NaN, or leaves its image unchanged; the CPU kernel raises.
    """
    n, m = labels.shape[0], centroids.shape[1]
    gh, gw = math.ceil(height / patch), math.ceil(width / patch)
    normals = philox_normal(seed, philox.STREAM_LSP, first, n, m, device=labels.device)
    (outside, mixed), (_, centre) = picked(mixing, labels), picked(centroids, labels)
    latent = (normals[:, None, :] @ mixed.float())[:, 0] + centre.float()
    grid = latent.reshape(n, gh, gw, channels)
    delta = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :height, :width]
    scale = norm / delta.flatten(1).double().norm(dim=1).clamp_min(1e-12)
    delta = (delta * scale.float()[:, None, None, None]).contiguous()
    return _added(delta, outside, images, truncate)


def _added(delta: Tensor, outside: Tensor, images: Tensor | None, truncate: bool) -> Tensor:
    """A perturbation, NaN in the rows `outside`, or images with it added, which stay unchanged there."""
    delta = torch.where(_each(outside, delta), torch.nan if images is None else 0.0, delta)
    return delta if images is None else apply_perturbation(images, delta, None, truncate)


def perturb_ar(
    labels: Tensor,  # (n,) int64
    coefficients: Tensor,  # (c, channels, 3, 3) float32, the last of each window unused
    seed: int,
    first: int,  # image index of row 0
    height: int,
    width: int,
    norm: float,
    kind: str,  # "l2", "linf", or "none" for unscaled noise
    images: Tensor | None = None,
    truncate: bool = False,
) -> Tensor:  # (n, height, width, channels) float32, or uint8 with images
    """Autoregressive noise (Sandoval-Segura et al., NeurIPS 2022): every value is its window's weighted sum.

    A label out of range: as in `perturb_lsp`.
    """
    n, channels = labels.shape[0], coefficients.shape[1]
    h, w = height + 4, width + 4
    each = 2 * w + 2 * (h - 2)
    z = philox_normal(seed, philox.STREAM_AR, first, n, channels * each, device=labels.device).view(n, channels, each)
    x = z.new_zeros(n, channels, h, w)
    x[:, :, :2] = z[:, :, : 2 * w].reshape(n, channels, 2, w)
    x[:, :, 2:, :2] = z[:, :, 2 * w :].reshape(n, channels, h - 2, 2)
    outside, window = picked(coefficients, labels)
    window = window.float().reshape(n, channels, 9)
    for i in range(2, h):
        for j in range(2, w):
            before = x[:, :, i - 2 : i + 1, j - 2 : j + 1].reshape(n, channels, 9)
            s = window[..., 0] * before[..., 0]
            for t in range(1, 8):
                s = s + window[..., t] * before[..., t]
            x[:, :, i, j] = s
    delta = x[:, :, 4:, 4:].permute(0, 2, 3, 1).contiguous()
    flat = delta.flatten(1).double()
    if kind != "none":
        size = flat.norm(dim=1) if kind == "l2" else flat.abs().amax(1)
        single = torch.full((), norm, dtype=torch.float32, device=size.device).double()
        delta = delta * (single / size.clamp_min(1e-12)).float()[:, None, None, None]
    return _added(delta, outside, images, truncate)


def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares over the images of each class: (classes, ...) int64 each; images (n, ...) uint8.

    A label out of range is ignored; the CPU kernel raises.
    """
    x = images.long()
    sums, squares = (x.new_zeros(classes, *images.shape[1:]) for _ in range(2))
    if not classes:
        return sums, squares
    outside, labels = inside(labels, classes)
    x.masked_fill_(_each(outside, x), 0)
    return sums.index_add_(0, labels, x), squares.index_add_(0, labels, x * x)


def count_changes(
    clean: Tensor,  # (n, ..., C) uint8
    poisoned: Tensor,  # the same
) -> Tensor:  # (n, 5) int64
    """For each image: positions that differ in any channel, values that differ, how many of these ended at 0 or 255,
    the largest difference, and the sum of squared differences.
    """
    size = (clean.long() - poisoned.long()).abs()
    changed = size > 0
    extreme = changed & ((poisoned == 0) | (poisoned == 255))
    flat = size.flatten(1)
    zero = flat.new_zeros(len(flat), 1)  # so that images without values have a maximum too
    return torch.stack(
        [
            changed.any(-1, keepdim=True).flatten(1).sum(1),
            changed.flatten(1).sum(1),
            extreme.flatten(1).sum(1),
            torch.cat([flat, zero], dim=1).amax(1),
            flat.square().sum(1),
        ],
        dim=1,
    )


def patch_filter(
    x: Tensor,  # (n, H, W, C) float
    filters: Tensor,  # (T, T, T, T, C, C): kind of row, kind of column, dy, dx, input channel, output channel
) -> Tensor:  # (n, H, W, C)
    """``x - filter(x)`` with a filter that depends on how near a pixel is to the border; zeros outside."""
    _, h, w, _ = x.shape
    taps, r = filters.shape[0], filters.shape[0] // 2

    def kinds(side: int) -> Tensor:  # 0 .. r - 1 at the upper border, r within, r + 1 .. 2 r at the lower
        at = torch.arange(side, dtype=torch.int64, device=x.device)
        return torch.where(at < r, at, torch.where(at >= side - r, taps - (side - at), torch.full_like(at, r)))

    own = filters.to(x.dtype)[kinds(h)][:, kinds(w)]  # (H, W, T, T, C, C)
    padded = torch.nn.functional.pad(x, (0, 0, r, r, r, r))
    out = x.clone()
    for dy in range(taps):
        for dx in range(taps):
            out -= torch.einsum("nhwi,hwio->nhwo", padded[:, dy : dy + h, dx : dx + w], own[:, :, dy, dx])
    return out


def filter_images(
    x: Tensor,  # (n, H, W, C) uint8, read as x / 255, or float
    kernels: Tensor,  # (n, side, side), side odd
    clamp: bool = False,
) -> Tensor:  # (n, H, W, C) float
    """Filters every image with its own kernel, the same for all channels; the border is replicated outwards."""
    _, h, w, _ = x.shape
    side = kernels.shape[1]
    wide = unit(x, x.dtype if x.is_floating_point() else torch.float32).permute(0, 3, 1, 2)
    if not x.numel():
        return torch.zeros(x.shape, dtype=wide.dtype, device=x.device)
    padded = torch.nn.functional.pad(wide, (side // 2,) * 4, mode="replicate")
    out = torch.zeros_like(wide)
    for dy in range(side):
        for dx in range(side):
            out += kernels.to(wide.dtype)[:, dy, dx].view(-1, 1, 1, 1) * padded[:, :, dy : dy + h, dx : dx + w]
    return (out.clamp(0, 1) if clamp else out).permute(0, 2, 3, 1).contiguous()


def shift_pixels(
    x: Tensor,  # (n, H, W, C) uint8, read as x / 255, or float
    seed: int,
    stream: int,
    first: int,
    reach: float,
) -> Tensor:  # (n, H, W, C) float
    """Reads every pixel (bilinear, with wrap-around) at a place up to `reach` pixels away along each axis."""
    n, h, w, _ = x.shape
    wide = unit(x, x.dtype if x.is_floating_point() else torch.float32)
    if not x.numel():
        return torch.zeros(x.shape, dtype=wide.dtype, device=x.device)
    steps = (philox_uniform(seed, stream, first, n, 2 * h * w, device=x.device).view(n, h, w, 2) * 2 - 1) * reach

    def places(at: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:  # lower, next, weight of next
        low = at.floor()
        return low.long() % side, (low.long() + 1) % side, (at - low)[..., None].to(wide.dtype)

    columns, rows = (torch.arange(side, dtype=torch.float32, device=x.device) for side in (w, h))
    left, right, across = places(columns + steps[..., 0], w)
    top, bottom, down = places(rows[:, None] + steps[..., 1], h)
    image = torch.arange(n, dtype=torch.int64, device=x.device).view(n, 1, 1)
    upper = torch.lerp(wide[image, top, left], wide[image, top, right], across)
    lower = torch.lerp(wide[image, bottom, left], wide[image, bottom, right], across)
    return torch.lerp(upper, lower, down)


def perturb_convolution(
    images: Tensor,  # (n, H, W, C) uint8
    labels: Tensor,  # (n,) int64
    kernels: Tensor,  # (c, side, side) float32, shared by all channels
) -> Tensor:  # (n, H, W, C) uint8
    """Convolution with the class's filter, zeros outside, divided by the image's largest value, truncated to uint8.

    A label out of range leaves its image unchanged; the CPU kernel raises.
    """
    _, height, width, _ = images.shape
    side = kernels.shape[1]
    before = side // 2
    padded = torch.nn.functional.pad(images.float(), (0, 0, before, side - 1 - before, before, side - 1 - before))
    if not images.numel():
        return images.clone()
    outside, weights = picked(kernels, labels)
    weights = weights.float()
    y = torch.zeros(images.shape, dtype=torch.float32, device=images.device)
    for dy in range(side):
        for dx in range(side):
            y = y + weights[:, dy, dx, None, None, None] * padded[:, dy : dy + height, dx : dx + width]
    most = y.flatten(1).amax(1).clamp_min(0)[:, None, None, None]
    # A black image has nothing to divide by, and stays black.
    out = torch.where(most > 0, (y / most.clamp_min(1e-30) * 255).clamp_min(0), 0.0).to(torch.uint8)
    return torch.where(_each(outside, out), images, out)


def whole_levels(eps: float) -> int:
    """Number of uint8 levels within a bound in units of [0, 1]; a bound between two levels rounds down."""
    return int(255 * eps + 1e-3)


def perturb_linear(
    images: Tensor,  # (n, ...) uint8
    labels: Tensor,  # (n,) int64
    weight: Tensor,  # (c, d) float32
    steps: int,
    alpha: float,
    eps: float,
    share: float,
) -> Tensor:  # (n, ...) uint8
    """Images minus the noise that sign steps find against a linear classifier (perturbation-induced linearisation).

    Each step descends ``share * CE(W noise, y) + (1 - share) * KL(uniform || softmax(W (x - noise)))``, whose gradient
    is ``W.T @ (share * (softmax(W noise) - onehot) - (1 - share) * (softmax(W (x - noise)) - 1 / c))``.
    A label out of range leaves its image unchanged; the CPU kernel raises.
    """
    n, (c, d), weight = images.shape[0], weight.shape, weight.float()
    if not images.numel() or not c:
        return images.clone()
    rows = unit(images).reshape(n, d)
    of_images, noise = rows @ weight.T, torch.zeros_like(rows)
    # Not `one_hot`, which waits for the device to check the labels.
    onehot = (labels[:, None] == torch.arange(c, dtype=torch.int64, device=labels.device)).to(weight.dtype)
    for _ in range(steps):
        own = noise @ weight.T
        residual = share * (own.softmax(1) - onehot) - (1 - share) * ((of_images - own).softmax(1) - 1 / c)
        noise = (noise - alpha * (residual @ weight).sign()).clamp(-eps, eps)
    levels = (255 * noise).round().clamp(-whole_levels(eps), whole_levels(eps))
    out = (images.reshape(n, d) - levels).clamp(0, 255).to(torch.uint8).reshape(images.shape)
    return torch.where(_each(inside(labels, c)[0], out), images, out)
