"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wnlb.runtime.errors import WnlbError


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends without an error.

    Raises:
        WnlbError: the folder does not exist, cannot be written, or the disk is full.
    """
    target = Path(target)
    if target.is_dir():
        raise WnlbError(f"{target} is a folder; expected the name of a file to write")
    if not target.parent.is_dir():
        raise WnlbError(f"folder {target.parent} does not exist; create it or choose another output")
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise WnlbError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises WnlbError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WnlbError(f"folder {folder} cannot be made: {error.strerror}") from error


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
