"""What becomes of a block whose worker dies, with workers that die when they are told to."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wnlb.runtime.labelling.inputs import Block, Input, blocks_of
from wnlb.runtime.labelling.labeller import Facts, Labelled
from wnlb.runtime.labelling.plan import Plan, block_size, plan_workers, probe_threads
from wnlb.runtime.labelling.pool import Lost, label_all
from wnlb.runtime.labelling.shards import table_bytes


def names_in(block: Block) -> list[str]:
    if block.inputs[0].frames is None:
        return [one.name for one in block.inputs]
    stop = block.inputs[0].frames if block.stop is None else block.stop
    return [f"{block.inputs[0].name}_{frame:06d}" for frame in range(block.first, stop)]


class Scripted:
    """Workers that do the block they have longest first; ``dies`` says at which they die."""

    partial = 0

    def __init__(self, workers: int, dies: Callable[[list[str], int], bool]) -> None:
        self.given: list[Block] = []
        self.done: list[list[str]] = []
        self._workers, self._dies = workers, dies

    @property
    def idle(self) -> int:
        return self._workers - len(self.given)

    def give(self, block: Block) -> None:
        assert self.idle
        self.given.append(block)

    def wait(self) -> list[Labelled | Lost]:
        block = self.given.pop(0)
        names = names_in(block)
        tries = sum(names == before for before in self.done)
        self.done.append(names)
        if self._dies(names, tries):
            return [Lost(block, "killed by signal 9")]
        return [Labelled(block, table_bytes([{"name": name, "objects": []} for name in names]), len(names), ("odd",))]

    def close(self) -> None:
        pass


PICTURES = [Input(name, f"/in/{name}") for name in "abcdefg"]


def labelled(pool: Scripted, inputs: list[Input], size: int) -> tuple[dict[int, dict[str, str | None]], list[str]]:
    """Rows by block, and what was told."""
    told: list[str] = []
    blocks = {}
    for done in label_all(pool, blocks_of(inputs, size), told.append):
        assert done.block.number not in blocks
        rows = pq.read_table(pa.BufferReader(done.data)).to_pylist()
        blocks[done.block.number] = {row["name"]: row["error"] for row in rows}
        assert done.rows == len(rows)
    return blocks, told


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_worker_that_dies_once_costs_nothing(workers: int) -> None:
    pool = Scripted(workers, lambda names, tries: "d" in names and not tries)
    blocks, told = labelled(pool, PICTURES, 3)
    assert blocks == {0: dict.fromkeys("abc"), 1: dict.fromkeys("def"), 2: dict.fromkeys("g")}
    assert told == ["a worker ended with d and 2 more (killed by signal 9); it is started again"]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_picture_that_kills_becomes_a_row_and_its_neighbours_are_labelled(workers: int) -> None:
    pool = Scripted(workers, lambda names, tries: "e" in names)
    blocks, told = labelled(pool, PICTURES, 3)
    assert {number: list(rows) for number, rows in blocks.items()} == {0: [*"abc"], 1: [*"def"], 2: [*"g"]}
    assert {name: error for rows in blocks.values() for name, error in rows.items() if error} == {
        "e": "picture e: 2 workers ended with it alone, the last killed by signal 9"
    }
    assert pool.done.count([*"def"]) == pool.done.count(["e"]) == 2
    assert len(told) == 4


def test_frames_of_videos_likewise() -> None:
    inputs = [PICTURES[0], Input("v", "/in/v.mp4", 5), PICTURES[1]]
    blocks = list(blocks_of(inputs, 3))
    assert [names_in(block) for block in blocks] == [
        ["a"],
        ["v_000000", "v_000001", "v_000002"],
        ["v_000003", "v_000004"],
        ["b"],
    ]
    assert [block.stop for block in blocks] == [None, 3, None, None]
    assert [part.stop for part in blocks[2].parts()] == [4, None]  # the container may state too few
    pool = Scripted(2, lambda names, tries: "v_000004" in names)
    done, _ = labelled(pool, inputs, 3)
    assert [list(rows) for _, rows in sorted(done.items())] == [names_in(block) for block in blocks]
    assert [name for rows in done.values() for name, error in rows.items() if error] == ["v_000004"]


def test_blocks_are_the_same_again_and_none_is_left_out() -> None:
    for size in (1, 2, 7, 100):
        blocks = list(blocks_of(PICTURES, size))
        assert blocks == list(blocks_of(PICTURES, size))
        assert [block.number for block in blocks] == list(range(len(blocks)))
        assert [one for block in blocks for one in block.inputs] == PICTURES
        assert {block.pictures for block in blocks[:-1]} <= {size}


class Crew:
    def __init__(self, cores: int, gpus: int = 0, memory: int = 0) -> None:
        self.cores, self.gpus, self.memory = cores, gpus, memory


@pytest.mark.parametrize(
    ("crew", "asked", "device", "expected"),
    [
        (Crew(8), (0, 0), "CPU, 1 threads", Plan(8, 1)),
        (Crew(8, memory=2500), (0, 0), "CPU, 1 threads", Plan(2, 4)),  # of 1000 bytes each, a fifth stays free
        (Crew(8, memory=10), (0, 0), "CPU, 1 threads", Plan(1, 8)),
        (Crew(8, memory=10), (3, 0), "CPU, 2 threads", Plan(3, 2)),
        (Crew(8), (0, 4), "CPU, 4 threads", Plan(2, 4)),
        (Crew(2), (0, 4), "CPU, 4 threads", Plan(1, 4)),
        (Crew(8), (0, 0), "CUDA", Plan(1, 0)),
        (Crew(64, gpus=4), (0, 0), "CUDA", Plan(4, 0)),
    ],
)
def test_workers_fill_cores_or_gpus(crew: Crew, asked: tuple[int, int], device: str, expected: Plan) -> None:
    facts = Facts("", f"ONNX Runtime 1.0, {device}", 0.1, 1000, "")
    assert plan_workers(crew, facts, *asked) == expected


def test_a_block_is_some_seconds_of_work_and_small_sets_are_shared_out() -> None:
    def size(seconds: float, pictures: int, workers: int = 2) -> int:
        return block_size(Facts("", "", seconds, 0, ""), Plan(workers, 1), pictures)

    assert (size(0.25, 10**6), size(100, 10**6), size(0.001, 10**6), size(0, 10**6)) == (80, 1, 512, 512)
    assert (size(0.25, 40), size(0.25, 41), size(0.25, 1)) == (5, 6, 1)
    assert (probe_threads(Crew(8), 0, 0), probe_threads(Crew(8), 2, 0), probe_threads(Crew(8), 2, 3)) == (1, 4, 3)
