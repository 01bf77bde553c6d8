"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.labelling.inputs import Block, Input
from wnlb.runtime.labelling.labeller import Facts, Labelled, Labeller, Options
from wnlb.runtime.labelling.pool import Lost
from wnlb.runtime.machine import free_memory, usable_cores

_READY = "ready"  # the model is open
_DONE = "done"  # one picture more
# Not forked: the threads of OpenCV and ONNX Runtime do not come along.
_PROCESSES = multiprocessing.get_context("spawn")


class Machine:
    """This machine; see ``Crew``."""

    gpus = 0

    def __init__(self) -> None:
        self.cores = usable_cores()
        self.memory = free_memory()

    def facts(self, options: Options, first: Input) -> Facts:
        with Labeller(options) as labeller:
            return labeller.facts(first)

    def pool(self, options: Options, workers: int) -> Processes:
        return Processes(options, workers)

    def close(self) -> None:
        pass


class Processes:
    """See ``Pool``.

    Args:
        workers: how many, from 1 up.
    """

    def __init__(self, options: Options, workers: int) -> None:
        self._workers = [_Worker(options) for _ in range(workers)]

    @property
    def idle(self) -> int:
        return sum(worker.block is None for worker in self._workers)

    @property
    def partial(self) -> int:
        return sum(worker.done for worker in self._workers)

    def give(self, block: Block) -> None:
        next(worker for worker in self._workers if worker.block is None).give(block)

    def wait(self) -> list[Labelled | Lost]:
        busy = {worker.pipe: worker for worker in self._workers if worker.block}
        ended = (
            busy[pipe].take() for pipe in multiprocessing.connection.wait(list(busy)) if isinstance(pipe, Connection)
        )
        return [event for event in ended if event]

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


class _Worker:
    """A process, and another in its place where it dies."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.block: Block | None = None
        self.done = 0  # pictures of the block
        self._start()

    def _start(self) -> None:
        self.pipe, end = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_work, args=(self._options, end), name="wnlb label", daemon=True)
        self._process.start()
        end.close()  # so that the pipe ends when the process does
        self._opened = False

    def give(self, block: Block) -> None:
        self.block, self.done = block, 0
        with contextlib.suppress(OSError):  # it died; told by ``take``
            self.pipe.send(block)

    def take(self) -> Labelled | Lost | None:
        """Its next message."""
        assert self.block
        try:
            message: Any = self.pipe.recv()
        except (EOFError, OSError):
            return self._lost(self.block)
        if isinstance(message, Exception):
            raise message
        if message == _READY:
            self._opened = True
        elif message == _DONE:
            self.done += 1
        else:
            self.block, self.done = None, 0
            return message
        return None

    def _lost(self, block: Block) -> Lost:
        self._process.join()
        code = self._process.exitcode or 0
        reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if not self._opened:
            raise WnlbError(f"a worker ended while it opened the model ({reason}); fewer --workers need less memory")
        self.kill()
        self.block, self.done = None, 0
        self._start()
        return Lost(block, reason)

    def kill(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _work(options: Options, pipe: Connection) -> None:
    """The life of a worker. It ends when the other end of the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends us
    try:
        with Labeller(options) as labeller:
            pipe.send(_READY)
            while True:
                pipe.send(labeller.label(pipe.recv(), lambda: pipe.send(_DONE)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except WnlbError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))
