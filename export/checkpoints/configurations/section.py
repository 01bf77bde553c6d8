"""A part of a configuration, read strictly: what is not supported exactly is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from wnlb.export.checkpoints.configurations.setting_checks import is_count, is_number, shown
from wnlb.runtime.errors import CheckpointError

REQUIRED = object()


class Section:
    """One dictionary of a configuration.

    Args:
        values: the dictionary.
        path: its name in the configuration, ``"model.rpn_head"``.
        source: the file, for messages.
    """

    def __init__(self, values: Any, path: str, source: str) -> None:
        self.path, self.source = path, source
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise CheckpointError(f"{source}: {path} is {shown(values)}; expected a dictionary")
        self._values = values
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether an entry is there and not None."""
        return self._values.get(name) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries."""
        return tuple(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        """An entry; ``default`` where it is absent."""
        self._read.add(name)
        return self._values.get(name, default)

    def section(self, name: str, default: Mapping[str, Any] | None = None) -> Section:
        """A dictionary inside; ``default`` where it is absent or None.

        Raises:
            CheckpointError: it is no dictionary, or absent without a default.
        """
        value = self.get(name)
        if value is None and default is None:
            raise CheckpointError(f"{self.source}: {self.path} has no {name}; expected a dictionary of that name")
        return Section(default if value is None else value, self.full(name), self.source)

    def sections(self, name: str) -> Iterator[Section]:
        """The dictionaries of a list."""
        value = self.get(name, [])
        if not isinstance(value, (list, tuple)):
            self.refuse(name, value, "a list of dictionaries")
        for i, item in enumerate(value):
            yield Section(item, f"{self.full(name)}[{i}]", self.source)

    def expect(self, name: str, *allowed: Any, default: Any = REQUIRED) -> Any:
        """An entry that is one of ``allowed``; lists and tuples are the same, so are 1 and 1.0.

        Args:
            default: what an absent entry stands for; without one it may not be absent.

        Raises:
            CheckpointError: it is another, or absent.
        """
        value = self.get(name, None if default is REQUIRED else default)
        if not any(same(value, one) for one in allowed) and not (default is not REQUIRED and same(value, default)):
            self.refuse(name, value, " or ".join(shown(one) for one in allowed))
        return value

    def only(self, name: str, value: Any) -> None:
        """Raises CheckpointError if an entry is there and not ``value``, which is its default."""
        self.expect(name, value, default=value)

    def required(self, name: str, default: Any, value: Any) -> None:
        """Raises CheckpointError if an entry is not ``value``; an absent one is ``default``."""
        if not same(found := self.get(name, default), value):
            self.refuse(name, found, shown(value))

    def kind(self, *allowed: str, default: Any = REQUIRED) -> str:
        """The class that ``type`` names, without its package: ``mmcv.ops.RoIAlign`` is ``RoIAlign``."""
        named = self.get("type", None if default is REQUIRED else default)
        kind = named.split(".")[-1] if isinstance(named, str) else named
        if not isinstance(kind, str) or (allowed and kind not in allowed):
            self.refuse("type", named, " or ".join(allowed) or "the name of a class")
        return kind

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        return self._checked(name, default, is_number, "a number")

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 up."""
        return self._checked(name, default, is_count, "a whole number from 1 up")

    def truth(self, name: str, default: bool) -> bool:
        """True or False."""
        return self._checked(name, default, lambda value: isinstance(value, bool), "True or False")

    def text(self, name: str, default: str | None = None) -> str:
        """Text."""
        return self._checked(name, default, lambda value: isinstance(value, str), "text")

    def numbers(self, name: str, count: int | None = None, default: Any = None) -> tuple[float, ...]:
        """A list of numbers, ``count`` of them where that is given."""

        def fits(value: Any) -> bool:
            numbers = isinstance(value, (list, tuple)) and all(map(is_number, value))
            return numbers and (len(value) == count if count else 0 < len(value) <= 64)

        return tuple(self._checked(name, default, fits, f"a list of {count or 'some'} numbers"))

    def ignore(self, *names: str) -> None:
        """Entries that change nothing at inference."""
        self._read.update(names)

    def finish(self) -> None:
        """Raises CheckpointError if there is an entry that nobody asked for: it may change what is computed."""
        unknown = [name for name in self._values if name not in self._read]
        if unknown:
            raise CheckpointError(
                f"{self.source}: {self.full(unknown[0])} is {shown(self._values[unknown[0]])}, which is not known; "
                "if it changes nothing at inference, give a copy of the configuration without it: --config"
            )

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raises CheckpointError: got ``value``, which is not what is ``expected``."""
        raise CheckpointError(
            f"{self.source}: {self.full(name)} is {shown(value)}; expected {expected}, which alone is supported"
        )

    def full(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _checked(self, name: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name, default)
        if not fits(value):
            raise CheckpointError(f"{self.source}: {self.full(name)} is {shown(value)}; expected {expected}")
        return value


def same(value: Any, other: Any) -> bool:
    """Whether two values of a configuration are equal; lists and tuples are the same, numbers and truth values not."""
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(same(value[name], other[name]) for name in other)
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return type(value) in (int, float, str, type(None)) and value == other
