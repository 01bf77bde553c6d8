"""Single fields of a label file: their values where they are right, one line where they are not."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.calibration.labels.labels import Id
from wnlb.runtime.errors import WnlbError

_SHOWN = 60  # characters of a value in a message
_PLURALS = {"category": "categories"}


class Notes:
    """What was odd and read all the same, counted by kind."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}
        self._said: list[str] = []

    def add(self, noun: str, what: str, place: str) -> None:
        self._found.setdefault((noun, what), []).append(place)

    def say(self, line: str) -> None:
        """What is of the whole file."""
        self._said.append(line)

    def lines(self) -> tuple[str, ...]:
        """``41 annotations: flat polygon read as a polygon (the first: annotation 3 (id 9))`` and the like."""
        counted = []
        for (noun, what), places in self._found.items():
            nouns = noun if len(places) == 1 else _PLURALS.get(noun, f"{noun}s")
            counted.append(f"{len(places)} {nouns}: {what} (the first: {places[0]})")
        return (*counted, *self._said)


@dataclass(frozen=True)
class Entry:
    """One object of a label file.

    Args:
        file: for messages.
        noun: image, category or annotation.
        number: its place in the file, from 1 up.
        fields: as the file has them.
        notes: where oddities go that are read all the same.
    """

    file: Path
    noun: str
    number: int
    fields: dict[str, Any]
    notes: Notes

    @property
    def place(self) -> str:
        """``annotation 12 (id 7)``."""
        return f"{self.noun} {self.number}" + (f" (id {shown(self.fields['id'])})" if "id" in self.fields else "")

    def note(self, what: str) -> None:
        self.notes.add(self.noun, what, self.place)

    def wrong(self, field: str, expected: str, hint: str = "") -> WnlbError:
        """The error of a field: what it is, what was expected and what to do."""
        got = f"{field} is {shown(self.fields[field])}" if field in self.fields else f"{field} is missing"
        return self.refused(f"{got}; expected {expected}", hint)

    def refused(self, what: str, hint: str = "") -> WnlbError:
        what_to_do = hint or f"correct it, or leave the {self.noun} out"
        return WnlbError(f"annotations {self.file}: {self.place}: {what}; {what_to_do}")

    def identity(self, field: str) -> Id:
        value = identity(self.fields.get(field))
        if value is None:
            raise self.wrong(field, "a whole number or a text")
        return value

    def reference(self, field: str, known: Mapping[Id, Id], where: str) -> Id:
        """The id in the list ``where`` that a field names; 3, 3.0 and "3" are one unless the list has two of them."""
        value = self.identity(field)
        if value in known:
            return known[value]
        other = str(value) if isinstance(value, int) else int(value) if value.isdecimal() and len(value) < 20 else value
        if other not in known:
            raise self.refused(
                f"{field} is {shown(value)}, which {where} of the file do not list; expected one of theirs"
            )
        self.note(f"{field} is a number in one place and a text in another")
        return known[other]

    def size(self, field: str, limit: int) -> int:
        """A length in pixels."""
        value = number(self.fields.get(field))
        if value is None or value != int(value) or not 1 <= value <= limit:
            raise self.wrong(field, f"a whole number of pixels from 1 to {limit}")
        if not isinstance(self.fields[field], int):
            self.note(f"{field} is not written as a whole number")
        return int(value)

    def text(self, field: str) -> str:
        """A text of one line, without blanks around it."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip() or not _is_plain(value.strip()):
            raise self.wrong(field, "a text of one line")
        if value != value.strip():
            self.note(f"blanks around {field}, left out")
        return value.strip()

    def numbers(self, field: str) -> list[float] | None:
        """A list of finite numbers; None where it is anything else."""
        value = self.fields.get(field)
        found = numbers(value)
        if found is not None and any(isinstance(item, str) for item in value or ()):
            self.note(f"{field} holds numbers written as texts")
        return found

    def extra(self, *read: str) -> dict[str, Any]:
        """The fields that nobody reads."""
        return {key: value for key, value in self.fields.items() if key not in read}


def identity(value: Any) -> Id | None:
    """An id as Python compares it; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, int) or (isinstance(value, str) and value and _is_plain(value)) else None


def number(value: Any) -> float | None:
    """A finite number, also one that is written as a text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(value: Any) -> list[float] | None:
    """Finite numbers of a list; None where it holds anything else, or is none."""
    if not isinstance(value, list):
        return None
    found = [item for item in map(number, value) if item is not None]
    return found if len(found) == len(value) else None


def shown(value: Any) -> str:
    """A value in a message: one line, not too long."""
    text = ascii(value) if isinstance(value, str) and not _is_plain(value) else _short(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return repr(value[:_SHOWN])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4000:
        return "a number of more than 1000 digits"  # Python refuses to write it
    try:
        return repr(value)
    except (ValueError, RecursionError):  # such a number, or a structure too deep, inside
        return f"a {type(value).__name__}"


def _is_plain(text: str) -> bool:
    """Whether it can be printed and written: no line breaks, no control characters, no halves of characters."""
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
