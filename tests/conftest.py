"""A small real model, exported once in a run; contracts; the command, in a process of its own and in this one."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, which reads it then
    os.environ["TRITON_INTERPRET"] = "1"

from small_models import small_config, small_model

from wnlb.export.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.cli import main
from wnlb.runtime.contract import Contract
from wnlb.runtime.conventions import MASK_RCNN

# Counts that a CPU is through with in a fifth of the time of the usual ones.
BRIEF = {"pre_nms_top_n": 100, "post_nms_top_n": 60, "candidates": 480, "nms_rounds": 16}

BATCHES = {**BRIEF, "detections": 40, "batch": 5, "min_batch": 1}

# Looking for cycles among PyTorch's half a million objects takes a tenth of an export.
gc.freeze()
gc.set_threshold(100_000, 20, 50)


with contextlib.suppress(ImportError):  # of PyTorch's inside: without it a run is slower, no more
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    _registry = functools.cache(ONNXRegistry.from_torchlib)

    @staticmethod
    def _same_registry(**options: Any) -> ONNXRegistry:
        """PyTorch's translations, which each export would put together anew: a tenth of its time."""
        own = copy.copy(_registry(**options))
        own.functions = {name: [*found] for name, found in own.functions.items()}
        return own

    ONNXRegistry.from_torchlib = _same_registry


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each worker has its own part of the files, where a module's fixtures are made once, and helps out at the end."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


# A quarter of a run in a dozen tests.
LONGEST = ("test_readme.py", "evidence/test_command.py", "test_sample.py", "runtime/test_emulated.py")
LONGEST += (
    "test_mutations.py",
    "test_packaging.py",
    "test_train_sample.py",
    "calibration/scenes/test_contact_sheet.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    first = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers of a run."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session")
def small_checkpoint_path(shared_folder: Path) -> Path:
    path = shared_folder / "small.safetensors"
    with made_once(path):
        if not path.exists():
            save_checkpoint(small_model(), small_config(), path)
    return path


@pytest.fixture(scope="session")
def small_model_path(small_checkpoint_path: Path) -> Path:
    """64 x 96 input, LIS's classes, many nonsense detections."""
    return _exported(small_checkpoint_path, "small.onnx", ExportOptions(64, 96))


@pytest.fixture(scope="session")
def brief_model_path(small_checkpoint_path: Path) -> Path:
    """The same network with ``BRIEF`` counts."""
    return _exported(small_checkpoint_path, "brief.onnx", ExportOptions(64, 96, **BRIEF))


@pytest.fixture(scope="session")
def small_cpu_model_path(small_checkpoint_path: Path) -> Path:
    """``brief_model_path`` for a CPU."""
    return _exported(small_checkpoint_path, "small.cpu.onnx", ExportOptions(64, 96, target="cpu", **BRIEF))


@pytest.fixture(scope="session")
def batches_model_path(small_checkpoint_path: Path) -> Path:
    """``brief_model_path`` with 40 rows, for 1 to 5 images."""
    return _exported(small_checkpoint_path, "batches.onnx", ExportOptions(64, 96, **BATCHES))


@pytest.fixture(scope="session")
def batches_cpu_model_path(small_checkpoint_path: Path) -> Path:
    """The same for a CPU."""
    return _exported(small_checkpoint_path, "batches.cpu.onnx", ExportOptions(64, 96, target="cpu", **BATCHES))


def _exported(checkpoint: Path, name: str, options: ExportOptions) -> Path:
    """A file beside the checkpoint, made by the worker that needs it first."""
    path = checkpoint.with_name(name)
    with made_once(path):
        if not path.exists():
            model, config = load_checkpoint(checkpoint)
            export_onnx(model, path, options, class_names=config.class_names)
    return path


@contextlib.contextmanager
def made_once(path: Path) -> Iterator[None]:
    """While one worker is inside, the others wait."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def make_contract() -> Callable[..., Contract]:
    """A contract of a 64 x 96 model with two rows, but for the entries given."""

    def make(**entries: object) -> Contract:
        counts: dict[str, int | None] = dict.fromkeys(
            ("pre_nms_top_n", "post_nms_top_n", "candidates", "nms_rounds", "batch"), 1
        )
        thresholds: dict[str, float | None] = {"score_threshold": 0.0, "nms_threshold": 0.5, "rpn_nms_threshold": 0.7}
        if entries.get("framework", "torchvision") not in MASK_RCNN:
            counts |= dict.fromkeys(("pre_nms_top_n", "post_nms_top_n"))
            thresholds["rpn_nms_threshold"] = None
        shape = {"height": 64, "width": 96, "class_names": ("lamp", "dark cat"), "detections": 2}
        return Contract(**{**counts, **thresholds, **shape, **entries})

    return make


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The message of a command that says one line and exits with 2."""
        assert self.code == 2, self
        assert self.out == "", self
        assert self.err.startswith("wnlb"), self
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        return self.err.strip()


@pytest.fixture(scope="session")
def wnlb() -> Callable[..., Ran]:
    """Runs ``wnlb`` with these words in a process of its own, without a display."""

    def run(*words: object, cwd: Path | None = None) -> Ran:
        hidden = ("DISPLAY", "WAYLAND_DISPLAY", "OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL")
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, cwd=cwd, env=env, timeout=600, check=False)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def wnlb_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """As ``wnlb``, in this process: for many commands that end soon, or need PyTorch, which takes seconds to import."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([*map(str, words)])
        except SystemExit as ended:  # how argparse refuses
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    return run
