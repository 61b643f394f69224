"""Downloads from a server that does everything wrong."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ulfast.data.download

from .forks import Fork, forked
from .tally import End, draws

CONTENT = bytes(range(256)) * 1200
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `faults` say, one a request; well when none is left."""

    def log_message(self, *_: object) -> None:
        return None

    def do_GET(self) -> None:
        faults = self.server.faults  # type: ignore[attr-defined]
        if self.path.startswith("/faults/"):
            faults[:] = [word.replace("-", " ") for word in self.path.removeprefix("/faults/").split(",") if word]
            self.send_response(200)
            self.end_headers()
            return
        fault = faults.pop(0) if faults else "none"
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no ranges" else 0
        body = CONTENT[start:]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fault in ("500", "404", "416"):
                self.send_error(int(fault))
                return
            if fault == "closed":
                self.connection.close()
                return
            self.send_response(206 if start else 200)
            length = len(body)
            if fault == "wrong length":
                length += 1000
            if fault == "too long":
                body += b"more"
                length += 4
            if fault == "garbage":
                body = bytes(255 - v for v in body)
            if fault == "wrong range" and start:
                body = CONTENT[: len(body)]
            if fault == "cut":
                body = body[: len(body) // 2]
            if fault != "no length":
                self.send_header("Content-Length", str(length))
            self.end_headers()
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                if fault == "slow":
                    time.sleep(0.02)


FAULTS = ["none", "no ranges", "500", "404", "416", "closed", "wrong length", "too long", "garbage", "wrong range"]
FAULTS += ["cut", "slow", "no length"]


class Downloads:
    """Two processes download from a bad server, and may be killed: what has the name is whole, and a good one heals."""

    def __init__(self, folder: Path, seed: int) -> None:
        import requests

        self._seed = seed

        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
        server.faults = []  # type: ignore[attr-defined]
        self._server, parent = os.fork(), os.getppid()
        if not self._server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            while os.getppid() == parent:  # until the campaign is over
                time.sleep(0.2)
            os._exit(0)
        self._get, self.folder = requests.get, folder / "downloads"
        self.url = f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)

    def ends(self, numbers: Iterator[int]) -> Iterator[End]:
        for number in numbers:
            end, finding = self._attempt(draws(self._seed, "downloads", number))
            yield End(number, end, finding)

    def _attempt(self, draw: random.Random) -> tuple[str, str | None]:
        shutil.rmtree(self.folder, ignore_errors=True)
        faults = [draw.choice(FAULTS) for _ in range(draw.randrange(1, 5))]
        told = ", ".join(faults)
        self._get(f"{self.url}/faults/{','.join(fault.replace(' ', '-') for fault in faults)}", timeout=10)
        file = self.folder / "x.bin"
        kill = draw.random() * 0.2 if draw.random() < 0.3 else None

        def work() -> str:
            if kill is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, 0.01 + kill)
            ulfast.data.download.download(f"{self.url}/x.bin", self.folder, SHA256)
            return "whole" if file.read_bytes() == CONTENT else "not whole under its name"

        forks = [Fork(work, seconds=60) for _ in range(2)]
        while sum(fork.running() for fork in forks):
            if file.exists() and file.read_bytes() != CONTENT:
                return "finding", f"{told}: the file under its name is not whole"
            time.sleep(0.002)
        ends = [fork.said for fork in forks]
        if other := set(ends) - {"whole", "InputError", "killed by SIGALRM"}:
            return "finding", f"{told}: {other}"
        self._get(f"{self.url}/faults/", timeout=10)
        kill = None
        if "whole" not in (last := [forked(work, seconds=60) for _ in range(2)]):
            return "finding", f"{told}: then a good server: {last}"
        if (names := [f.name for f in self.folder.iterdir()]) != ["x.bin"]:
            return "finding", f"{told}: left behind {names}"
        return " and ".join(sorted(ends)), None
