"""Every command and Python example of the README files is run in one folder, as it stands but for sizes and counts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_models import small_model
from small_peers import write_detectron2_checkpoint, write_mmdet_checkpoint
from small_solov2 import TinyHeads, write_heads
from small_yolo import write_small_yolo
from solo_checkpoint import small_config

from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.export.checkpoints.files.fetched import PUBLISHED
from wnlb.export.onnx_file.verify import dark_scene

ROOT = Path(__file__).parents[1]
ORDER = (
    "adopt",
    "export",
    "predict",
    "label",
    "scenes",
    "darken",
    "convert",
    "evaluate",
    "compare",
    "build",
    "deepstream",
    "inspect",
    "run",
    "triton",
    "profile",
)
PAGES = ("README.md", "export/README.md", "runtime/README.md", "calibration/README.md")


def blocks(language: str) -> list[str]:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("wnlb ")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: checkpoints, class names, pictures and a video."""
    folder = tmp_path_factory.mktemp("readme")
    torch.save({"model": small_model(levels=("c2",)).state_dict()}, folder / "checkpoint.pth")
    write_mmdet_checkpoint(folder / "epoch_12.pth", levels=())
    write_detectron2_checkpoint(folder / "model_final.pth", folder / "config.yaml", levels=())
    write_small_yolo(folder / "best.onnx")
    write_heads(folder / "solov2.onnx", TinyHeads("mmdetection", classes=len(CLASSES)))
    (folder / "solov2_r50_fpn.py").write_text(small_config())
    (folder / "names.txt").write_text("\n".join(CLASSES))
    picture = np.ascontiguousarray(dark_scene((1, 60, 90, 3))[0])
    for name in ("night.jpg", "night_pictures/a.png", "night_pictures/b.jpg", "night/deep/c.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(folder / name), picture)
    video = cv2.VideoWriter(str(folder / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    for _ in range(2):
        video.write(np.zeros((240, 320, 3), np.uint8))  # which holds the zones of the examples
    video.release()
    return folder


def test_commands_run_as_they_stand(
    folder: Path, wnlb_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of each in a process of its own; the others in this one, which has imported all that they need."""
    monkeypatch.chdir(folder)
    ran: set[str] = set()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in sorted(commands(), key=lambda line: ORDER.index(line.split()[1])):
        words = shlex.split(line)
        if words[1] in ("predict", "run") and (words[2].endswith(".engine") or words[3].isdecimal()):
            continue  # a GPU, a camera
        if "://" in words[2] or "--probe" in words:
            continue  # a server: tests/runtime/serving
        if words[1] == "label" and "://" in line:
            continue  # the network
        if words[1] == "export" and (words[2] in PUBLISHED or "://" in words[2]):
            continue  # the network
        if words[1] == "scenes":
            words += ["--count", "4", "--size", "64x96"]
            words += ["--frames", "4"] if "--video" in words else []
        words = ["64x96" if re.fullmatch(r"\d+x\d+", word) else word for word in words]
        if words[1] == "export":
            words += [
                "--pre-nms",
                "50",
                "--post-nms",
                "50",
                "--candidates",
                "50",
                "--detections",
                "20",
                "--nms-rounds",
                "16",
            ]
            words += [] if "model.onnx" in words else ["--masks", "none"]  # of files that no other command reads
        if words[1] == "profile":
            words += ["--duration", "0.1", "--warm-up", "10", "--no-stages"]
            words += [] if "--annotations" in words else ["--no-accuracy"]
            words += ["--precisions", "fp16", "--backends", "onnxruntime"] if "checkpoint.pth" in words else []
        if "int8" in words:
            words += ["--count", "2", "--trial-pictures", "1", "--method", "max"]
            words += ["--keep", "stem,c2,c3,c4,c5,fpn,rpn"]  # a trial for each of the others
        if "--compare" in words:
            for name in ("old", "new"):
                (folder / name).mkdir()
                shutil.copy(folder / "report" / "report.json", folder / name)
        shutil.rmtree(folder / "out", ignore_errors=True)
        if words[1] in ran:
            again = wnlb_here(*words[1:])
            code, said = again.code, again.err
        else:
            first = subprocess.run(words, env=environment, capture_output=True, text=True)
            code, said = first.returncode, first.stderr
        assert code == 0, f"{line}: {said}"
        ran.add(words[1])
    assert ran == set(ORDER)


def test_python_examples_run(folder: Path, small_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not Path("model.onnx").exists():
        shutil.copy(small_model_path, "model.onnx")
    target = {
        "boxes": torch.tensor([[5.0, 5, 40, 40]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    names = {"images": [torch.rand(3, 64, 64)] * 2, "targets": [target] * 2}
    examples = blocks("python")
    assert len(examples) == 6
    for example in examples:
        if "wnlb_maskrcnn(" in example:  # torchvision enlarges to 800 px by default: more than a test should wait for
            example = example.replace(
                "model = wnlb_maskrcnn(", "model = wnlb_maskrcnn(detector_options=SMALL, backbone="
            )
            names["SMALL"] = {"min_size": 64, "max_size": 64}
        exec(example, names)
    assert names["losses"]["loss_mask"].isfinite()
    assert names["detections"].boxes.shape == (len(names["detections"].masks), 4)
    assert Path("overlay.jpg").stat().st_size > 0


def test_every_command_is_documented_and_every_page_linked() -> None:
    from wnlb.runtime.cli import COMMANDS

    text = (ROOT / "README.md").read_text().replace("`wnlb doctor`", "`wnlb doctor `")
    for name in COMMANDS:
        assert f"`wnlb {name} " in text
    for link in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", text):
        assert (ROOT / link).exists(), link
