"""Speed of an exported file against eager torchvision and against PyTorch's plain export of the same model, on the CPU.

    python scripts/bench_export.py                 # ResNet-50, four blocks, 320x320: ratios and peak memory
    python scripts/bench_export.py --full-size     # export at 800x1344 with a block on C2, and one run: peak memory

All peers turn the same frame into the same 100 detections with masks of the frame's size: in one process, in turn, with
the same number of threads. Peak memory is that of a process of its own which does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from fresh_checkpoint import LIS_CLASSES, fresh_model
from torchvision.models.detection import MaskRCNN

from wnlb.export.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.model import ModelConfig
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

PEERS = ("wnlb file in ONNX Runtime", "eager torchvision", "plain export in ONNX Runtime")
Result = tuple[np.ndarray, np.ndarray]  # boxes [D, 4], scores [D]


def prepare(folder: Path, size: int) -> None:
    """The checkpoint and both files, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        config = ModelConfig(num_classes=9, backbone="resnet50", class_names=LIS_CLASSES)
        save_checkpoint(fresh_model(config), config, checkpoint)
    if not (folder / f"wnlb-{size}.onnx").exists():
        model, config = load_checkpoint(checkpoint)
        options = ExportOptions(size, size, target="cpu")
        export_onnx(model, folder / f"wnlb-{size}.onnx", options, class_names=config.class_names)
    plain = folder / f"plain-{size}.onnx"
    if not plain.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = ([torch.rand(3, size, size)],)
            torch.onnx.export(eager_model(folder, size), example, plain, opset_version=17, dynamo=False)


def eager_model(folder: Path, size: int) -> MaskRCNN:
    model, _ = load_checkpoint(folder / "checkpoint.safetensors")
    model.transform.min_size, model.transform.max_size = (size,), size
    return model


def open_peer(name: str, folder: Path, size: int, threads: int) -> Callable[[np.ndarray], Result]:
    """A function from a BGR frame to its detections, masks pasted."""
    torch.set_num_threads(threads)
    if name == PEERS[0]:
        predictor = Predictor(folder / f"wnlb-{size}.onnx", device="cpu", threads=threads)

        def ours(frame: np.ndarray) -> Result:
            found = predictor(frame)
            return found.boxes, found.scores

        return ours
    if name == PEERS[1]:
        model = eager_model(folder, size)

        def eager(frame: np.ndarray) -> Result:
            with torch.no_grad():
                found = model([torch.from_numpy(_planes(frame))])[0]
                _ = found["masks"] > 0.5
            return found["boxes"].numpy(), found["scores"].numpy()

        return eager
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(str(folder / f"plain-{size}.onnx"), options, providers=["CPUExecutionProvider"])

    def plain(frame: np.ndarray) -> Result:
        boxes, _, scores, masks = session.run(None, {session.get_inputs()[0].name: _planes(frame)})
        _ = masks > 0.5
        return boxes, scores

    return plain


def _planes(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)


def compare_speed(folder: Path, size: int, threads: int, rounds: int) -> list[dict[str, object]]:
    """Interleaved rounds over all peers; detections must be equal."""
    frame = dark_scene((1, size, size, 3))[0]
    peers = {name: open_peer(name, folder, size, threads) for name in PEERS}
    results = {name: run(frame) for name, run in peers.items()}
    boxes, scores = results[PEERS[1]]
    for name, (own_boxes, own_scores) in results.items():
        if len(own_scores) != len(scores):
            raise SystemExit(f"{name} finds {len(own_scores)} detections, eager {len(scores)}")
        order = [np.lexsort((*np.round(b, 0).T, np.round(s, 3))) for b, s in ((boxes, scores), (own_boxes, own_scores))]
        apart = np.abs(boxes[order[0]] - own_boxes[order[1]]).max()
        print(f"{name}: {len(own_scores)} detections, boxes within {apart:.1e} px of eager's")
    times: dict[str, list[float]] = {name: [] for name in PEERS}
    for number in range(-2, rounds):
        for name, run in peers.items():
            started = time.perf_counter()
            run(frame)
            if number >= 0:  # before that, ONNX Runtime still allocates
                times[name].append(1e3 * (time.perf_counter() - started))
    base = statistics.median(times[PEERS[0]])
    return [
        {
            "peer": name,
            "median_ms": statistics.median(ms),
            "min_ms": min(ms),
            "max_ms": max(ms),
            "ratio": statistics.median(ms) / base,
            "peak_mib": peak_of(["--peak", name, "--size", str(size), "--threads", str(threads), "-o", str(folder)]),
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


def do_and_print_peak(what: str, folder: Path, size: int, threads: int) -> None:
    """What ``peak_of`` starts."""
    path = folder / "wnlb-800x1344.onnx"
    if what == "export":
        model, _ = load_checkpoint(folder / "checkpoint.safetensors")
        export_onnx(model, path, ExportOptions(800, 1344))
    elif what == "run":
        Predictor(path, device="cpu")(dark_scene((1, 800, 1344, 3))[0])
    else:
        run = open_peer(what, folder, size, threads)
        for _ in range(3):
            run(dark_scene((1, size, size, 3))[0])
    # Not getrusage: its maximum includes that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"), help="folder for the files")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        do_and_print_peak(arguments.peak, arguments.output, arguments.size, arguments.threads)
    elif arguments.full_size:
        full_size(arguments.output)
    else:
        prepare(arguments.output, arguments.size)
        rows = compare_speed(arguments.output, arguments.size, arguments.threads, arguments.rounds)
        if arguments.json:
            print(json.dumps(rows, indent=2))
            return
        cells = [
            [f"{v:.2f}" if k == "ratio" else f"{v:.0f}" if isinstance(v, float) else v for k, v in row.items()]
            for row in rows
        ]
        print(
            f"\nResNet-50, four blocks, {arguments.size}x{arguments.size}, {arguments.threads} threads, "
            f"{arguments.rounds} interleaved rounds; PyTorch {torch.__version__}, ONNX Runtime {ort.__version__}\n"
        )
        print(table(("peer", "median ms", "min ms", "max ms", "times ours", "peak MiB"), cells))


if __name__ == "__main__":
    main()
