"""The text of a configuration file, and of those that it builds on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wnlb.runtime.errors import CheckpointError, WnlbError
from wnlb.runtime.text_file import read_text

MAX_BASES = 32  # files that stand behind one another


@dataclass(frozen=True)
class ConfigKind:
    """How a framework writes its configurations."""

    framework: str
    suffixes: tuple[str, ...]
    base: str  # the entry that names the files which one builds on
    advice: str  # what to do where one of those cannot be read


def config_text(path: Path, kind: ConfigKind, behind: tuple[Path, ...]) -> str:
    """The text of a configuration; ``behind`` are files that build on it, resolved, the outermost first.

    Raises:
        CheckpointError: it has another suffix, is no text or not there, or builds on itself.
    """
    if path.suffix not in kind.suffixes:
        expected = f"expected {' or '.join(kind.suffixes)} for {kind.framework}"
        raise CheckpointError(f"configuration {path} has the ending {path.suffix!r}; {expected}")
    try:
        resolved = path.resolve()
        if resolved not in behind and len(behind) < MAX_BASES:
            return read_text(path, "configuration")
    except (WnlbError, OSError, ValueError, RuntimeError) as error:  # links in a circle, a name that no system knows
        reason = str(error) if isinstance(error, WnlbError) else f"configuration {path} cannot be read: {error}"
        why = f"; {behind[-1]} builds on it: {kind.advice}" if behind else ""
        raise CheckpointError(f"{reason}{why}") from error
    raise CheckpointError(f"configuration {path} is among its own {kind.base} files; expected files in one direction")
