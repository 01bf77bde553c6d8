"""Speed of an exported file against eager torchvision and against PyTorch's plain export of the same model, on the CPU.

    python scripts/bench_export.py                 # ResNet-50, four blocks, 320x320: ratios and peak memory
    python scripts/bench_export.py --detections 5  # the same where the frame holds five
    python scripts/bench_export.py --full-size     # export at 800x1344 with a block on C2, and one run: peak memory

OpenVINO runs the file as well, as a fourth peer where it is installed (``pip install openvino``; nothing needs it).

All peers turn the same frame into the same 100 detections (or ``--detections``, by their score threshold) with masks of
the frame's size: in one process, in turn, with the same number of threads. Peak memory is that of a process of its own
which does nothing else. A ``checkpoint.safetensors`` in the folder is taken instead of the ResNet-50.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from counts import from_
from fresh_checkpoint import LIS_CLASSES, fresh_model
from torchvision.models.detection import MaskRCNN

from wnlb.export.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.model import ModelConfig
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.verify import dark_scene, with_score_threshold
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import exit_code
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

OURS, EAGER, PLAIN, OPENVINO = (
    "wnlb file in ONNX Runtime",
    "eager torchvision",
    "plain export in ONNX Runtime",
    "wnlb file in OpenVINO",
)
PEERS = (OURS, EAGER, PLAIN, *([OPENVINO] if importlib.util.find_spec("openvino") else []))
Result = tuple[np.ndarray, np.ndarray]  # boxes [D, 4], scores [D]


_SETTLED_S = 0.05  # after which the threads of the peer before no longer wait busily for more work


@dataclass(frozen=True)
class Files:
    """What the peers run, in a folder."""

    folder: Path
    size: int  # px
    detections: int  # that the frame holds

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def ours(self) -> Path:
        return self._named("wnlb", "onnx")

    @property
    def plain(self) -> Path:
        return self._named("plain", "onnx")

    @property
    def threshold(self) -> Path:
        """Of scores, as text."""
        return self._named("threshold", "txt")

    @property
    def frame(self) -> np.ndarray:
        return dark_scene((1, self.size, self.size, 3))[0]

    def _named(self, what: str, suffix: str) -> Path:
        return self.folder / f"{what}-{self.size}-{self.detections}.{suffix}"


def prepare(files: Files) -> None:
    """The checkpoint, the threshold and both files, unless they are there."""
    folder, size = files.folder, files.size
    folder.mkdir(parents=True, exist_ok=True)
    if not files.checkpoint.exists():
        config = ModelConfig(num_classes=9, backbone="resnet50", class_names=LIS_CLASSES)
        save_checkpoint(fresh_model(config), config, files.checkpoint)
    if not files.threshold.exists():
        files.threshold.write_text(str(threshold_of(files)))
    verified = folder / f"wnlb-{size}.onnx"
    if not verified.exists():
        model, config = load_checkpoint(files.checkpoint)
        export_onnx(model, verified, ExportOptions(size, size, target="cpu"), class_names=config.class_names)
    if not files.ours.exists():
        files.ours.write_bytes(with_score_threshold(verified, float(files.threshold.read_text())))
    if not files.plain.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = ([torch.rand(3, size, size)],)
            model = eager_model(files, float(files.threshold.read_text()))
            torch.onnx.export(model, example, files.plain, opset_version=17, dynamo=False)


def threshold_of(files: Files) -> float:
    """The score threshold that lets so many detections through."""
    with torch.no_grad():
        scores = eager_model(files, 0.0)([torch.from_numpy(_planes(files.frame))])[0]["scores"]
    if files.detections >= len(scores):
        return 0.0
    return float(scores[files.detections - 1 : files.detections + 1].mean()) if files.detections else 1.0


def eager_model(files: Files, threshold: float) -> MaskRCNN:
    model, _ = load_checkpoint(files.checkpoint)
    model.transform.min_size, model.transform.max_size = (files.size,), files.size
    model.roi_heads.score_thresh = threshold
    return model


class OpenVino:
    """Our file as OpenVINO runs it, in float32; see ``wnlb.runtime.backend.Backend``."""

    takes_device_arrays = False
    at_once = 1

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        self.contract, self.description = read_model(path)[1], f"OpenVINO {openvino.__version__}"
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        found = self._compiled(inputs)
        return {name: found[name] for name in self.contract.output_shapes}

    def close(self) -> None:
        pass


def open_peer(name: str, files: Files, threads: int) -> Callable[[np.ndarray], Result]:
    """A function from a BGR frame to its detections, masks pasted."""
    torch.set_num_threads(threads)
    if name in (OURS, OPENVINO):
        backend = (
            OpenVino(files.ours, threads)
            if name == OPENVINO
            else OnnxRuntimeBackend(files.ours, device="cpu", threads=threads)
        )
        predictor = Predictor(backend)

        def ours(frame: np.ndarray) -> Result:
            found = predictor(frame)
            return found.boxes, found.scores

        return ours
    if name == EAGER:
        model = eager_model(files, float(files.threshold.read_text()))

        def eager(frame: np.ndarray) -> Result:
            with torch.no_grad():
                found = model([torch.from_numpy(_planes(frame))])[0]
                _ = found["masks"] > 0.5
            return found["boxes"].numpy(), found["scores"].numpy()

        return eager
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(str(files.plain), options, providers=["CPUExecutionProvider"])

    def plain(frame: np.ndarray) -> Result:
        boxes, _, scores, masks = session.run(None, {session.get_inputs()[0].name: _planes(frame)})
        _ = masks > 0.5
        return boxes, scores

    return plain


def _planes(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)


def compare_speed(files: Files, threads: int, rounds: int) -> list[dict[str, object]]:
    """Interleaved rounds over all peers; detections must be equal."""
    frame = files.frame
    peers = {name: open_peer(name, files, threads) for name in PEERS}
    results = {name: run(frame) for name, run in peers.items()}
    boxes, scores = results[EAGER]
    for name, (own_boxes, own_scores) in results.items():
        if len(own_scores) != len(scores):
            raise SystemExit(f"{name} finds {len(own_scores)} detections, eager {len(scores)}")
        order = [np.lexsort((*np.round(b, 0).T, np.round(s, 3))) for b, s in ((boxes, scores), (own_boxes, own_scores))]
        apart = np.abs(boxes[order[0]] - own_boxes[order[1]]).max(initial=0)
        print(f"{name}: {len(own_scores)} detections, boxes within {apart:.1e} px of eager's")
    times: dict[str, list[float]] = {name: [] for name in PEERS}
    for number in range(-2, rounds):
        for name, run in peers.items():
            time.sleep(_SETTLED_S)
            started = time.perf_counter()
            run(frame)
            if number >= 0:  # before that, ONNX Runtime still allocates
                times[name].append(1e3 * (time.perf_counter() - started))
    base = statistics.median(times[OURS])
    same = ("--size", files.size, "--detections", files.detections, "--threads", threads, "-o", files.folder)
    return [
        {
            "peer": name,
            "median_ms": statistics.median(ms),
            "min_ms": min(ms),
            "max_ms": max(ms),
            "ratio": statistics.median(ms) / base,
            "peak_mib": peak_of(["--peak", name, *map(str, same)]),
        }
        for name, ms in times.items()
    ]


def peak_of(arguments: list[str]) -> int:
    """Peak resident memory in MiB of this script run with these arguments."""
    run = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return int(run.stdout.splitlines()[-1])


def full_size(folder: Path) -> None:
    """Export at 800x1344 and run once, each in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, output = folder / "checkpoint.safetensors", folder / "wnlb-800x1344.onnx"
    output.unlink(missing_ok=True)
    if not checkpoint.exists():
        config = ModelConfig(num_classes=9, backbone="resnet50", class_names=LIS_CLASSES)
        save_checkpoint(fresh_model(config), config, checkpoint)
    for what in ("export", "run"):
        started = time.perf_counter()
        peak = peak_of(["--peak", what, "-o", str(folder)])
        print(f"{what} at 800x1344: peak {peak} MiB, {time.perf_counter() - started:.0f} s")


def do_and_print_peak(what: str, files: Files, threads: int) -> None:
    """What ``peak_of`` starts."""
    path = files.folder / "wnlb-800x1344.onnx"
    if what == "export":
        model, _ = load_checkpoint(files.checkpoint)
        export_onnx(model, path, ExportOptions(800, 1344))
    elif what == "run":
        Predictor(path, device="cpu")(dark_scene((1, 800, 1344, 3))[0])
    else:
        run = open_peer(what, files, threads)
        for _ in range(3):
            run(files.frame)
    # Not getrusage: its maximum includes that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"), help="folder for the files")
    parser.add_argument("--size", type=from_(64), default=320, help="px, a multiple of 32 (default: 320)")
    parser.add_argument(
        "--detections", type=from_(0, 100), default=100, help="that the frame holds, 0 to 100 (default: 100)"
    )
    parser.add_argument("--threads", type=from_(1), default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=from_(1), default=15)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = Files(arguments.output, arguments.size, arguments.detections)
    if arguments.peak:
        do_and_print_peak(arguments.peak, files, arguments.threads)
    elif arguments.full_size:
        full_size(arguments.output)
    else:
        prepare(files)
        rows = compare_speed(files, arguments.threads, arguments.rounds)
        if arguments.json:
            print(json.dumps(rows, indent=2))
            return
        cells = [
            [f"{v:.2f}" if k == "ratio" else f"{v:.0f}" if isinstance(v, float) else v for k, v in row.items()]
            for row in rows
        ]
        print(
            f"\n{arguments.size}x{arguments.size}, {arguments.detections} detections, {arguments.threads} threads, "
            f"{arguments.rounds} interleaved rounds; PyTorch {torch.__version__}, ONNX Runtime {ort.__version__}\n"
        )
        print(table(("peer", "median ms", "min ms", "max ms", "times ours", "peak MiB"), cells))


if __name__ == "__main__":
    sys.exit(exit_code(main))
