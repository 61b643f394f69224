"""The site builds without a warning and needs no network to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself, by tag and attribute.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


class Assets(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in FETCHED:
            self.found.append(dict(attrs).get(FETCHED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text())
        assert len(assets.found) > 3
        for target in assets.found:
            assert not re.match(r"(https?:)?//", target), f"{page.name}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style.name


@pytest.mark.slow
def test_the_reference_is_complete(site):
    import ulfast
    from ulfast.attacks import ATTACKS
    from ulfast.cli.main import VERBS
    from ulfast.ops import schemas
    from ulfast.poisons import POISONS

    def ids(page):
        return set(re.findall(r'id="([^"]+)"', (site / "reference" / page).read_text()))

    assert {f"ulfast-{name}" for name in VERBS} <= ids("cli.html")
    assert "ulfast-data-export" in ids("cli.html")
    assert {f"ulfast.ops.schemas.{name}" for name in schemas.__all__} <= ids("operators.html")
    assert {name.replace("+", "") for name in POISONS} <= ids("poisons.html")
    assert set(ATTACKS) <= ids("attacks.html")
    page = (site / "reference" / "api.html").read_text()
    for name in ulfast._HOME:
        assert re.search(rf'id="ulfast\.(\w+\.)*{name}"', page), name


@pytest.mark.slow
def test_tables_and_code_are_rendered(site):
    """A table between comments is one, and no Markdown is left over."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        assert "|---" not in text, page.name
        assert "](" not in text, page.name
