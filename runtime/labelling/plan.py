"""How many workers there are, with how many threads, and how many pictures are saved together."""

from __future__ import annotations

from dataclasses import dataclass

from wnlb.runtime.labelling.labeller import Facts
from wnlb.runtime.labelling.pool import Crew

BLOCK_S = 20.0  # of work: no more is lost with a worker, also where it is three times slower than it was measured
MOST = 512  # pictures of a block
TURNS = 4  # blocks for each worker at least, so that none is idle at the end for long
_MEMORY = 0.8  # share of the free memory that workers may have


@dataclass(frozen=True)
class Plan:
    workers: int
    threads: int  # of each; 0: as the backend chooses


def probe_threads(crew: Crew, workers: int, threads: int) -> int:
    """Threads of the one worker that is measured: what each will have, unless memory allows fewer workers."""
    return threads or max(crew.cores // (workers or crew.cores), 1)


def plan_workers(crew: Crew, facts: Facts, workers: int, threads: int) -> Plan:
    """On a CPU a worker for each core, as far as memory goes; on GPUs one for each.

    Two workers of one thread label more than one of two: nothing waits for anything.

    Args:
        workers, threads: as asked for; 0: not.

    Raises:
        WnlbError: a cluster has not the cores for what was asked.
    """
    if "CPU" not in facts.description:
        return Plan(workers or max(crew.gpus, 1), threads)
    if not workers:
        workers = max(crew.cores // (threads or 1), 1)
        if crew.memory:
            workers = max(min(workers, int(_MEMORY * crew.memory) // max(facts.memory, 1)), 1)
    return Plan(workers, threads or max(crew.cores // workers, 1))


def block_size(facts: Facts, plan: Plan, pictures: int) -> int:
    """Pictures of a block."""
    size = min(int(BLOCK_S / max(facts.seconds, 1e-6)), -(-pictures // (TURNS * plan.workers)), MOST)
    return max(size, 1)
