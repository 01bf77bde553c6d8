"""Hands damaged files to what reads them, and says of each whether it was answered as it should be."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import make_folder

SECONDS = 20  # that one file may take


@dataclass(frozen=True)
class Subject:
    """A kind of file."""

    name: str
    make: Callable[[Path], list[Path]]  # good files, written into a folder
    damage: Callable[[Path, Random], bytes]  # the content of a damaged one
    read: Callable[[Path], object]  # as a command does


@dataclass(frozen=True)
class Fault:
    """One damaged file that was not answered as it should be."""

    subject: str
    number: int
    what: str


def run_subject(subject: Subject, count: int, seed: int, keep: Path | None) -> Iterator[tuple[str, Fault | None]]:
    """For each damaged file "read", "refused" or "fault"; what a fault was."""
    with tempfile.TemporaryDirectory() as name:
        good = subject.make(_sub(Path(name), "good"))
        for path in good:
            subject.read(path)  # else nothing would be tested
        for number in range(count):
            rng = Random(f"{seed} {subject.name} {number}")
            folder = _sub(Path(name), "damaged")
            pristine = rng.choice(good)
            _copy_beside(pristine, folder)
            path = folder / pristine.name
            path.write_bytes(subject.damage(pristine, rng))
            before = sorted(folder.rglob("*"))
            state, what = _outcome(subject, path)
            left = sorted(set(folder.rglob("*")) - set(before))
            if state != "fault" and left:
                state, what = "fault", f"left {left[0].name} behind"
            if state == "fault" and keep:
                make_folder(keep)
                shutil.copy(path, keep / f"{subject.name}-{number}{path.suffix}")
            yield state, Fault(subject.name, number, what) if state == "fault" else None
            shutil.rmtree(folder)


def _copy_beside(path: Path, folder: Path) -> None:
    """What lies beside a file, but not the file, which may be large."""

    def ignored(where: str, _: list[str]) -> list[str]:
        return [path.name] if Path(where) == path.parent else []

    shutil.copytree(path.parent, folder, dirs_exist_ok=True, ignore=ignored)


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def _outcome(subject: Subject, path: Path) -> tuple[str, str]:
    try:
        with _time_limit(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            subject.read(path)
    except WnlbError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000 or not text.strip():
            return "fault", f"an error that is not one line: {text[:300]!r}"
        return "refused", ""
    except BaseException as error:  # whatever it is, nothing but a WnlbError may come out
        if isinstance(error, KeyboardInterrupt):
            raise
        return "fault", f"{type(error).__name__}: {error} at {_where(error)}"
    return "read", ""


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/running.py" not in frame.filename]
    ours = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename] or frames
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[-2:])


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not answered within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
