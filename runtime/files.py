"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from wnlb.runtime.errors import WnlbError

# What every other file of this output meets as well.
_ENDS_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.EMFILE, errno.ENFILE)
_STEM = 40  # characters of a name that its temporary file shows: a name may be as long as the file system allows


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends without an error.

    Raises:
        WnlbError: the folder does not exist, cannot be written, or the disk is full.
    """
    target = Path(target)
    # Named before it is made, so that an interrupt in between leaves nothing.
    temporary = target.with_name(f".{target.stem[:_STEM]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        if target.is_dir():
            raise WnlbError(f"{target} is a folder; expected the name of a file to write")
        if not target.parent.is_dir():
            raise WnlbError(f"folder {target.parent} does not exist; create it or choose another output")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise WnlbError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is gone, a name that is too long: told above
            temporary.unlink()


def check_output(path: Path, suffix: str, *sources: Path) -> None:
    """Refuse, before work begins, a file that cannot be written or would replace one that it is made from.

    Raises:
        WnlbError: it has another suffix, is a folder or one of ``sources``, or its folder is not there or not writable.
    """
    if path.suffix != suffix:
        raise WnlbError(f"output {path} has the suffix {path.suffix!r}; expected {suffix}")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise WnlbError(f"output {path} is what it would be made from, which would be lost; choose another name")
    with contextlib.suppress(_Checked), atomic_path(path):
        raise _Checked


class _Checked(Exception):
    """Ends a trial of ``atomic_path``, so that nothing is left of it."""


def ends_all(error: WnlbError) -> bool:
    """Whether a failure of ``atomic_path`` or ``make_folder`` is one of the disk, not of this file alone."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _ENDS_ALL


def name_for_opencv(path: Path | str) -> str:
    """A path as text. Raises WnlbError where it is not UTF-8: OpenCV's videos would end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise WnlbError(f"video {shown} has a name that is not UTF-8; rename it or its folder") from error
    return str(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises WnlbError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), folder)
        raise WnlbError(f"folder {folder} cannot be made: {file} is a file; choose another") from error
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
