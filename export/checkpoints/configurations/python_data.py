"""Python configuration files read as data: parsed, never run.

What is understood: ``name = value``; numbers, text, lists, tuples and dictionaries; ``dict(...)``, ``list(...)``,
``tuple(...)`` and ``range(...)``; names given earlier, ``name.entry`` and ``name[entry]``; ``+ - * / // % **`` of
numbers, ``+`` of text and lists, ``*`` of a list and a number; ``_base_`` files, ``{{_base_.name}}`` and
``{{ fileDirname }}`` and its kin.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.configurations.config_file import ConfigKind, config_text
from wnlb.export.checkpoints.configurations.setting_checks import is_number, shown
from wnlb.runtime.errors import CheckpointError

BASE, DELETE = "_base_", "_delete_"
MAX_TEXT = 4_000_000  # characters of a file
MAX_ITEMS = 100_000  # of text or of a list that a sum or product makes
ADVICE = (
    "configurations are read as data and never run; give the whole one, which training writes into its work folder "
    "(mmdetection: or tools/misc/print_config.py)"
)
_KIND = ConfigKind("mmdetection", (".py",), BASE, ADVICE)
_NUMERIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
_NAMES = {"inf": float("inf"), "nan": float("nan")}  # as a printed configuration has them


def data_from_file(path: Path) -> dict[str, Any]:
    """The variables of a configuration file, over those of its ``_base_`` files.

    Raises:
        CheckpointError: it cannot be read, or holds more than data; the message names file and line.
    """
    return _guarded(lambda: _from_file(path, ()), str(path))


def data_from_text(text: str, source: str) -> dict[str, Any]:
    """The variables of a configuration that a checkpoint holds; it may name no ``_base_``: checkpoints open no files.

    Raises:
        CheckpointError: it holds more than data; the message names ``source`` and the line.
    """
    return _guarded(lambda: _Reader(text, source, None, ()).variables, source)


def merged(base: Mapping[str, Any], over: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``over`` on ``base`` as mmengine merges: dictionaries entry by entry, unless one says ``_delete_=True``.

    Raises:
        CheckpointError: a dictionary meets a value that is none.
    """
    result = dict(base)
    for name, value in over.items():
        if isinstance(value, dict) and name in base and not value.get(DELETE, False):
            if not isinstance(base[name], dict):
                raise CheckpointError(
                    f"{source}: {name} is a dictionary, but {shown(base[name])} in the file that {BASE} names; "
                    f"expected {DELETE}=True in it if it is to be replaced"
                )
            result[name] = merged(base[name], value, source)
        else:
            result[name] = _without_marks(value)
    return result


def _without_marks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_marks(inner) for name, inner in value.items() if name != DELETE}


def _guarded(read: Callable[[], dict[str, Any]], source: str) -> dict[str, Any]:
    try:
        return read()
    except (RecursionError, MemoryError) as error:
        raise CheckpointError(f"{source} is nested too deeply to be a configuration") from error


def _from_file(path: Path, behind: tuple[Path, ...]) -> dict[str, Any]:
    return _Reader(config_text(path, _KIND, behind), str(path), path, behind).variables


class _Reader:
    """The statements of one file, in their order."""

    def __init__(self, text: str, source: str, path: Path | None, behind: tuple[Path, ...]) -> None:
        self.source, self.path, self.behind = source, path, behind
        if len(text) > MAX_TEXT:
            raise CheckpointError(
                f"{source} has {len(text)} characters; expected a configuration of at most {MAX_TEXT}"
            )
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            reason = error.msg if isinstance(error, SyntaxError) else "it is no text"
            raise CheckpointError(f"{source}{line} is no Python configuration: {reason}") from error
        self.base: dict[str, Any] = {}
        own: dict[str, Any] = {}
        self.scope = own
        for statement in tree.body:
            self._statement(statement, own)
        self.variables = merged(self.base, own, source)

    def _statement(self, node: ast.stmt, own: dict[str, Any]) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return  # a docstring
        if isinstance(node, ast.Pass):
            return
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets: list[ast.expr] = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            raise self._error(node, f"has {_described(node)}")
        value = self._value(node.value)  # type: ignore[arg-type]
        for target in targets:
            if not isinstance(target, ast.Name):
                raise self._error(node, "sets a part of a value")
            if target.id == BASE:
                self._read_bases(value, node)
            else:
                own[target.id] = value

    def _read_bases(self, value: Any, node: ast.AST) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise self._error(node, f"has {BASE} = {shown(value)}; expected names of files")
        for name in names:
            if self.path is None:
                raise self._error(node, f"names the file {name}, and checkpoints open no files")
            if "::" in name:
                raise self._error(node, f"names {name}, a file of an installed package")
            base = _from_file(self.path.parent / name, (*self.behind, self.path.resolve()))
            twice = sorted(base.keys() & self.base.keys())
            if twice:
                raise self._error(node, f"has two {BASE} files that set {twice[0]}")
            self.base.update(base)

    def _value(self, node: ast.expr) -> Any:
        reader = getattr(self, f"_{type(node).__name__.lower()}", None)
        if reader is None:
            raise self._error(node, f"has {_described(node)}")
        return reader(node)

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str) and self.path is not None and "{{" in node.value:
            return self._placed(node.value)
        return node.value

    def _placed(self, text: str) -> str:
        """Text with the places of this file in it."""
        path = self.path or Path()
        places = {
            "fileDirname": str(path.parent),
            "fileBasename": path.name,
            "fileBasenameNoExtension": path.stem,
            "fileExtname": path.suffix,
        }
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: places.get(found[1], found[0]), text)

    def _list(self, node: ast.List) -> list[Any]:
        return [item for element in node.elts for item in self._items(element)]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(item for element in node.elts for item in self._items(element))

    def _items(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.Starred):
            return [self._value(node)]
        value = self._value(node.value)
        if not isinstance(value, (list, tuple)):
            raise self._error(node, f"unpacks {shown(value)}")
        return list(value)

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            result.update(self._mapping(value) if key is None else {self._key(key): self._value(value)})
        return result

    def _key(self, node: ast.expr) -> Any:
        key = self._value(node)
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise self._error(node, f"has the key {shown(key)}")
        return key

    def _mapping(self, node: ast.expr) -> dict[Any, Any]:
        value = self._value(node)
        if not isinstance(value, dict):
            raise self._error(node, f"takes {shown(value)} as a dictionary")
        return value

    def _set(self, node: ast.Set) -> Any:
        """``{{_base_.name}}``, which Python reads as a set in a set."""
        inner = node.elts[0]
        if len(node.elts) == 1 and isinstance(inner, ast.Set) and len(inner.elts) == 1:
            return self._value(inner.elts[0])
        raise self._error(node, "has a set")

    def _name(self, node: ast.Name) -> Any:
        if node.id == BASE:
            return self.base
        for names in (self.scope, _NAMES):
            if node.id in names:
                return names[node.id]
        raise self._error(node, f"uses {node.id}, which it has not given a value")

    def _attribute(self, node: ast.Attribute) -> Any:
        return self._entry(node, self._value(node.value), node.attr)

    def _subscript(self, node: ast.Subscript) -> Any:
        return self._entry(node, self._value(node.value), self._value(node.slice))

    def _entry(self, node: ast.expr, whole: Any, key: Any) -> Any:
        try:
            if isinstance(whole, dict) or (isinstance(whole, (list, tuple)) and type(key) is int):
                return whole[key]
        except (KeyError, IndexError, TypeError):
            pass
        raise self._error(node, f"takes {shown(key)} of {shown(whole)}, where there is no such entry")

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value, sign = self._value(node.operand), _SIGNS.get(type(node.op))
        if sign is None or not isinstance(value, (int, float)):
            raise self._error(node, f"has {_described(node)}")
        return sign(value)

    def _binop(self, node: ast.BinOp) -> Any:
        left, right, kind = self._value(node.left), self._value(node.right), type(node.op)
        if is_number(left) and is_number(right) and kind in _NUMERIC and (kind is not ast.Pow or abs(right) <= 64):
            try:
                return _NUMERIC[kind](left, right)
            except (ArithmeticError, ValueError) as error:
                raise self._error(node, f"computes {shown(left)} and {shown(right)}, which fails") from error
        if kind is ast.Add and type(left) is type(right) and isinstance(left, (str, list, tuple)):
            return self._limited(node, len(left) + len(right), lambda: left + right)
        if kind is ast.Mult and isinstance(left, (list, tuple)) and type(right) is int:
            return self._limited(node, len(left) * right, lambda: left * right)
        raise self._error(node, f"computes with {shown(left)} and {shown(right)}")

    def _limited(self, node: ast.expr, size: int, make: Callable[[], Any]) -> Any:
        if size > MAX_ITEMS:
            raise self._error(node, f"makes a value of {shown(size)} items")
        return make()

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        """``f"{name}/file"``, of text and numbers, without formats."""
        parts = []
        for part in node.values:
            plain = isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None
            value = self._value(part.value if isinstance(part, ast.FormattedValue) and plain else part)
            if not isinstance(value, str) and not is_number(value):
                raise self._error(node, f"writes {shown(value)} into text")
            parts.append(str(value))
        return self._limited(node, sum(map(len, parts)), lambda: "".join(parts))

    def _call(self, node: ast.Call) -> Any:
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function == "dict" and len(node.args) <= 1:
            result = dict(self._mapping(node.args[0])) if node.args else {}
            for keyword in node.keywords:
                entry = self._mapping(keyword.value) if keyword.arg is None else None
                result.update({keyword.arg: self._value(keyword.value)} if entry is None else entry)
            return result
        if function in ("list", "tuple") and len(node.args) <= 1 and not node.keywords:
            value = self._value(node.args[0]) if node.args else ()
            if isinstance(value, (list, tuple)):
                return list(value) if function == "list" else tuple(value)
        if function == "range" and 1 <= len(node.args) <= 3 and not node.keywords:
            return self._range(node)  # gpu_ids = range(0, 8): mmdetection 2.x writes it into every checkpoint
        raise self._error(node, f"calls {_source(node.func)}")

    def _range(self, node: ast.Call) -> list[int]:
        numbers = [self._value(argument) for argument in node.args]
        if not all(type(number) is int for number in numbers) or numbers[2:] == [0]:
            raise self._error(node, f"makes a range of {shown(numbers)}")
        made = range(*numbers)
        # len() of a range fails beyond the integers of C.
        size = max(-((made.start - made.stop) // made.step), 0)
        return self._limited(node, size, lambda: list(made))

    def _error(self, node: ast.AST, what: str) -> CheckpointError:
        return CheckpointError(f"{self.source}, line {getattr(node, 'lineno', '?')} {what}: {ADVICE}")


def _described(node: ast.AST) -> str:
    """A statement or expression in the words of its author."""
    words = {
        ast.Import: "an import",
        ast.ImportFrom: "an import",
        ast.FunctionDef: "a function",
        ast.ClassDef: "a class",
        ast.With: "a with statement",
        ast.If: "an if",
        ast.For: "a for loop",
        ast.Lambda: "a lambda",
    }
    return words.get(type(node), f"{type(node).__name__} ({_source(node)})")


def _source(node: ast.AST) -> str:
    try:
        return ast.unparse(node).splitlines()[0][:40]
    except ValueError:  # a number of thousands of digits
        return "..."
