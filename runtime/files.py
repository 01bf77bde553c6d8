"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from wnlb.runtime.errors import WnlbError


@contextlib.contextmanager
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
    # Named before it is made, so that an interrupt in between leaves nothing.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise WnlbError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is gone, a name that is too long: told above
            temporary.unlink()


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
