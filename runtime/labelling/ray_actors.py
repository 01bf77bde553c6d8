"""Workers as actors of Ray, on this machine or on a cluster.

Ray carries blocks and results, and no more: what is done and what is not stands in the job's folder, as with processes.
(Ray Data would read, cut and write by plans of its own: it puts small files together into one block, of which nothing
is saved until all is done, its reading wants cores that actors hold, and then it waits without a word.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from wnlb.runtime.engine.manifest import manifest_path
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.labelling.inputs import Block, Input
from wnlb.runtime.labelling.labeller import Facts, Labelled, Labeller, Options
from wnlb.runtime.labelling.pool import Lost

LOCAL = "local"  # the address of a cluster that is started here, for this job alone
START_S = 300.0  # until a worker answers
_REACHED_S = 10.0


class Cluster:
    """See ``Crew``.

    Args:
        address: ``local``, ``HOST:PORT`` or ``ray://HOST:10001``.

    Raises:
        WnlbError: Ray is not installed, or no cluster answers.
    """

    memory = 0

    def __init__(self, address: str) -> None:
        self._ray = _import_ray()
        _check_reachable(address)
        if address == LOCAL:  # a cluster of one machine; Ray would write a token into the home folder
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == LOCAL:
            quiet["include_dashboard"] = False
        try:
            self._ray.init(address=address, **quiet)
            resources = self._ray.cluster_resources()
        except Exception as error:  # its kinds are many
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WnlbError(f"--address {address}: no Ray cluster answers: {reason}") from error
        self.cores, self.gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))

    def facts(self, options: Options, first: Input) -> Facts:
        worker = _Worker(self._ray, self._actor(options), self._model(options))
        try:
            return worker.facts(first)
        finally:
            worker.kill()

    def pool(self, options: Options, workers: int) -> Actors:
        return Actors(self._ray, self._actor(options, workers), self._model(options), workers)

    def close(self) -> None:
        self._ray.shutdown()

    def _bound(self, options: Options) -> bool:
        """Whether each worker has a GPU of its own."""
        return self.gpus > 0 and options.device != "cpu"

    def _actor(self, options: Options, workers: int = 1) -> Any:
        """The class of workers. Raises WnlbError where so many do not fit: Ray would wait for ever."""
        threads = max(options.threads, 1)
        bound = self._bound(options)
        there, needed, what = (self.gpus, workers, "GPUs") if bound else (self.cores, workers * threads, "cores")
        if needed > there:
            workers_text = f"{workers} workers" if workers > 1 else "a worker"
            raise WnlbError(
                f"{workers_text} of {threads} threads need{'s' * (workers == 1)} {needed} {what}, the cluster has "
                f"{there}; give fewer --workers or --threads"
            )
        needs = {"num_gpus": 1} if bound else {"num_cpus": threads}
        return self._ray.remote(**needs, max_restarts=0)(_Remote)

    def _model(self, options: Options) -> tuple[Options, Any]:
        """The files of the model, put into Ray once: other machines need not have them."""
        paths = [Path(options.model), manifest_path(Path(options.model)), *([options.trust] if options.trust else [])]
        files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        return options, self._ray.put(files)


def _check_reachable(address: str) -> None:
    """Raise WnlbError where nobody listens: Ray itself tries for minutes, with many lines."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise WnlbError(f"--address {address}: no Ray cluster answers: {error}") from error


class _Remote:
    """A ``Labeller`` on whatever machine."""

    def __init__(self, options: Options, files: dict[str, bytes]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wnlb")
        folder = Path(self._folder.name)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        if files:
            trust = folder / options.trust.name if options.trust else None
            options = replace(options, model=str(folder / Path(options.model).name), trust=trust)
        self._labeller = Labeller(options)

    def ready(self) -> None:
        """Answers once the model is open."""

    def facts(self, first: Input) -> Facts:
        return self._labeller.facts(first)

    def label(self, block: Block) -> Labelled:
        return self._labeller.label(block)


class Actors:
    """See ``Pool``."""

    partial = 0  # they tell of whole blocks alone

    def __init__(self, ray: Any, actor: Any, model: tuple[Options, Any], workers: int) -> None:
        self._ray = ray
        self._workers = [_Worker(ray, actor, model) for _ in range(workers)]

    @property
    def idle(self) -> int:
        return sum(worker.is_free for worker in self._workers)

    def give(self, block: Block) -> None:
        next(worker for worker in self._workers if worker.is_free).give(block)

    def wait(self) -> list[Labelled | Lost]:
        busy = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        answered, _ = self._ray.wait(list(busy), num_returns=1, timeout=START_S)
        if not answered and all(worker.block is None for worker in busy.values()):
            raise WnlbError(f"no worker started within {START_S:.0f} s: the cluster has no room; give fewer --workers")
        ended = (busy[answer].take() for answer in answered)
        return [event for event in ended if event]

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


class _Worker:
    """An actor, and another in its place where it dies. ``answer``: what it works on; at first, the opened model."""

    def __init__(self, ray: Any, actor: Any, model: tuple[Options, Any]) -> None:
        self._ray, self._actor, self._model = ray, actor, model
        self.block: Block | None = None
        self._start()

    def _start(self) -> None:
        self._handle = self._actor.remote(*self._model)
        self.answer = self._handle.ready.remote()
        self._opened = False

    @property
    def is_free(self) -> bool:
        return self.answer is None

    def give(self, block: Block) -> None:
        self.block, self.answer = block, self._handle.label.remote(block)

    def facts(self, first: Input) -> Facts:
        try:
            return self._ray.get(self._handle.facts.remote(first), timeout=START_S)
        except self._ray.exceptions.GetTimeoutError as error:
            raise WnlbError(f"no worker started within {START_S:.0f} s: the cluster has no room for one") from error
        except self._ray.exceptions.RayError as error:
            raise _ours(error) from error

    def take(self) -> Labelled | Lost | None:
        """Its answer."""
        block, self.block, answer, self.answer = self.block, None, self.answer, None
        try:
            done = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise _ours(error) from error
        except self._ray.exceptions.RayError as error:
            if not self._opened:
                raise _ours(error) from error
            self._start()
            return Lost(block, type(error).__name__) if block else None
        self._opened = True
        return done

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it may be dead
            self._ray.kill(self._handle)


def _ours(error: Any) -> Exception:
    """The WnlbError that a worker raised; of all else one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, WnlbError):
        return cause
    if found := re.search(r"wnlb\.runtime\.errors\.\w+: (.+)", str(error)):  # of a worker that could not begin
        return WnlbError(found[1])
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else type(error).__name__)
    return WnlbError(f"a worker cannot work: {told.strip()}; is the same wnlb-deploy installed on each machine?")


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(
            "Ray is not installed: pip install 'wnlb-deploy[ray]', or leave --address out"
        ) from error
    return ray
