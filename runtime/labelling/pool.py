"""Workers that label blocks side by side, and what becomes of a block whose worker died.

A block goes to whichever worker is free. A worker that dies (killed, out of memory, a fault in a decoder) is started
again and its block is done again; a block that two workers died of is done picture by picture, and a picture that two
more died of becomes a row with that reason. Blocks come back as bytes, and one process alone writes them: nothing can
be there twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from wnlb.runtime.labelling.inputs import Block, Input
from wnlb.runtime.labelling.labeller import Facts, Labelled, Options
from wnlb.runtime.labelling.shards import joined, table_bytes

TRIES = 2  # of a block, and of each of its pictures alone


@dataclass(frozen=True)
class Lost:
    """A worker died with this block."""

    block: Block
    reason: str  # "killed by signal 9"


class Pool(Protocol):
    """Workers of one kind: processes, or actors of Ray."""

    @property
    def idle(self) -> int:
        """How many blocks can be given now."""
        ...

    @property
    def partial(self) -> int:
        """Pictures that are done in blocks that are not, as far as workers tell."""
        ...

    def give(self, block: Block) -> None:
        """To a free worker."""
        ...

    def wait(self) -> list[Labelled | Lost]:
        """What ended; also nothing, where only ``partial`` grew.

        Raises:
            WnlbError: a worker cannot open the model, or not run it.
        """
        ...

    def close(self) -> None:
        """End the workers at once."""
        ...


class Crew(Protocol):
    """Where pools come from: this machine, or a cluster."""

    cores: int
    gpus: int  # that workers can be bound to, one to each; 0 where that is not done
    memory: int  # bytes that are free for workers; 0 where that is not known

    def facts(self, options: Options, first: Input) -> Facts:
        """What one worker tells. Raises WnlbError where it cannot open the model."""
        ...

    def pool(self, options: Options, workers: int) -> Pool:
        """Workers, from 1 up."""
        ...

    def close(self) -> None: ...


def label_all(
    pool: Pool,
    blocks: Iterator[Block],
    on_lost: Callable[[str], object] = lambda line: None,
    on_change: Callable[[], object] = lambda: None,
) -> Iterator[Labelled]:
    """Every block once, as they are done.

    Args:
        on_lost: told of each worker that died, in one line.
        on_change: called when something changed that a progress bar could show.
    """
    again, deaths, pieces = deque[Block](), Counter[Block](), dict[int, _Pieces]()
    under_way, block = 0, next(blocks, None)
    while under_way or block:
        while block and pool.idle:
            pool.give(block)
            under_way += 1
            block = again.popleft() if again else next(blocks, None)
        for event in pool.wait():
            under_way -= 1
            ended = event.block
            split = pieces.get(ended.number)
            if isinstance(event, Lost):
                deaths[ended] += 1
                on_lost(f"a worker ended with {_name(ended)} ({event.reason}); it is started again")
                if deaths[ended] < TRIES:
                    again.append(ended)
                    continue
                if split is None:
                    parts = ended.parts()
                    pieces[ended.number] = _Pieces(ended, len(parts))
                    again.extend(parts)
                    continue
                event = _unreadable(event)
            if split is None:
                yield event
            elif whole := split.add(event):
                yield whole
        on_change()
        block = block or (again.popleft() if again else next(blocks, None))


def _name(block: Block) -> str:
    """Of the picture or frame that it begins with, and how many there are."""
    one = block.inputs[0]
    name = one.name if one.frames is None else f"{one.name}_{block.first:06d}"
    return name if block.pictures <= 1 else f"{name} and {block.pictures - 1} more"


def _unreadable(lost: Lost) -> Labelled:
    name = _name(lost.block)
    reason = f"picture {name}: {TRIES} workers ended with it alone, the last {lost.reason}"
    return Labelled(lost.block, table_bytes([{"name": name, "error": reason, "objects": []}]), 1)


class _Pieces:
    """A block whose pictures are done one by one."""

    def __init__(self, block: Block, count: int) -> None:
        self._block, self._count, self._done = block, count, list[Labelled]()

    def add(self, part: Labelled) -> Labelled | None:
        """The block, once it is whole."""
        self._done.append(part)
        if len(self._done) < self._count:
            return None
        parts = sorted(self._done, key=lambda part: (part.block.inputs[0].name, part.block.first))
        notes = dict.fromkeys(note for part in parts for note in part.notes)
        return Labelled(
            self._block, joined(part.data for part in parts), sum(part.rows for part in parts), tuple(notes)
        )
