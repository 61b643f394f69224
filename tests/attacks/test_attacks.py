from __future__ import annotations

import json

import numpy as np
import pytest

import ulfast
from ulfast import InputError
from ulfast.attacks import ATTACKS, get_attack
from ulfast.data import load_dataset
from ulfast.report import pictures, tables


@pytest.fixture(scope="module")
def data(bars):
    return bars(900, 300, 40)


OPTIONS = {"model": "cnn", "epochs": 6, "seed": 1}


def test_none_fails_and_orthogonal_recovers(data):
    clean, poisoned, test = data
    result = ulfast.attack(poisoned, test=test, compare=clean, **OPTIONS)
    assert result.baselines["clean"] > 0.9
    assert result.baselines["poisoned"] < 0.7
    assert result.test_accuracy > 0.9
    assert (result.method, result.poison, result.model) == ("orthogonal", "lsp", "cnn")
    assert result.notes["rank"] == 2
    assert result.notes["fit_accuracy"] > 0.99


def test_the_result_is_written_and_json_serialisable(tmp_path, data):
    _, poisoned, test = data
    result = ulfast.attack(poisoned, test=test, out=tmp_path / "run", limit=300, compare=True, **OPTIONS)
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content == json.loads(json.dumps(result.to_dict()))
    wanted = {
        "method",
        "poison",
        "model",
        "recipe",
        "seed",
        "train_accuracy",
        "test_accuracy",
        "baselines",
        "history",
        "seconds",
        "images_per_second",
        "config",
        "environment",
    }
    assert wanted <= set(content)
    assert set(content["seconds"]) == {"fit", "project", "train", "evaluate"}
    assert set(content["baselines"]) == {"poisoned"}
    assert len(content["history"]) == 6
    assert content["config"]["data"]["images"] == 300
    lines = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 6
    assert ulfast.Basis.load(tmp_path / "run" / "basis.safetensors").rank == 2
    assert ulfast.AttackResult.load(tmp_path / "run").to_dict() == content
    table = tables.attack_table(result)
    assert table.row_count == 2
    pictures.save(pictures.attack_figure(result, poisoned.classes), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_result(data):
    _, poisoned, test = data
    a, b = (ulfast.attack(poisoned, test=test, limit=300, **OPTIONS | {"epochs": 2}) for _ in range(2))
    assert [row["test_loss"] for row in a.history] == [row["test_loss"] for row in b.history]


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, data):
    _, poisoned, test = data
    options = OPTIONS | {"epochs": 3, "limit": 300, "compare": True, "test": test}
    whole = ulfast.attack(poisoned, **options)

    def stop(stage, done, total, **_):
        if stage == "attack" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ulfast.attack(poisoned, out=tmp_path / "run", progress=stop, **options)
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(InputError, match="--overwrite"):
        ulfast.attack(poisoned, out=tmp_path / "run", **options)
    resumed = ulfast.attack(poisoned, out=tmp_path / "run", resume=True, **options)
    assert resumed.baselines == whole.baselines
    assert [row["test_loss"] for row in resumed.history] == [row["test_loss"] for row in whole.history]


def test_materialize_trains_from_the_written_set(tmp_path, data):
    _, poisoned, test = data
    options = OPTIONS | {"epochs": 3, "limit": 300, "test": test}
    direct = ulfast.attack(poisoned, **options)
    written = ulfast.attack(poisoned, out=tmp_path / "run", materialize=True, **options)
    images = np.load(tmp_path / "run" / "projected" / "images-00000.npy")
    assert images.shape == (300, 12, 12, 3)
    rows = written.basis.rows.numpy()
    assert np.abs(images.reshape(300, -1).astype(np.float32) @ rows.T).max() < 0.05
    assert written.test_accuracy == pytest.approx(direct.test_accuracy, abs=0.05)
    assert written.seconds["project"] > 0


def test_a_given_basis_is_used_and_checked(data):
    _, poisoned, test = data
    basis = ulfast.fit_basis(poisoned, steps=50)
    result = ulfast.attack(poisoned, test=test, basis=basis, limit=300, **OPTIONS | {"epochs": 1})
    assert result.basis is basis
    small = load_dataset("sample", limit=20)
    with pytest.raises(InputError, match="the basis is for images of shape"):
        ulfast.attack(small, test=small, basis=basis, epochs=1)


def test_projecting_the_test_images_changes_them(data):
    _, poisoned, test = data
    options = OPTIONS | {"epochs": 2, "limit": 300, "test": test}
    losses = {ulfast.attack(poisoned, project_test=p, **options).history[-1]["test_loss"] for p in (False, True)}
    assert len(losses) == 2


def test_the_papers_fit_and_names(data):
    _, poisoned, test = data
    options = OPTIONS | {"epochs": 1, "limit": 300, "test": test}
    result = ulfast.attack(poisoned, method="OP", init="torch", fit_epochs=2, **options)
    assert result.method == "orthogonal"
    assert result.config["parameters"]["OrthogonalProjection"]["init"] == "torch"
    assert result.notes["rank"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ortogonal"}, "did you mean 'orthogonal'"),
        ({"method": "none+orthogonal"}, "leave it out"),
        ({"method": "orthogonal+orthogonal"}, "name it once"),
        ({"method": "none", "init": "torch"}, "none has no parameter 'init': it takes none"),
        ({"init": "ones"}, "init must be one of zero, torch"),
        ({"fit_steps": 0}, "fit_steps must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"device": "tpu"}, "unknown device"),
        ({"materialize": True}, "give --out"),
        ({"model": "vgg"}, "unknown model"),
        ({"limit": 2}, "less than one image"),
    ],
)
def test_wrong_input(data, change, message):
    _, poisoned, test = data
    with pytest.raises(InputError, match=message):
        ulfast.attack(poisoned, test=test, **OPTIONS | {"epochs": 1} | change)


def test_data_that_does_not_fit(data):
    _, poisoned, _ = data
    with pytest.raises(InputError, match="give the clean test images"):
        ulfast.attack(poisoned)
    with pytest.raises(InputError, match="training images and test images differ"):
        ulfast.attack(poisoned, test=load_dataset("sample", split="test"))


def test_overwrite_touches_only_runs(tmp_path, data):
    _, poisoned, test = data
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="no manifest of ulfast"):
        ulfast.attack(poisoned, test=test, out=tmp_path / "thesis", overwrite=True, **OPTIONS)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_every_attack_says_what_it_is():
    for name, attack in ATTACKS.items():
        assert attack.summary
        assert get_attack(name.upper())[0] == name
        for alias in attack.aliases:
            assert get_attack(alias)[0] == name
