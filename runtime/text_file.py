"""Text files as people have them: one reader for class names, lists, key maps and JSON."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 4096  # bytes that tell a model file given by mistake from text, before gigabytes are read
_QUOTES = ("'", '"')


def read_text(path: Path | str, what: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with their mark or without a doubt; line ends become ``\\n``.

    Args:
        what: the thing that the file holds, for messages: ``class names``.

    Raises:
        WnlbError: it cannot be read, or is no text; of another encoding it names line and byte, for a guess would
            change the words without a sign.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_HEAD)
            encoding, start = _encoding(data)
            if encoding == "utf-8" and b"\0" in data:
                raise WnlbError(f"{what} {path}, line {_line(data, data.index(0))}: a NUL byte; expected a text file")
            data += file.read()
    except IsADirectoryError as error:
        raise WnlbError(f"{what} {path} cannot be read: it is a folder; expected a text file") from error
    except FileNotFoundError as error:
        raise WnlbError(f"{what} {path} cannot be read: it does not exist; expected a text file") from error
    except OSError as error:
        raise WnlbError(f"{what} {path} cannot be read: {error.strerror}") from error
    try:
        text = data[start:].decode(encoding)
    except UnicodeDecodeError as error:
        raise WnlbError(f"{what} {path}{_not_text(data, start + error.start, encoding)}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")  # marks of files put together
    if "\0" in text:
        raise WnlbError(f"{what} {path}, line {_line(text, text.index(chr(0)))}: a NUL byte; expected a text file")
    return text


def read_lines(path: Path | str, what: str) -> list[tuple[int, str]]:
    """The lines that say something, with their numbers from 1 up.

    White space around a line and quotes around the whole of it are taken off; empty lines and those that begin with
    ``#`` are left out.

    Raises:
        WnlbError: as ``read_text``.
    """
    stripped = ((number, line.strip()) for number, line in enumerate(read_text(path, what).split("\n"), 1))
    return [(number, _unquoted(line)) for number, line in stripped if line and not line.startswith("#")]


def read_json(path: Path | str, what: str) -> Any:
    """What a JSON file holds.

    Raises:
        WnlbError: as ``read_text``; or it is no JSON, with line and column.
    """
    text = read_text(path, what)
    if not text.strip():
        raise WnlbError(f"{what} {path} is empty; expected JSON")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        got = line[max(error.colno - 1, 0) :][:30] or "the end of the line"
        where = f"line {error.lineno}, column {error.colno}"
        raise WnlbError(f"{what} {path} cannot be read as JSON: {where}: {error.msg}, got {got!r}") from error
    except RecursionError as error:
        raise WnlbError(f"{what} {path} cannot be read as JSON: lists in lists without end") from error
    except ValueError as error:  # a number of thousands of digits
        raise WnlbError(f"{what} {path} cannot be read as JSON: {error}") from error


def read_names(path: Path | str, what: str = "class names") -> tuple[str, ...]:
    """Names, one a line; or a JSON list of them; or the categories of a COCO file, in the order of their ids.

    Raises:
        WnlbError: as ``read_text``; or there are none, one is there twice, or one is no name.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        numbered = list(enumerate(_json_names(read_json(path, what), path, what), 1))
        unit = "entry"
    else:
        numbered, unit = read_lines(path, what), "line"
    if not numbered:
        raise WnlbError(f"{what} {path} is empty; expected one name a line")
    seen: dict[str, int] = {}
    for number, name in numbered:
        if not name.strip() or not name.isprintable():
            raise WnlbError(f"{what} {path}, {unit} {number}: {name!r} is no name; expected one name a line")
        if name in seen:
            raise WnlbError(f"{what} {path}, {unit} {number}: {name!r} stands in {unit} {seen[name]} already")
        seen[name] = number
    return tuple(seen)


def _json_names(content: Any, path: Path, what: str) -> list[str]:
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
        if all(isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in content):
            content = [entry.get("name") for entry in sorted(content, key=lambda entry: entry["id"])]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise WnlbError(f"{what} {path} are no names; expected a list of words, or COCO's categories with id and name")
    return content


def _encoding(head: bytes) -> tuple[str, int]:
    """The encoding and the length of its mark."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    even, odd = head[0::2], head[1::2]
    if len(head) >= 4 and not any(odd) and all(even):
        return "utf-16-le", 0
    if len(head) >= 4 and not any(even) and all(odd):
        return "utf-16-be", 0
    return "utf-8", 0


def _not_text(data: bytes, position: int, encoding: str) -> str:
    """Where it is not what it should be, and what it would be in the encoding of old Windows files."""
    if encoding != "utf-8":
        return f" is no {encoding.upper()}, as its first bytes say; save it as UTF-8"
    lines = re.split(rb"\r\n|\r|\n", data)
    number = _line(data, position)
    told = f", line {number}: byte 0x{data[position]:02X} is not UTF-8"
    try:
        guess = lines[number - 1].decode("cp1252").strip()
    except UnicodeDecodeError:
        guess = ""
    if not guess.isprintable() or not guess:
        return f"{told}; expected a text file, saved as UTF-8"
    return f"{told} (as Windows-1252 the line reads {guess[:60]!r}); save the file as UTF-8: iconv -f CP1252 -t UTF-8"


def _line(content: Any, position: int) -> int:
    """The number of the line, from 1 up, of a place in bytes or text."""
    before = content[:position]
    ends: Any = (b"\r\n", b"\r", b"\n") if isinstance(content, bytes) else ("\r\n", "\r", "\n")
    return int(before.count(ends[1]) + before.count(ends[2]) - before.count(ends[0])) + 1


def _unquoted(line: str) -> str:
    line = line[:-1].rstrip() if line.endswith(("',", '",')) else line  # as copied out of a list
    quoted = len(line) > 1 and line[0] in _QUOTES and line[-1] == line[0] and line[0] not in line[1:-1]
    return line[1:-1].strip() if quoted else line
