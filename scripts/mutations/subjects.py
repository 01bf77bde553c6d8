"""The kinds of files that are damaged: good ones, and what reads them.

PyTorch and its exporter take five seconds to import: only what needs them does so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import onnx

from mutations.damage import damaged_bytes, damaged_json
from mutations.running import Subject
from wnlb.calibration.accuracy.classes import one_category_a_name
from wnlb.calibration.accuracy.score import score
from wnlb.calibration.labels.reader import read_labels
from wnlb.runtime.cli import main
from wnlb.runtime.engine.manifest import Manifest, manifest_path
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.profile.report import FORMAT


def command(*words: object) -> None:
    """Run a command in this process. Its one line of error is raised again, whatever else it does shows."""
    said: list[str] = []
    with _listening(said):
        code = main(list(map(str, words)))
    text = "".join(said)
    if code == 2:
        raise WnlbError(text.strip().removeprefix("error: ") or " \n ")
    if code not in (0, 1, 3):
        raise RuntimeError(f"exit code {code}: {text[:300]}")


@contextlib.contextmanager
def _listening(said: list[str]):  # type: ignore[no-untyped-def]
    class Listener:
        def write(self, text: str) -> int:
            said.append(text)
            return len(text)

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    with contextlib.redirect_stderr(Listener()):  # type: ignore[type-var]
        yield


def checkpoints(folder: Path) -> list[Path]:
    """The same weights in four containers, each in a folder of its own."""
    import torch

    from wnlb.export.checkpoints.checkpoint import save_checkpoint

    model, config = _network()
    paths = [
        _in(folder, name, f"model.{suffix}") for name, suffix in (("a", "pth"), ("b", "pth"), ("c", "safetensors"))
    ]
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    state = {"model": weights, "epoch": 12, "lr": np.float64(0.1), "args": {"batch": 4, "name": "night"}}
    torch.save(state, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    save_checkpoint(model, config, paths[2], torch.float16)
    return paths


def loaded(path: Path) -> object:
    from wnlb.export.checkpoints.checkpoint import load_checkpoint

    return load_checkpoint(path)


def onnx_files(folder: Path) -> list[Path]:
    from wnlb.export.onnx_file.export_onnx import export_onnx
    from wnlb.export.options import ExportOptions

    path, (model, config) = _in(folder, "a", "model.onnx"), _network()
    options = ExportOptions(64, 64, pre_nms_top_n=8, post_nms_top_n=8, candidates=8, detections=4)
    export_onnx(model, path, options, class_names=config.class_names)
    return [path]


def _network() -> tuple[Any, Any]:
    """A narrow model and its configuration."""
    from fresh_checkpoint import LIS_CLASSES, fresh_model

    from wnlb.export.model import ModelConfig

    narrow = {"fpn_channels": 16, "box_features": 16, "mask_channels": (8, 8), "mask_hidden": 8}
    config = ModelConfig(num_classes=9, backbone="resnet18", class_names=LIS_CLASSES, **narrow)
    return fresh_model(config, size=64), config


def damaged_onnx(path: Path, rng: Random) -> bytes:
    """Bytes anywhere, or in the metadata, whose text is a small part of the file."""
    if rng.random() < 0.5:
        return damaged_bytes(path, rng)
    model = onnx.load(path)
    entry = rng.choice(model.metadata_props)
    written = path.with_name("entry.json")
    try:
        written.write_text(entry.value if entry.value.startswith("{") else json.dumps({"value": entry.value}))
        data = damaged_json(written, rng) if entry.value.startswith("{") else damaged_bytes(written, rng)
    finally:
        written.unlink()
    content = model.SerializeToString()
    return content.replace(entry.value.encode(), data)


def pictures(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    paths = [_in(folder, suffix, f"night.{suffix}") for suffix in ("png", "jpg", "bmp", "tif", "webp", "ppm")]
    for path in paths:
        cv2.imwrite(str(path), noise)
    paths.append(_in(folder, "deep", "night.png"))
    cv2.imwrite(str(paths[-1]), noise.astype(np.uint16) * 16)
    return paths


def manifests(folder: Path) -> list[Path]:
    engine, words = (
        _in(folder, "a", "model.engine"),
        {"library": "tensorrt", "version": "10.3.0", "tool_version": "0.1.0"},
    )
    engine.write_bytes(b"an engine" * 100)
    texts = ("onnx", "gpu", "compute_capability", "driver", "cuda", "plugin_sha256")
    manifest = Manifest(
        **{**dict.fromkeys(texts, "10"), **words},
        engine_sha256=sha256_of(engine),
        engine_bytes=900,
        onnx_sha256="0" * 64,
        attention="standard",
        options={"compute_capabilities": ["8.9"]},
        inputs={"image": "uint8"},
        outputs={},
        contract={},
        build_seconds=1.5,
        layers=[{"name": "a", "type": "CONVOLUTION", "precision": "fp16"}],
    )
    manifest_path(engine).write_text(manifest.to_json())
    return [manifest_path(engine)]


def damaged_manifest(path: Path, rng: Random) -> bytes:
    """Half of them with a hash that fits the damage, as somebody's own tool would write it."""
    data = damaged_json(path, rng)
    with contextlib.suppress(ValueError):
        values = json.loads(data)
        if isinstance(values, dict) and rng.random() < 0.5:
            values.pop("manifest_sha256", None)
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            return json.dumps({**values, "manifest_sha256": digest}).encode()
    return data


def reports(folder: Path) -> list[Path]:
    path, times = _in(folder, "a", "report.json"), [10.0 + 0.01 * i for i in range(40)]
    parts = {"total": {"p50": 10.2, "p99": 10.4, "mean": 10.2}}
    row = {
        "name": "a.onnx",
        "backend": "onnxruntime",
        "precision": "fp32",
        "attention": "standard",
        "samples_ms": times,
        "samples_at_s": times,
        "parts": parts,
        "stages": {"c2": 1.0},
        "accuracy": {"mask": 0.5},
        "failure": "",
    }
    report = {"format": FORMAT, "machine": {"processor": "x"}, "rows": [row, {**row, "name": "b.onnx"}]}
    path.write_text(json.dumps(report))
    (path.parent / "old").mkdir()
    (path.parent / "old" / "report.json").write_text(json.dumps(report))
    return [path]


def labels(folder: Path) -> list[Path]:
    """Of three scenes: once with RLE as we write it, once with polygons, crowds and categories that nobody has."""
    paths = [_in(folder, name, "annotations.json") for name in ("a", "b")]
    command("scenes", "-o", paths[0].parent / "set", "--count", 3, "--size", "64x96", "--seed", 3)
    written = json.loads((paths[0].parent / "set" / "annotations.json").read_text())
    paths[0].write_text(json.dumps(written))
    for number, entry in enumerate(written["annotations"]):
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry["iscrowd"] = int(number == 1)
    written["categories"].append({"id": 99, "name": "unused", "supercategory": "none"})
    paths[1].write_text(json.dumps(written))
    return paths


def scored(path: Path) -> None:
    """Read labels, and score what they themselves hold."""
    found = one_category_a_name(read_labels(path))
    results = [
        {"image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox), "score": 0.5}
        for a in found.annotations
    ]
    score(found, results, {"0-1": [image.id for image in found.images]}, "itself", masks=False)


def _in(folder: Path, name: str, file: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name / file


def _kind(
    name: str,
    make: Callable[[Path], list[Path]],
    damage: Callable[[Path, Random], bytes],
    read: Callable[[Path], object],
) -> tuple[str, Subject]:
    return name, Subject(name, make, damage, read)


SUBJECTS = dict(
    (
        _kind("labels", labels, damaged_json, scored),
        _kind("checkpoints", checkpoints, damaged_bytes, loaded),
        _kind("onnx", onnx_files, damaged_onnx, lambda path: command("inspect", path)),
        _kind("pictures", pictures, damaged_bytes, read_picture),
        _kind("manifests", manifests, damaged_manifest, lambda path: command("inspect", path.with_suffix(""))),
        _kind(
            "reports",
            reports,
            damaged_json,
            lambda path: command("profile", "--compare", path.parent / "old" / "report.json", path),
        ),
    )
)
