"""The bytes of poisons without a network are guaranteed: the same on every CPU level and number of threads."""

from __future__ import annotations

import hashlib

import pytest

import ulfast
from ulfast.ops import _extension
from ulfast.poisons import POISONS

# SHA-256 (the first 16 digits) of the poisoned images of the whole sample, with seeds 0 and 1.
RECORDED = {
    "lsp": ("5dbd57a5339105f3", "09da4e5763fd997b"),
    "ops": ("771450c130a68db7", "771450c130a68db7"),
    "ar": ("9b5963491e751990", "7b1d1bb56d525fd5"),
    "regions-4": ("8752ea27a599c87d", "d20da6d9ce5255c3"),
    "regions-16": ("d6d132f44d8d54e3", "ef5c29142afa76e0"),
    "cwrandom": ("15b9df6530081fa1", "7dc0f4c90a3a9983"),
    "swrandom": ("a37454412b892475", "ea1bdd0a039618bf"),
    "cuda": ("ce7a82c588bb8df1", "ad8b1bd0f46588b2"),
}
LEVELS = [name for name, supported in _extension.load().cpu_levels() if supported]


@pytest.fixture(params=LEVELS)
def level(request):
    _extension.set_cpu_level(request.param)
    yield request.param
    _extension.set_cpu_level("auto")


def test_all_of_them_are_recorded():
    assert set(RECORDED) == {name for name, poison in POISONS.items() if not poison.trains} - {"pil", "tue", "file"}


@pytest.mark.parametrize("method", RECORDED)
def test_the_bytes_have_not_changed(method, level):
    sample = ulfast.load_dataset("sample")
    for seed, digest in enumerate(RECORDED[method]):
        images = ulfast.poison(sample, method, seed=seed).images
        assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == digest
