"""`report`: the table in every format, the page in a browser, what its networks see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.attacks.checkpoints import trained_network
from ulfast.attacks.snapshots import Examples
from ulfast.cli.main import group
from ulfast.grids.grid import Grid, shipped_grids
from ulfast.report import networks, page, text
from ulfast.report.collect import Verdict, collect
from ulfast.report.networks import Inspection, inspected
from ulfast.runtime.files import CHECKSUM
from ulfast.training import evaluate
from ulfast.training.refit import head_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_examples_show_what_was_trained_on(done):
    found = Examples.load(done.folder / "cells/strong/orthogonal/cnn-seed0/examples.npz")
    assert found.clean.shape == found.given.shape == found.learned.shape == (10, 32, 32, 3)
    assert not np.array_equal(found.clean, found.given)
    clean = ulfast.load_dataset("sample", limit=200)
    assert np.array_equal(found.clean[3], clean.images[np.flatnonzero(clean.labels == 3)[0]])
    assert found.classes == clean.classes


def test_tables_in_every_format(done):
    (table,) = collect([done.folder])
    assert (table.poisons, table.attacks) == (["clean", "strong"], ["none", "orthogonal", "jpeg-50"])
    row = done.row("strong", "jpeg-50")
    shown = f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"
    md = text.markdown([table])
    assert f"| strong | {md.split('| strong | ')[1].split(chr(10))[0]}" in md
    assert shown in md
    lines = text.as_csv([table]).splitlines()
    assert len(lines) == 1 + 12
    assert len(set(map(len, (line.split(",") for line in lines[1:])))) <= 2  # a title may hold a comma
    tex = text.latex([table])
    assert tex.count(r"\\") == 3
    assert shown.replace("±", r"$\pm$") in tex
    assert r"jpeg-50" in tex
    assert text._tex("a_b & 5%") == r"a\_b \& 5\%"


def test_a_finished_grid_is_read_where_its_data_is_not(done, tmp_path):
    """In another folder, or on another machine."""
    folder = tmp_path / "moved"
    shutil.copytree(done.folder, folder)
    (folder / "grid.json").write_text((folder / "grid.json").read_text().replace('"sample"', '"images/of/elsewhere"'))
    (table,) = collect([folder])
    assert table.poisons == ["clean", "strong"]
    with pytest.raises(InputError, match="there is no data set 'images/of/elsewhere'"):
        Grid.load(folder / "grid.json")


def test_verdicts():
    def sentence(none, clean, **attacks):
        return Verdict("p", none, clean, attacks).sentence().replace("\u00a0", " ")

    assert "does not poison this network" in sentence(0.60, 0.62, orthogonal=0.6)
    assert "undoes 90 % of the loss (67.0 %): it does not survive orthogonal" in sentence(0.4, 0.7, orthogonal=0.67)
    survives = sentence(0.2, 0.7, **{"orthogonal": 0.25, "iss-jpeg": 0.65})
    assert "undoes 10 % of the loss (25.0 %): it survives orthogonal" in survives
    assert "The best of those tried is iss-jpeg: 90 % (65.0 %)" in survives
    assert "partly survives" in sentence(0.2, 0.7, orthogonal=0.5)
    assert "undoes nothing" in sentence(0.2, 0.7, orthogonal=0.1)
    assert "is not known how much" in sentence(0.2, None, orthogonal=0.5)
    assert "No attack was tried" in sentence(0.2, 0.7)


def test_single_runs_join_into_one_table(tmp_path):
    clean = ulfast.load_dataset("sample", limit=200)
    poisoned, test = ulfast.poison(clean, "lsp", eps=3.0), ulfast.load_dataset("sample", split="test")
    for method in ("orthogonal", "iss-gray"):
        ulfast.attack(poisoned, test=test, method=method, compare=clean, epochs=1, out=tmp_path / method)
    (table,) = collect([tmp_path / "orthogonal", tmp_path / "iss-gray"])
    assert (table.poisons, table.attacks) == (["clean", "lsp"], ["none", "orthogonal", "iss-gray"])
    assert len(table.values["clean", "none"].entries) == 1
    assert table.verdicts()[0].clean == table.values["clean", "none"].mean
    with pytest.raises(InputError, match="holds no result"):
        collect([tmp_path])


class Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.sources: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if "src" in given:
            self.sources.append(given["src"])
        if "href" in given:
            self.targets.append(given["href"])


def test_the_page_needs_nothing_beside_it(done, tmp_path):
    source = page.render(collect([done.folder]), title="<b>mine & yours")
    assert "&lt;b&gt;mine &amp; yours" in source
    found = Page(source)
    assert len(found.ids) == len(set(found.ids))
    assert all(s.startswith("data:image/") for s in found.sources)
    for target in found.targets:
        assert target.startswith("data:") or target[1:] in found.ids, target
    assert not re.search(r"(https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"base64,[\w+/=]+", "", source.split("<pre>")[0]))
    kinds = re.findall(r"<figcaption>(.*?)</figcaption>", source)
    assert {"clean", "poisoned", "after orthogonal", "orthogonal: removed", "after jpeg-50"} <= set(kinds)


def test_the_command_line(done, tmp_path):
    def run(*words):
        return CliRunner().invoke(group, list(map(str, words)), catch_exceptions=False)

    out = tmp_path / "page.html"
    said = json.loads(run("report", done.folder, "--out", out, "--json").output)
    assert said["out"] == str(out)
    assert said["verdicts"][0]["poison"] == "strong"
    assert out.stat().st_size > 10_000
    assert run("report", done.folder, "--markdown").output.startswith("**sample, 200 images")
    assert run("report", done.folder, "--csv").output.startswith("data,model")
    listed = json.loads(run("reproduce", "--list", "--json").output)["grids"]
    assert set(listed) == set(shipped_grids())
    dry = json.loads(run("reproduce", "demo", "--dry-run", "--json").output)
    assert len(dry["cells"]) == 25
    with pytest.raises(InputError, match=r"must end in \.html"):
        run("report", done.folder, "--out", tmp_path / "page.pdf")
    with pytest.raises(InputError, match="which runs"):
        run("report")
    with pytest.raises(InputError, match="which grid"):
        run("reproduce")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_a_browser(done, tmp_path):
    """It loads without console messages, sorts by its address, and opens the linked run."""
    file = tmp_path / "page.html"
    page.write(collect([done.folder]), file)

    def load(fragment=""):
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            f"{Path(file).as_uri()}{fragment}",
        ]
        got = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in got.stderr, [line for line in got.stderr.splitlines() if "CONSOLE" in line]
        return got.stdout

    def order(dom, name):
        body = dom.split(f'data-name="{name}"')[1].split("<tbody>")[1].split("</tbody>")[0]
        return [
            float(v)
            for v in re.findall(r"<tr[^>]*>.*?(?:data-value=\"[^\"]*\".*?){3}data-value=\"([\d.]+)\"", body, re.S)
        ]

    assert "</html>" in load()
    rising = order(load("#sort=table-0-runs:3:asc"), "table-0-runs")
    assert len(rising) == 12
    assert rising == sorted(rising)
    assert order(load("#sort=table-0-runs:3:desc"), "table-0-runs") == rising[::-1]
    dom = load("#cell-strong-orthogonal-cnn-0-attack-all")
    assert re.search(r'<details id="cell-strong-orthogonal-cnn-0-attack-all" open', dom)
    shot = tmp_path / "shot.png"
    subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=390,1200",
            f"--screenshot={shot}",
            Path(file).as_uri(),
        ],
        capture_output=True,
        timeout=120,
    )
    from PIL import Image

    picture = np.asarray(Image.open(shot).convert("RGB"))
    assert picture.std() > 20  # something is drawn


def trained(folder, name="orthogonal", **options):
    """A run of an attack with both baselines."""
    clean = ulfast.load_dataset("sample", limit=200)
    test = ulfast.load_dataset("sample", split="test")
    poisoned = ulfast.poison(clean, "lsp", eps=3.0)
    ulfast.attack(poisoned, test=test, method=name, compare=clean, epochs=1, out=folder, **options)
    return folder


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory):
    """For tests that only read it."""
    return trained(tmp_path_factory.mktemp("networks") / "run")


@pytest.fixture
def run(kept_run, tmp_path):
    """For tests that change it."""
    return shutil.copytree(kept_run, tmp_path / "run")


def test_the_page_shows_what_the_networks_see(kept_run):
    (table,) = collect([kept_run])
    seen = inspected(table, Inspection())
    assert {poison: list(row) for poison, row in seen.items()} == {
        "clean": ["none"],
        "lsp": ["clean", "none", "orthogonal"],
    }
    row = seen["lsp"]
    assert all(one.points.shape == (500, 2) and one.saliency.shape == (10, 32, 32, 1) for one in row.values())
    assert np.bincount(row["none"].labels).tolist() == [50] * 10
    assert len({one.saliency.tobytes() for one in row.values()}) == 3
    assert np.array_equal(row["clean"].points, seen["clean"]["none"].points)
    source = page.render([table], networks=Inspection())
    found = Page(source)
    assert len(found.ids) == len(set(found.ids))
    assert all(s.startswith("data:image/") for s in found.sources)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", source)
    assert {"clean: looks at", "none: looks at", "orthogonal: looks at"} <= set(captions)
    accuracy = f"orthogonal: {100 * table.values['lsp', 'orthogonal'].mean:.1f} %"
    assert [c for c in captions if c.startswith(accuracy) and c.endswith("% of the variance")]
    assert source.count("PCA of each network") == 2
    bare = page.render([table])
    assert "looks at" not in bare
    assert "of each network" not in bare


def test_networks_are_seen_as_they_were_evaluated(tmp_path):
    """The weights of the chosen epoch, and the normalisation of that training: what was measured is measured again."""
    clean = ulfast.load_dataset("sample", limit=200)
    run = trained(tmp_path / "run", "early-stop", clean=clean.balanced(60))
    (table,) = collect([run])
    entries = {stage: entry for value in table.values.values() for entry in value.entries for stage in [entry.stage]}
    assert set(entries) == {"clean", "poisoned", "attack"}
    for stage, entry in entries.items():
        model, make, half = trained_network(run, entry.result, stage)
        accuracy = evaluate(model, make(ulfast.load_dataset("sample", split="test")), half)[1]
        assert accuracy == pytest.approx(entry.accuracy, abs=1e-6), stage


def test_what_is_not_there_is_left_out_of_the_page(run, monkeypatch):
    (table,) = collect([run])
    (run / "checkpoints/poisoned/last.pt").unlink()
    assert list(inspected(table, Inspection())["lsp"]) == ["clean", "orthogonal"]
    (run / "checkpoints/attack/last.pt").write_bytes(b"damaged")
    asked = Inspection()
    assert list(inspected(table, asked)["lsp"]) == ["clean"]
    assert re.search(r"last\.pt cannot be read", asked.left_out[0])
    with monkeypatch.context() as patched:  # as of a network that ends with a convolution
        patched.setattr(networks, "head_of", lambda model: head_of(torch.nn.Sequential()))
        asked = Inspection()
        assert not inspected(table, asked)["lsp"]
        assert any("has no linear layer" in reason for reason in asked.left_out)
    (run / "examples.npz").unlink()
    assert inspected(table, Inspection())["lsp"]["clean"].saliency is None
    shutil.rmtree(run / "checkpoints")
    assert inspected(table, Inspection()) == {"clean": {}, "lsp": {}}
    assert "looks at" not in page.render([table], networks=Inspection())


def test_checkpoints_of_an_older_ulfast_have_the_normalisation_of_the_attack(run):
    (table,) = collect([run])
    newer = inspected(table, Inspection())["lsp"]
    for stage in ("clean", "attack"):
        path = run / "checkpoints" / stage / "last.pt"
        content = torch.load(path, weights_only=True)
        del content["state"]["normalisation"], content[CHECKSUM]
        torch.save(content, path)
    older = inspected(table, Inspection())["lsp"]
    assert list(older) == ["none", "orthogonal"]
    assert np.array_equal(older["orthogonal"].points, newer["orthogonal"].points)


def test_a_refitted_network_is_not_shown_as_it_was_before(tmp_path):
    clean = ulfast.load_dataset("sample", limit=200)
    (table,) = collect([trained(tmp_path / "run", "linear-probe", clean=clean.balanced(60))])
    assert list(inspected(table, Inspection())["lsp"]) == ["clean", "none"]


def test_test_images_are_those_of_the_run_or_given(tmp_path, make_dataset):
    train, test = make_dataset(60, 12), make_dataset(30, 12, seed=1, split="test")
    ulfast.attack(train, test=test, method="none", epochs=1, out=tmp_path / "run")
    (table,) = collect([tmp_path / "run"])
    assert inspected(table, Inspection())["as given"]["none"].points is None
    shown = inspected(table, Inspection(test=test))["as given"]["none"]
    assert shown.points.shape == (30, 2)
    assert sorted(shown.labels) == sorted(test.labels)
    assert inspected(table, Inspection(test=test, features="none"))["as given"]["none"].points is None
    assert inspected(table, Inspection(test=test, saliency=False))["as given"]["none"].saliency is None
    with pytest.raises(InputError, match="test images differ"):
        inspected(table, Inspection(test=ulfast.load_dataset("sample", split="test")))
    many = make_dataset(130, 12, classes=13)
    ulfast.attack(many, test=many, method="none", epochs=1, out=tmp_path / "many")
    (table,) = collect([tmp_path / "many"])
    assert set(inspected(table, Inspection(test=many))["as given"]["none"].labels) == set(range(10))


@pytest.mark.slow
def test_the_options_of_the_command_line_reach_the_page(kept_run, tmp_path):
    def made(*words):
        out = tmp_path / "page.html"
        CliRunner().invoke(group, ["report", str(kept_run), "--out", str(out), *words], catch_exceptions=False)
        return out.read_text()

    assert "PCA of each network" in made()
    bare = made("--features", "none", "--no-saliency")
    assert "of each network" not in bare
    assert "looks at" not in bare
    pytest.importorskip("sklearn")
    assert "t-SNE of each network" in made("--features", "tsne", "--test", "sample", "--no-saliency")
