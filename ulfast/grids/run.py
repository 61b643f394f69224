"""`reproduce`: runs a grid cell by cell, skips finished cells and resumes interrupted ones."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ..attacks import AttackResult, attack
from ..data import Dataset, load_dataset
from ..errors import InputError, WorkerError
from ..runtime.files import check_free, claimed, write_json, writing
from ..runtime.progress import Progress
from ..runtime.reading import reading, regular
from .grid import Cell, Grid
from .poisons import kept, poisoned

SUBSET_SEED = 0  # of `limit`: every seed trains on the same images


@dataclass(frozen=True)
class Average:
    """Mean over the seeds of one poison, attack and model. Accuracies are from 0 to 1; std is None with one seed."""

    poison: str
    attack: str
    model: str
    mean: float
    std: float | None
    seeds: list[int]
    folders: list[str]
    seconds: float  # per cell, without making the poison

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class GridResult:
    """The results of a grid so far.

    Attributes:
        grid: the requested grid.
        rows: one row for every poison, attack and model that has at least one result.
        missing: folders of the cells without a result.
        failed: folder -> message of the cells that could not be run.
        folder: the folder of the grid.
        environments: the distinct environments in which the cells were made: versions, commit, processor, threads.
    """

    grid: Grid
    rows: list[Average]
    missing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    environments: list[dict[str, Any]] = field(default_factory=list)

    def row(self, poison: str, attack: str, model: str | None = None) -> Average | None:
        """The row of a poison and an attack, for the first model unless one is named."""
        model = model or self.grid.models[0]
        return next((r for r in self.rows if (r.poison, r.attack, r.model) == (poison, attack, model)), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "grid": asdict(self.grid),
            "rows": [row.to_dict() for row in self.rows],
            "missing": self.missing,
            "failed": self.failed,
            "out": str(self.folder),
            "environments": self.environments,
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GridResult:
        """Reads a grid's folder, finished or not.

        Raises:
            InputError: it is not a grid's folder.
        """
        folder = Path(folder)
        file = folder / "grid.json"
        if not file.exists():
            raise InputError(f"{folder} is not a folder of `ulfast reproduce`: it has no grid.json")
        with reading(file, "it is damaged: run `ulfast reproduce` again"):
            grid = Grid.of(json.loads(regular(file).read_text(encoding="utf-8")), str(file), trained=True)
        return _collect(grid, folder, {})


def reproduce(
    grid: Grid | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> GridResult:
    """Train every cell of a grid that has no result yet.

    Args:
        grid: a Grid, a YAML file or the name of a shipped one.
        out: folder of the grid. Cells in it that were made with the same settings are kept; an interrupted one resumes
            from its last epoch.
        jobs: number of cells at a time, each in its own process with its share of the threads.
        device: "auto", "cpu" or "cuda".
        overwrite: repeat cells that were made with other settings, instead of an error.
        progress: called as ``progress("cells", done, total)``, and, with a single job, for the stages of a cell.

    Returns:
        GridResult; `summary.json` in `out` holds the same.

    Raises:
        InputError: the grid cannot be run, or cells in `out` were made with other settings.
        WorkerError: with several jobs, a process was killed.
    """
    grid = grid if isinstance(grid, Grid) else Grid.load(str(grid))
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    folder = Path(out)
    with claimed(folder):
        if folder.exists() and not (folder / "grid.json").is_file():
            check_free(folder, False)
        todo = _todo(grid, folder, overwrite)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "grid.json", _as_yaml(grid))
        total = len(grid.cells())
        done = total - len(todo)
        if progress:
            progress("cells", done, total)
        failed: dict[str, str] = {}
        for cell, problem in _run(todo, folder, jobs, device, progress):
            if problem is not None:
                failed[cell.path] = problem
            done += 1
            if progress:
                progress("cells", done, total)
            write_json(folder / "summary.json", _collect(grid, folder, failed).to_dict())
        result = _collect(grid, folder, failed)
        write_json(folder / "summary.json", result.to_dict())
        return result


def _as_yaml(grid: Grid) -> dict[str, Any]:
    """The mapping that `Grid.of` reads."""
    content = asdict(grid)
    for key in ("poisons", "attacks"):
        content[key] = [{"name": v["label"], "method": v["method"], **v["parameters"]} for v in content[key]]
    return content


def _todo(grid: Grid, folder: Path, overwrite: bool) -> list[Cell]:
    """The cells without a result. A file beside a cell's folder holds its settings from the start on."""
    todo = []
    for cell in grid.cells():
        where = folder / cell.path
        try:
            made_by = json.loads(_settings(where).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            made_by = None
        if made_by is not None and made_by != cell.to_dict():
            different = ", ".join(key for key, value in cell.to_dict().items() if made_by.get(key) != value)
            if not overwrite:
                raise InputError(
                    f"{where} was made with another {different}: choose another --out, or give --overwrite"
                )
            shutil.rmtree(where, ignore_errors=True)
        if not (where / "result.json").is_file():
            todo.append(cell)
    return todo


def _settings(where: Path) -> Path:
    return where.with_name(where.name + ".json")


def _run(
    cells: list[Cell], folder: Path, jobs: int, device: str, progress: Progress | None
) -> Iterator[tuple[Cell, str | None]]:
    """Yields every cell when it is done, with the error message or None."""
    if jobs == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, _run_cell(cell, folder, device, progress)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # Not forked: torch's threads would not survive a fork.
    context = multiprocessing.get_context("spawn")
    watched, lifeline = context.Pipe(duplex=False)
    with (
        watched,
        lifeline,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(threads, watched)) as pool,
    ):

        def submit(function: Callable[..., str | None], *arguments: Any) -> Future[str | None]:
            try:
                return pool.submit(function, *arguments)
            except OSError as error:  # the pool broke, and closed its queues, while it started another process
                raise BrokenProcessPool from error

        try:
            # First the poisons that several cells share, so that they are made only once.
            places = [kept(cell, folder) for cell in cells]
            makings: dict[Path | None, Future[str | None]] = {}
            for cell, place in zip(cells, places, strict=True):
                if place is not None and place not in makings:
                    makings[place] = submit(_make, cell, folder, device)
            # Neighbouring cells share a poison, which each worker makes once.
            futures: dict[Future[str | None], Cell] = {}
            for cell, place in zip(cells, places, strict=True):
                if place in makings and (problem := makings[place].result()) is not None:
                    yield cell, problem
                else:
                    futures[submit(_run_cell, cell, folder, device, None)] = cell
            while futures:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION, timeout=0.5)
                for future in finished:
                    yield futures.pop(future), future.result()
        except BaseException as error:
            lifeline.close()  # before the pool waits for its processes
            if isinstance(error, BrokenProcessPool):
                raise WorkerError(
                    "a process that trained was killed, perhaps for want of memory: the same command resumes, and fewer"
                    " --jobs need less of it"
                ) from None
            raise


def _start_worker(threads: int, lifeline: Connection) -> None:
    """Prepares a worker. The number of threads changes the order of sums, and so the last digits of results.

    It ends when the other end of `lifeline` is closed: by a parent that was killed, or one whose pool broke. A broken
    pool ends the processes that it knows, and would wait forever for one that it was just starting.
    """
    from ..runtime.machine import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_cell(cell: Cell, folder: Path, device: str, progress: Progress | None) -> str | None:
    """Trains one cell in its folder. Returns the message of an input error, or None."""
    where = folder / cell.path
    try:
        clean, test = _images(cell)
        train = _poisoned(cell, clean, folder, device, progress)
        started = (where / "config.json").is_file()
        with writing(where):
            where.parent.mkdir(parents=True, exist_ok=True)
            write_json(_settings(where), cell.to_dict())
        attack(
            train,
            test=test,
            method=cell.attack.method,
            model=cell.model,
            recipe=cell.recipe,
            seed=cell.seed,
            device=device,
            out=where,
            resume=started,
            overwrite=not started,
            clean=clean,
            epochs=cell.epochs,
            evaluate_every=cell.evaluate_every,
            progress=progress,
            **cell.attack.parameters,
        )
    except InputError as error:
        return str(error)
    return None


_kept: dict[str, Any] = {}  # images and poison of this process's last cell


def _images(cell: Cell) -> tuple[Dataset, Dataset]:
    key = json.dumps([cell.data, cell.limit, cell.resize])
    if _kept.get("images") != key:
        clean = load_dataset(cell.data, limit=cell.limit, seed=SUBSET_SEED, resize=cell.resize)
        test = load_dataset(cell.data, split="test", resize=cell.resize)
        _kept.clear()
        _kept.update(images=key, clean=clean, test=test)
    return _kept["clean"], _kept["test"]


def _poisoned(cell: Cell, clean: Dataset, folder: Path, device: str, progress: Progress | None) -> Dataset:
    key = json.dumps([asdict(cell.poison), cell.poison_seed])
    if _kept.get("poison") != key:
        _kept.update(poison=key, train=poisoned(cell, clean, folder, device, progress))
    train: Dataset = _kept["train"]
    return train


def _make(cell: Cell, folder: Path, device: str) -> str | None:
    """Makes a cell's poison in the grid's folder. Returns the message of an input error, or None."""
    try:
        _poisoned(cell, _images(cell)[0], folder, device, None)
    except InputError as error:
        return str(error)
    return None


def _collect(grid: Grid, folder: Path, failed: dict[str, str]) -> GridResult:
    """Reads the existing results."""
    found: dict[tuple[str, str, str], list[tuple[Cell, AttackResult]]] = {}
    missing = []
    for cell in grid.cells():
        if (folder / cell.path / "result.json").is_file():
            result = AttackResult.load(folder / cell.path)
            found.setdefault((cell.poison.label, cell.attack.label, cell.model), []).append((cell, result))
        else:
            missing.append(cell.path)
    rows, environments = [], []
    for (poison_, attack_, model), cells in found.items():
        for _, result in cells:
            if result.environment not in environments:
                environments.append(result.environment)
        accuracies = [result.test_accuracy for _, result in cells]
        rows.append(
            Average(
                poison_,
                attack_,
                model,
                statistics.fmean(accuracies),
                statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                [cell.seed for cell, _ in cells],
                [cell.path for cell, _ in cells],
                statistics.fmean(math.fsum(result.seconds.values()) for _, result in cells),
            )
        )
    return GridResult(grid, rows, missing, failed, folder, environments)
