"""``wnlb label`` whose processes are really killed, at a known place: a picture that is a named pipe waits."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from held_picture import WAIT, opened_by_a_worker, until

from wnlb.runtime.labelling.shards import table_bytes


@pytest.fixture
def started(planted_model_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``wnlb label`` with one worker and blocks of two pictures; whatever is left is killed at the end."""
    with contextlib.ExitStack() as stack:

        def start(source: object, output: Path, **how: Any) -> subprocess.Popen[str]:
            words = [planted_model_path, source, "-o", output, "--workers", "1", "--block", "2", "--bits", "8"]
            command = [sys.executable, "-m", "wnlb.runtime.cli", "label", *map(str, words)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAIT)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def rows(folder: Path) -> dict[str, str | None]:
    """Name to error of every row; fails where a name is there twice."""
    found = [row for path in sorted((folder / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert len({row["name"] for row in found}) == len(found)
    return {row["name"]: row["error"] for row in found}


def test_a_killed_worker_and_a_killed_driver_cost_nothing(
    started: Any, picture: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{letter}.png" for letter in "abcdefg"]
    for number, name in enumerate(names):
        picture(tmp_path / "in" / name, 20 * number)
    (tmp_path / "list.txt").write_text("\n".join(f"in/{name}" for name in names))
    pipe = tmp_path / "in/d.png"  # in the second of four blocks
    data = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    first = started(tmp_path / "list.txt", tmp_path / "out")
    end = opened_by_a_worker(pipe)
    (worker,) = workers_of(first)
    worker.kill()
    os.close(end)
    worker.wait(WAIT)
    end = opened_by_a_worker(pipe)  # by the one in its place
    (worker,) = workers_of(first)
    second = started(tmp_path / "list.txt", tmp_path / "out")
    assert "another 'wnlb label' is at work in" in end_of(second)[2]
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(WAIT) == -signal.SIGKILL
    os.close(end)
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)  # by itself
    assert (
        first.stderr.read()
        == "wnlb label: a worker ended with c.png and 1 more (killed by signal 9); it is started again\n"
    )
    assert rows(tmp_path / "out") == dict.fromkeys(("a.png", "b.png", "e.png", "f.png"))
    assert not (tmp_path / "out/detections.json").exists()
    done = (tmp_path / "out/shards/000000.parquet").stat().st_mtime_ns
    pipe.unlink()
    pipe.write_bytes(data)
    (tmp_path / "in/g.png").unlink()
    code, out, err = end_of(started(tmp_path / "list.txt", tmp_path / "out"))
    assert (code, err) == (3, f"wnlb label: picture {tmp_path}/in/g.png cannot be read: No such file or directory\n")
    assert out.startswith("6 pictures, 1 could not be read")
    found = rows(tmp_path / "out")
    assert list(found) == names
    assert [name for name, error in found.items() if error] == ["g.png"]
    assert (tmp_path / "out/shards/000000.parquet").stat().st_mtime_ns == done
    document = json.loads((tmp_path / "out/detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == names[:-1]


def test_a_full_disk_ends_with_one_line_and_the_next_start_does_the_rest(
    started: Any, picture: Callable[..., Path], tmp_path: Path
) -> None:
    """A limit of what a file may hold, which the first shard keeps and the second, of long names, does not."""
    long = [f"{i}{''.join(f'{(i * 7919 + j * j * 31) % 1000:03d}' for j in range(70))}.png" for i in (1, 2)]
    names = ["0.png", "00.png", *long]
    for name in names:
        picture(tmp_path / "in" / name, 0)
    nothing = {"height": 32, "width": 48, "luminance": 0.0, "objects": []}
    limit = len(table_bytes([{"name": name, **nothing} for name in names[:2]])) + 50
    how = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    code, out, err = end_of(started(tmp_path / "in", tmp_path / "out", **how))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"wnlb label: error: {tmp_path}/out/shards/000001.parquet cannot be written: ")
    assert os.listdir(tmp_path / "out/shards") == ["000000.parquet"]
    code, out, _ = end_of(started(tmp_path / "in", tmp_path / "out"))
    assert (code, out.splitlines()[0]) == (0, "4 pictures; labels: none")
    assert list(rows(tmp_path / "out")) == names


def test_ctrl_c_says_one_line_and_leaves_no_worker(started: Any, picture: Callable[..., Path], tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 9)
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png")
    process = started(tmp_path / "list.txt", tmp_path / "out", start_new_session=True)
    end = opened_by_a_worker(tmp_path / "b.png")
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert end_of(process) == (130, "", "wnlb label: interrupted\n")
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    os.close(end)
