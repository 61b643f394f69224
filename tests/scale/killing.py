"""Runs a command of ulfast again and again and kills it at random moments: `killing.py STEP SEED KILLS FOLDER`.

A moment is a number of Python function calls, so that the same seed kills at the same place on every machine, also
between two lines of a file being replaced. Every run is a fork of this process, which has imported everything, as an
import takes a hundred times longer than the work.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer would

import ulfast.attacks
import ulfast.data.beton.writer
import ulfast.data.writers.pieces
import ulfast.data.writers.resumable
import ulfast.poisons.run
import ulfast.projection.fit_state
from ulfast.cli.main import group
from ulfast.report import pictures
from ulfast.runtime import files

# Everything is saved as often as possible.
ulfast.data.writers.resumable.COMMIT_SECONDS = ulfast.projection.fit_state.SAVE_SECONDS = 0.0
ulfast.poisons.run.CHUNK_BYTES = ulfast.data.writers.resumable.CHUNK_BYTES = 20 * 432
ulfast.data.writers.pieces.BLOCK_BYTES = 20 * 432
ulfast.data.beton.writer.CHUNK_BYTES = ulfast.data.beton.writer.CHECKPOINT_BYTES = 20 * 432
pictures.save = lambda figure, path: Path(path).write_bytes(b"picture")  # half a second each
pictures.basis_figure = pictures.comparison_figure = pictures.attack_figure = lambda *a, **k: None
files.sync = lambda path: None  # a kill is no power failure, and loses nothing that was written
os.fsync = lambda descriptor: None


def words(step: str, data: str, out: Path) -> tuple[list[str], bool]:
    """The command that a user would give next, and whether none is needed because the output is complete."""
    if step == "fit":
        kept = out / "b.safetensors.part.pt"
        command = ["fit", "--data", data, "--steps", "30", "--out", str(out / "b.safetensors")]
        return command + ["--resume"] * kept.exists(), (out / "b.safetensors").exists() and not kept.exists()
    if step == "train":
        command = [
            "attack",
            "--data",
            data,
            "--epochs",
            "3",
            "--fit-steps",
            "20",
            "--keep-checkpoints",
            "--device",
            "cpu",
            "--out",
            str(out / "run"),
        ]
        return command + ["--resume"] * (out / "run").exists(), (out / "run" / "result.json").exists()
    if step == "poison":
        command = ["poison", "--data", data, "--out", str(out / "p")]
        return command + ["--resume"] * (out / ".p.part").exists(), (out / "p").exists()
    if step == "shards":
        command = ["poison", "--data", data, "--to", "wds", "--shard-size", "40", "--out", str(out / "s")]
        return command + ["--resume"] * (out / ".s.part" / files.SETTINGS).exists(), (out / "s").exists()
    if step == "beton":
        done = (out / "c.test.beton.json").exists() and not (out / "c.test.beton.part.json").exists()
        return ["data", "convert", data, "--out", str(out / "c.beton")], done
    return ["data", "convert", data, "--to", "ulfast", "--out", str(out / "c")], (out / "c").exists()


def run(command: list[str], kill_at: int | None) -> int:
    """The exit code of a fork that runs the command, or minus the signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.setprofile(count)
        group.main([*command, "--quiet"], standalone_mode=False)
        sys.setprofile(None)
        Path("calls").write_text(str(calls))
        code = 0
    except BaseException as error:
        sys.setprofile(None)
        print(f"{' '.join(command)}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def content(step: str, out: Path) -> dict[str, object]:
    """Content that must not depend on kills: every byte, or, in files with times, everything else."""
    files_ = [f for f in out.rglob("*") if f.is_file() and f.suffix != ".lock"]  # which the next command removes
    found: dict[str, object] = {str(f.relative_to(out)): f.read_bytes() for f in files_}
    if step == "fit":
        basis = ulfast.Basis.load(out / "b.safetensors")
        found["b.safetensors"] = (basis.rows.numpy().tobytes(), basis.weights.numpy().tobytes())
    elif step == "train":
        result = ulfast.AttackResult.load(out / "run")
        times = ("seconds", "images_per_second")
        history = [{k: v for k, v in row.items() if k not in times} for row in result.history]
        weights = {}
        for name in list(found):
            if name.endswith(".pt"):
                kept = torch.load(out / name, weights_only=True)["model"]
                weights[name] = b"".join(v.numpy().tobytes() for v in kept.values())
        found = {"files": sorted(found), "history": history, "accuracy": result.test_accuracy, **weights}
    return found


def main(step: str, seed: int, kills: int, folder: Path) -> None:
    os.chdir(folder)
    draw, data = random.Random(seed), str(folder / "data")
    want = folder / "want"
    assert run(words(step, data, want)[0], None) == 0
    calls, expected = int(Path("calls").read_text()), content(step, want)
    got, done = folder / "got", 0
    while True:
        command, whole = words(step, data, got)
        if whole:
            assert content(step, got) == expected, f"{step}: other bytes after {done} kills"
            if done == kills:
                break
            shutil.rmtree(got)
            continue
        code = run(command, draw.randint(1, calls) if done < kills else None)
        assert code in (0, -signal.SIGKILL), f"{step}: exit code {code} after {done} kills"
        done += code != 0
    print(f"{step}: {done} kills within {calls} calls")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
