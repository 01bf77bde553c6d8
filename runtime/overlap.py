"""Stages of work that overlap, each in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(items: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
    """The same items in the same order, the next made by a thread while one is worked on outside.

    No more than three are there at a time: one outside, one that waits, one being made. An error of ``items`` is raised
    where its item would have come. Once this generator is closed, as it must be where it is left early
    (``contextlib.closing``), ``items`` is closed too and the thread has ended; what was made ahead is thrown away.

    Args:
        items: none of them None.
    """
    stop, failures = threading.Event(), list[BaseException]()
    slot = Slot[_Item](stop)

    def make() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    slot.put(item, wait=True)
                    if stop.is_set():
                        break
        except BaseException as error:
            failures.append(error)
        finally:
            slot.end()

    thread = threading.Thread(target=make, name="wnlb ahead", daemon=True)
    thread.start()
    try:
        while (item := slot.take()) is not None:
            yield item
        if failures:
            raise failures[0]
    finally:
        stop.set()
        slot.wake()
        thread.join()


def abreast(
    items: Generator[_Item, None, None], works: Sequence[Callable[[_Item], _Result]]
) -> Generator[_Result, None, None]:
    """What is made of the items, in their order: several at a time, by as many threads as there are ``works``.

    Each of these is given one item after the other. An error is raised where its result would have come, once those
    that are being made are. Close this generator where it is left early: it closes ``items``, as at its end.
    """
    with contextlib.closing(items):
        if len(works) == 1:
            yield from map(works[0], items)
            return
        idle = queue.SimpleQueue[Callable[[_Item], _Result]]()
        for work in works:
            idle.put(work)

        def made(item: _Item) -> _Result:
            work = idle.get()
            try:
                return work(item)
            finally:
                idle.put(work)

        waiting = deque[Future[_Result]]()
        pool = ThreadPoolExecutor(len(works), "wnlb abreast")
        try:
            for item in items:
                waiting.append(pool.submit(made, item))
                if len(waiting) > len(works):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Slot(Generic[_Item]):
    """Room for one item between two threads."""

    def __init__(self, stop: threading.Event) -> None:
        self.dropped = 0
        self._stop = stop
        self.ended = False
        self._item: _Item | None = None
        self._changed = threading.Condition()

    def put(self, item: _Item, wait: bool) -> None:
        """Put an item in: when the one before is taken (``wait``), or at once, in its place."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._item is None or self._stop.is_set())
            if self._stop.is_set():
                return
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()

    def take(self, timeout: float | None = None) -> _Item | None:
        """The item, when there is one; None at the end, or when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self.ended or self._stop.is_set(), timeout)
            item, self._item = self._item, None
            self._changed.notify_all()
            return None if self._stop.is_set() else item

    def wait_free(self) -> bool:
        """Wait until nothing is in it; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is None or self._stop.is_set())
            return not self._stop.is_set()

    def end(self) -> None:
        """No more items come; the one inside can still be taken."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wake(self) -> None:
        """See that the stop is noticed."""
        with self._changed:
            self._changed.notify_all()
