"""Models that are not there yet, made by the commands that a user would type, and kept as long as nothing changed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import pty
import shlex
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder, sha256_of

RECORD = "made.json"


@dataclass(frozen=True)
class Made:
    """How a file came about."""

    key: str  # hash of the command, of what it read, and of this tool's version
    sha256: str  # of the file
    command: str
    seconds: float


class Maker:
    """Makes files in a folder by ``wnlb`` commands, each in a process of its own: a crash costs one file.

    A file is made again where the command, one of its inputs, the tool's version or the file itself has changed.

    Args:
        quiet: shows nothing. Else the commands are shown on standard error, and their progress where it is a terminal.
    """

    def __init__(self, folder: Path, quiet: bool) -> None:
        make_folder(folder)
        self.folder, self._quiet = folder, quiet
        self.made = self._read_record()

    def make(self, name: str, words: Sequence[str | Path], inputs: Sequence[Path | str]) -> Path:
        """The file ``name``, by ``wnlb WORDS -o FILE``.

        Args:
            inputs: files and folders that the command reads, and words that its result depends on.

        Raises:
            WnlbError: the command failed; its own message.
        """
        path, key = self.folder / name, _key(words, inputs)
        if not self._is_there(path, key):
            self._run([*words, "-o", path], path, key)
        return path

    def tell(self, name: str, words: Sequence[str | Path], inputs: Sequence[Path | str]) -> Any:
        """As ``make``, for a command that prints JSON: what it printed, kept as the file ``name``."""
        path, key = self.folder / name, _key(words, inputs)
        if not self._is_there(path, key):
            self._run(words, path, key, keep_output=True)
        return json.loads(path.read_text())

    def _is_there(self, path: Path, key: str) -> bool:
        made = self.made.get(path.name)
        return made is not None and path.is_file() and made.key == key and made.sha256 == sha256_of(path)

    def _run(self, words: Sequence[str | Path], path: Path, key: str, keep_output: bool = False) -> None:
        """Run the command that makes ``path``, and write down how."""
        command = shlex.join(["wnlb", *map(str, words)])
        if not self._quiet:
            print(f"+ {command}", file=sys.stderr)
        started = time.perf_counter()
        output = run_wnlb([*map(str, words)], self._quiet)
        seconds = round(time.perf_counter() - started, 1)
        if keep_output:
            with atomic_path(path) as temporary:
                temporary.write_text(output)
        self.made[path.name] = Made(key, sha256_of(path), command, seconds)
        with atomic_path(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps({name: asdict(made) for name, made in self.made.items()}, indent=1) + "\n")

    def _read_record(self) -> dict[str, Made]:
        try:
            return {str(name): Made(**entry) for name, entry in json.loads((self.folder / RECORD).read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):  # not there, or not ours: everything is made again
            return {}


def run_wnlb(words: Sequence[str], quiet: bool = False) -> str:
    """What ``wnlb WORDS`` prints.

    Raises:
        WnlbError: it failed; the last line that it said.
    """
    command = [sys.executable, "-m", "wnlb.runtime.cli", *words]
    show = not quiet and sys.stderr.isatty()
    with tempfile.TemporaryFile("w+") as output:
        ours, theirs = pty.openpty() if show else os.pipe()  # in a terminal of its own it shows progress bars
        try:
            if show:
                fcntl.ioctl(theirs, termios.TIOCSWINSZ, fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8)))
            process = subprocess.Popen(command, stdout=output, stderr=theirs, stdin=subprocess.DEVNULL)
        finally:
            os.close(theirs)
        try:
            said = _forwarded(ours, show)
            code = process.wait()
        finally:
            os.close(ours)
            process.kill()
            process.wait()
        output.seek(0)
        printed = output.read()
    if code == 0:
        return printed
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    reason = lines[-1] if lines else f"'wnlb {words[0]}' ended with {code} and said nothing"
    raise WnlbError(reason.removeprefix(f"wnlb {words[0]}: error: "))


def _forwarded(descriptor: int, show: bool) -> str:
    """The end of what comes, until the other side closes; shown while it comes."""
    tail = b""
    with contextlib.suppress(OSError):  # how a closed terminal ends
        while data := os.read(descriptor, 4096):
            tail = (tail + data)[-8192:]
            if show:
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
    return tail.decode(errors="replace")


def _key(words: Sequence[str | Path], inputs: Sequence[Path | str]) -> str:
    states = [_state(entry) for entry in inputs]
    version = importlib.metadata.version("wnlb-deploy")
    return hashlib.sha256(json.dumps([[*map(str, words)], states, version]).encode()).hexdigest()


def _state(entry: Path | str) -> Any:
    """Something that changes when the file changes, or a file of the folder or pattern."""
    path = Path(entry)
    if path.is_file():
        return sha256_of(path)
    if path.is_dir() or any(letter in "*?[" for letter in str(entry)):
        found = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(entry), recursive=True))
        files = [file for file in sorted(found) if file.is_file()]
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return str(entry)
