"""The walk over a folder of images: what is read, and what is left out and counted by kind."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
SUFFIXES |= {".tif", ".tiff"}
# What file managers, archives and network drives leave behind, at any depth, besides all hidden files.
TOOLS = {"__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__pycache__"}
TOOLS |= {"system volume information", "thumbs.db", "desktop.ini"}


def suffixes() -> set[str]:
    """Suffixes of the images that are read, in lower case; AVIF if Pillow supports it."""
    from PIL import features

    return SUFFIXES | ({".avif"} if features.check("avif") else set())


@dataclass
class Walk:
    """Walks the folders below `root` and counts what it leaves out in `left`, by kind.

    Links to files and to folders elsewhere are followed. A link to a parent folder or to a folder of the same set is
    left out: it would give images to a class that they do not belong to.
    """

    root: Path
    left: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._root = Path(os.path.realpath(self.root))
        self._seen: set[tuple[int, int]] = set()
        self._suffixes = suffixes()

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Subfolders and images of one folder, sorted by name.

        Raises:
            InputError: the folder is not readable.
        """
        folders, images = [], []
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror}): make it readable or remove it") from None
        for entry in found:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.lower() in TOOLS:
                self.left["hidden or left by a tool"] += 1
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                self.left["broken links"] += 1
                continue
            if stat.S_ISDIR(mode):
                if not entry.is_symlink() or self._follow(folder, path):
                    folders.append(path)
            elif not stat.S_ISREG(mode):
                self.left["pipes, sockets and devices"] += 1
            elif path.suffix.lower() in self._suffixes:
                images.append(path)
            else:
                self.left[f"{path.suffix.lower()} files" if path.suffix else "files without a suffix"] += 1
        return folders, images

    def _follow(self, folder: Path, link: Path) -> bool:
        target, here = Path(os.path.realpath(link)), Path(os.path.realpath(folder))
        above = (here, *here.parents, *self._root.parents)
        if target in above:
            self.left["links to a folder above"] += 1
            return False
        if self._root in target.parents:
            self.left["links to a folder of the same set"] += 1
            return False
        self.left["links to a folder elsewhere, followed"] += 1
        return True

    def below(self, folder: Path) -> list[Path]:
        """All images in a folder and its subfolders, those of the folder itself first."""
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in self._seen:
            self.left["links to a folder read already"] += 1
            return []
        self._seen.add((about.st_dev, about.st_ino))
        folders, images = self.entries(folder)
        for sub in folders:
            images += self.below(sub)
        return images
