"""The folder of one job: what is labelled with what, and the blocks that are done.

    out/manifest.json     model and settings, and how the inputs are cut into blocks
    out/inputs.parquet    names and paths, sorted
    out/shards/000017.parquet     block 17

A shard is written under another name and renamed; so whatever ended a run, each block is there whole or not at all, and
the next start does those that are not. What was asked for then must be what is asked for now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.labelling.inputs import Block, Input, blocks_of
from wnlb.runtime.labelling.labeller import Labelled
from wnlb.runtime.labelling.shards import open_shard, rows_of
from wnlb.runtime.text_file import read_json

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Job:
    """A folder whose manifest was read or written."""

    folder: Path
    settings: dict[str, Any]  # model, source, ...: all that the rows depend on
    class_names: tuple[str, ...]
    block: int  # pictures of a block
    bits: int  # of 16-bit pictures, as was found out when it began; 0: not asked
    inputs: tuple[Input, ...]

    def blocks(self) -> Iterator[Block]:
        return blocks_of(list(self.inputs), self.block)

    def shard(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:06d}.parquet"

    def missing(self) -> list[Block]:
        """The blocks that are not done."""
        with contextlib.suppress(FileNotFoundError):
            there = set(os.listdir(self.folder / "shards"))
        return [block for block in self.blocks() if self.shard(block.number).name not in there]

    def write(self, done: Labelled) -> None:
        """Raises WnlbError where it cannot be written: a full disk."""
        with _durable(self.shard(done.block.number)) as temporary:
            temporary.write_bytes(done.data)

    def shards(self) -> list[Path]:
        """Of all blocks, in the order of the names."""
        return [self.shard(block.number) for block in self.blocks()]

    def rows(self) -> Iterator[dict[str, Any]]:
        """See ``shards``."""
        return rows_of(self.shards())

    def is_finished(self) -> bool:
        return not self.missing()

    @property
    def pictures(self) -> int:
        """And frames, as far as containers state them."""
        return sum(block.pictures for block in self.blocks())

    def cut_short(self) -> Iterator[str]:
        """One line for each video that ended before its container states."""
        rows: dict[Input, int] = {}
        for block in self.blocks():
            if block.inputs[0].frames:
                held = open_shard(self.shard(block.number)).metadata.num_rows
                rows[block.inputs[0]] = rows.get(block.inputs[0], 0) + held
        for one, count in rows.items():
            if count < (one.frames or 0):
                yield f"video {one.name} ended after {count} of the {one.frames} frames that its file states"


def start_job(
    folder: Path, settings: dict[str, Any], class_names: tuple[str, ...], block: int, bits: int, inputs: list[Input]
) -> Job:
    """A new job; its manifest is written last. Raises WnlbError where that cannot be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_folder(folder / "shards")
    columns = {name: [getattr(one, name) for one in inputs] for name in ("name", "path", "frames")}
    types = pa.schema([("name", pa.string()), ("path", pa.string()), ("frames", pa.int64())])
    with _durable(folder / "inputs.parquet") as temporary:
        pq.write_table(pa.table(columns, schema=types), temporary, compression="zstd")
    content = {"format": FORMAT, "settings": settings, "classes": class_names, "block": block, "bits": bits}
    with _durable(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return Job(folder, settings, class_names, block, bits, tuple(inputs))


@contextlib.contextmanager
def _durable(target: Path) -> Iterator[Path]:
    """As ``atomic_path``; and the bytes are on the disk before the name is, also where the power is cut."""
    with atomic_path(target) as temporary:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())


def read_job(folder: Path) -> Job | None:
    """None where there is no manifest. Raises WnlbError for one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (folder / MANIFEST).is_file():
        return None
    content = read_json(folder / MANIFEST, "manifest")
    try:
        if content["format"] != FORMAT:
            raise WnlbError(f"{folder} was labelled by another version of wnlb (format {content['format']})")
        inputs = [Input(**row) for row in pq.read_table(folder / "inputs.parquet").to_pylist()]
        settings, classes, block, bits = (content[name] for name in ("settings", "classes", "block", "bits"))
        fits = isinstance(settings, dict) and isinstance(classes, list) and type(block) is type(bits) is int
        if not fits or not all(isinstance(name, str) for name in classes) or block < 1 or not 0 <= bits <= 16:
            raise ValueError("its manifest has entries of another kind")
        return Job(folder, settings, tuple(classes), block, bits, tuple(inputs))
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise WnlbError(f"{folder} holds no labels of wnlb that can be read: {error}; give another -o") from error


def check_same(job: Job, settings: dict[str, Any]) -> None:
    """Raise WnlbError where other rows would come out than are there already."""
    for name in dict.fromkeys([*job.settings, *settings]):
        before, now = (settings.get(name) for settings in (job.settings, settings))
        if before != now:
            told = f"{name.replace('_', ' ')} {_short(before)} was given then, {_short(now)} now"
            raise WnlbError(f"{job.folder} holds labels of another job: {told}; give the same, or another -o")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:12]}..."


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While no other process works in this folder. Raises WnlbError where one does.

    What a killed run left under temporary names is removed.
    """
    make_folder(folder)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WnlbError(f"another 'wnlb label' is at work in {folder}; wait for it, or give another -o") from error
        except OSError as error:
            raise WnlbError(f"{folder} cannot be locked: {error.strerror}; choose a folder of this machine") from error
        for left in (*folder.glob(".*.parquet"), *(folder / "shards").glob(".*.parquet")):
            left.unlink(missing_ok=True)
        yield
