from __future__ import annotations

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError
from ulfast.data import write_dataset
from ulfast.poisons import poison, tue


def discriminant(noise: torch.Tensor, labels: torch.Tensor, held: torch.Tensor | None = None) -> torch.Tensor:
    """The published loss pair by pair, in pixels of [0, 1]; `held`: deviations as constants."""
    classes = labels.unique()
    centres = [noise[labels == c].mean(0) for c in classes]
    deviations = held if held is not None else deviations_of(noise, labels)
    pairs = [(i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j]
    each = [(deviations[i] + deviations[j] + 1e-5) / ((centres[i] - centres[j]).norm() + 1e-5) for i, j in pairs]
    return torch.stack(each).mean()


def deviations_of(noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = [noise[labels == c] for c in labels.unique()]
    return torch.stack([(some - some.mean(0)).norm(dim=1).mean() for some in rows])


def test_the_direction_is_the_published_loss_s_gradient():
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(-160, 161, (30, 50), generator=generator)
    labels = torch.arange(30) % 4
    unit = 8 / 255 / 160
    leaf = (units * unit).double().requires_grad_()
    loss = discriminant(leaf, labels, deviations_of(leaf.detach(), labels))
    (gradient,) = torch.autograd.grad(loss, leaf)
    way, value = tue.separating([units[labels == c].float() for c in range(4)], tue.SMALL / unit)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.equal(way[labels], -gradient.sign().float())


def test_classes_whose_centres_meet_do_not_move():
    same = torch.full((3, 5), 7.0)
    way, _ = tue.separating([same, same.clone(), same - 4], 1.0)
    assert torch.equal(way, torch.tensor([[1.0], [1.0], [-1.0]]).expand(3, 5))
    assert not tue.separating([same], 1.0)[0].any()
    # All alike at one place: nothing but rounding is left of the slope there.
    moved = torch.stack([same[0], same[0] + torch.tensor([0.0, 1, 2, 3, 4])])
    way, _ = tue.separating([moved[:1], moved[1:], moved[:1] + torch.tensor([0.0, 3, 3, 3, 3])], 1.0)
    assert not way[:, 0].any()


def test_it_ends_once_nothing_moves_and_classes_are_separable(make_dataset):
    clean = make_dataset(60)
    gray = ulfast.Dataset(clean.images // 2 + 60, clean.labels, clean.classes)
    made = poison(gray, "tue", batch_size=20)
    making = made.manifest["making"]
    assert making["passes"] < 200
    noise = torch.from_numpy((made.images.astype(int) - gray.images).reshape(60, -1) / 255)
    random = poison(gray, "swrandom").images.astype(int) - gray.images
    labels = torch.from_numpy(gray.labels)
    before = discriminant(torch.from_numpy(random.reshape(60, -1) / 255), labels)
    assert float(discriminant(noise, labels)) < 0.1 * float(before)
    assert np.abs(noise.numpy() * 255).max() == pytest.approx(8)
    centroids = torch.stack([noise[:30][labels[:30] == c].mean(0) for c in range(3)])
    assert torch.equal((noise[30:] @ centroids.T).argmax(1), labels[30:])
    again = poison(gray, "tue", batch_size=20, passes=making["passes"])
    assert again.checksum() == made.checksum()


def test_the_bound_between_levels_rounds_down_and_zero_is_refused(make_dataset):
    clean = make_dataset(60)
    moved = np.abs(poison(clean, "tue", eps=4.6 / 255).images.astype(int) - clean.images)
    assert moved.max() == 4
    with pytest.raises(InputError, match="eps above 0"):
        poison(clean, "tue", eps=0)
    with pytest.raises(InputError, match="batch_size must be at least 2"):
        poison(clean, "tue", batch_size=1)


@pytest.mark.parametrize("eps", [8 / 255, 4.6 / 255])
def test_it_is_the_same_from_files_and_in_pieces(make_dataset, tmp_path, monkeypatch, eps):
    """Photographs that do not fit into memory: images and noise in files, directions a few columns at a time."""
    clean = make_dataset(60)
    write_dataset(tmp_path / "clean", clean)
    made = poison(clean, "tue", batch_size=20, eps=eps)
    monkeypatch.setattr("ulfast.data.mapped.MEMORY_BYTES", 0)
    monkeypatch.setattr(tue, "COLUMNS", 7)
    streamed = ulfast.load_dataset(tmp_path / "clean", stream=True)
    assert poison(streamed, "tue", batch_size=20, eps=eps).checksum() == made.checksum()


def test_a_step_across_the_whole_bound_is_the_largest(make_dataset):
    clean = make_dataset(60)
    made = poison(clean, "tue", batch_size=20, alpha=16 / 255, passes=2)
    assert poison(clean, "tue", batch_size=20, alpha=1000.0, passes=2).checksum() == made.checksum()
