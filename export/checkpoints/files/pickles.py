"""Pickles read as data: nothing of a file is imported, looked up or called.

``pickletools`` parses the instructions; a small stack machine carries them out. What a pickle would import is only a
``Name`` here. Names of ``known`` have builders of ours; an object of any other class becomes ``Inert``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert(dict):
    """In place of an object whose class is not known: its items, where it was a mapping, and its state.

    Args:
        name: of its class.
    """

    def __init__(self, name: object, items: Mapping[Any, Any] | None = None) -> None:
        super().__init__(items or {})
        self.name, self.state = str(name), None

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key: a path, an enumeration


class Buildable:
    """What takes its content after it was made, as NumPy's arrays do."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


Builder = Callable[..., Any]
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_COLLECTED: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": frozenset,
    "DICT": lambda items: dict(_pairs(items)),
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}


def read_pickle(
    file: IO[bytes],
    known: Mapping[tuple[str, str], Builder],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """One pickle, of any protocol; the file stands behind it afterwards.

    Args:
        known: module and name to what makes such an object of the arguments that the pickle gives.
        persistent: what a persistent id stands for; None where there may be none.

    Raises:
        Exception: of any type, where the bytes are no pickle or a damaged one.
    """
    return _Machine(known, persistent or _no_persistent_id).run(file)


def build(known: Mapping[tuple[str, str], Builder], made: Any, arguments: Any) -> Any:
    """What calling ``made`` gives: the object of a known builder, else ``Inert``."""
    if not isinstance(made, Name):
        return Inert(getattr(made, "name", "unknown"))
    builder = known.get((made.module, made.name))
    return Inert(made) if builder is None else builder(*arguments)


class _Machine:
    def __init__(self, known: Mapping[tuple[str, str], Builder], persistent: Callable[[Any], Any]) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("the pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _COLLECTED:
            self.stack.append(_COLLECTED[name](self.marked()))
        elif name in _SHORT_TUPLES:
            self.stack.append(tuple(self.popped(_SHORT_TUPLES[name])))
        else:
            getattr(self, f"on_{name.lower()}", self.on_unknown)(argument)

    def popped(self, count: int) -> list[Any]:
        """The last ``count`` objects, in their order; they leave the stack."""
        if len(self.stack) < count:
            raise ValueError("the pickle takes more than it made")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def marked(self) -> list[Any]:
        """The objects since the last mark; they leave the stack, and so does the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                taken = self.stack[i + 1 :]
                del self.stack[i:]
                return taken
        raise ValueError("the pickle has no mark where it needs one")

    def make(self, made: Any, arguments: Any) -> None:
        self.stack.append(build(self.known, made, arguments))

    def on_unknown(self, argument: Any) -> NoReturn:
        raise ValueError("the pickle has an instruction that no checkpoint needs")

    def on_proto(self, argument: Any) -> None:
        """Nothing to do, nor for frames: the instructions themselves are of all protocols."""

    on_frame = on_proto

    def on_mark(self, argument: Any) -> None:
        self.stack.append(_MARK)

    def on_pop(self, argument: Any) -> None:
        self.popped(1)

    def on_pop_mark(self, argument: Any) -> None:
        self.marked()

    def on_dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def on_put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    on_binget = on_long_binget = on_get

    def on_append(self, argument: Any) -> None:
        self.extend(self.popped(1))

    def on_appends(self, argument: Any) -> None:
        self.extend(self.marked())

    on_additems = on_appends

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(items)
        elif not isinstance(target, Inert):
            raise ValueError(f"the pickle appends to a {type(target).__name__}")

    def on_setitem(self, argument: Any) -> None:
        self.update(self.popped(2))

    def on_setitems(self, argument: Any) -> None:
        self.update(self.marked())

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError(f"the pickle sets items of a {type(target).__name__}")
        target.update(_pairs(items))

    def on_global(self, argument: str) -> None:
        self.stack.append(_name(*argument.split(" ", 1)))

    def on_stack_global(self, argument: Any) -> None:
        self.stack.append(_name(*self.popped(2)))

    def on_inst(self, argument: str) -> None:
        self.make(_name(*argument.split(" ", 1)), self.marked())

    def on_obj(self, argument: Any) -> None:
        made, *arguments = self.marked()
        self.make(made, arguments)

    def on_reduce(self, argument: Any) -> None:
        self.make(*self.popped(2))

    on_newobj = on_reduce

    def on_newobj_ex(self, argument: Any) -> None:
        made, arguments, _ = self.popped(3)
        self.make(made, arguments)

    def on_build(self, argument: Any) -> None:
        target, state = self.popped(2)
        if isinstance(target, Buildable):
            target.set_state(state)
        elif isinstance(target, Inert):
            target.state = state
        self.stack.append(target)  # attributes of anything else (a dictionary's _metadata) say nothing of weights

    def on_binpersid(self, argument: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def on_persid(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the pickle names a class by something that is no text")
    return Name(_PYTHON_2.get(module, module), name)


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _no_persistent_id(identity: Any) -> NoReturn:
    raise ValueError("the pickle stands for something outside of it")
