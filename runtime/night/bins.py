"""Hours in a few hundred bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_Content = TypeVar("_Content")


class Bins(Generic[_Content]):
    """Time from 0 on in bins of one length, of which there are never more than ``most``.

    Where there would be more, each two neighbours become one of twice the length: what is kept does not grow with the
    time, and nothing is forgotten.

    Args:
        most: even.
        seconds: a bin's first length.
        new: what is in an empty bin.
        merge: puts what is in the second, later bin into the first.
    """

    def __init__(
        self,
        most: int,
        seconds: float,
        new: Callable[[], _Content],
        merge: Callable[[_Content, _Content], None],
    ) -> None:
        self.seconds = seconds
        self.contents: dict[int, _Content] = {}  # by the bin's place in time; those in which nothing was put are absent
        self._most, self._new, self._merge = most, new, merge

    def at(self, moment: float) -> _Content:
        """The bin of a moment, in seconds; one before 0 counts as 0."""
        while (place := int(max(moment, 0) / self.seconds)) >= self._most:
            self._double()
        return self.contents.setdefault(place, self._new())

    def __iter__(self) -> Iterator[tuple[float, _Content]]:
        """Where each bin begins, in seconds, and what is in it; in the order of time."""
        return ((place * self.seconds, self.contents[place]) for place in sorted(self.contents))

    def _double(self) -> None:
        before, self.contents = self.contents, {}
        self.seconds *= 2
        for place in sorted(before):
            self._merge(self.contents.setdefault(place // 2, self._new()), before[place])
