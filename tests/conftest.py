"""Shared by all tests: small data made here, no network, a fork, and which tests are slow or run together."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; before torch reads it, and for what they start
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import numpy as np
import pytest
import torch

from ulfast import InputError
from ulfast.data.dataset import Dataset


def tiny(
    n: int = 60, size: int = 12, channels: int = 3, classes: int = 3, seed: int = 0, split: str = "train"
) -> Dataset:
    """Smooth random images with a weak class signal."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    coarse = rng.integers(40, 216, (n, 4, 4, channels))
    images = coarse.repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    images = (images + rng.integers(-10, 11, images.shape) + 10 * labels[:, None, None, None]).clip(0, 255)
    return Dataset(images.astype(np.uint8), labels, tuple(f"class{c}" for c in range(classes)), "tiny", split)


def line_of(function, *arguments, match: str | None = None, **options) -> str:
    """The InputError of a call: one line, with its cause behind it where it was translated."""
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def make_dataset():
    return tiny


@pytest.fixture(scope="session")
def one_line():
    return line_of


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps tests away from the user's cache: their downloads go to a separate folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ULFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def forked():
    """`forked(function, *arguments)`: the exit code of a fork of this process that calls it, minus the signal where one
    killed it. What is imported is there, which a new process spends seconds on. One thread, as libgomp's do not survive
    a fork."""

    def run(function: Callable[..., object], *arguments: object) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 1
        try:
            torch.set_num_threads(1)
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    return run


# Files whose tests take long and share no expensive fixtures: each test runs wherever there is room.
SPREAD = {
    "analysis/test_diagnosis.py",
    "attacks/test_bases.py",
    "cli/test_cli.py",
    "docs/test_docs.py",
    "examples/test_examples.py",
    "poisons/test_generators.py",
    "poisons/test_published.py",
    "scale/test_kill.py",
    "scale/test_processes.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """The tests of a file run in one process, which makes their fixtures once; those in SPREAD run anywhere. (By file
    rather than `xdist_group`, which xdist 3.8 does not see with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if "/".join(file.split("/")[-2:]) in SPREAD else file

    return Files(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For a test marked `pairs` the quick run takes enough cases that all pairs of values of two parameters occur; the
    other cases of the product are slow. Parameters named in the mark count as one: `pairs("level", "dtype")` has every
    level and dtype occur with every value of every other parameter."""
    marked = [item for item in items if isinstance(item, pytest.Function) and item.get_closest_marker("pairs")]
    for _, group in itertools.groupby(marked, lambda item: (item.path, item.originalname)):
        cases = list(group)
        quick = covering([axes(case) for case in cases])
        for i, case in enumerate(cases):
            if i not in quick:
                case.add_marker(pytest.mark.slow)


def axes(case: pytest.Function) -> list[object]:
    """A case's value of each parameter; parameters that count as one are grouped."""
    mark = case.get_closest_marker("pairs")
    assert mark is not None
    at = {name: str(value) for name, value in case.callspec.params.items()}
    together = tuple(at.pop(name) for name in mark.args)
    return [together, *(at[name] for name in sorted(at))]


def covering(cases: list[list[object]]) -> set[int]:
    """Indices of cases that cover every pair of values that occurs, chosen greedily by the most new pairs."""
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in cases]
    left, chosen = set().union(*pairs), set()
    while left:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & left))
        chosen.add(best)
        left -= pairs[best]
    return chosen
