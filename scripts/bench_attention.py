"""Non-local attention on the CPU: the exported form, in pieces, against plain MatMul/Softmax, both in ONNX Runtime.

    python scripts/bench_attention.py --sizes 416x608,640x640

On a GPU `scripts/gpu_evidence --only fast` holds our kernel against PyTorch's attention backends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counts import from_
from evidence.attention import Shape, shapes
from torch import Tensor

from wnlb.runtime.errors import exit_code
from wnlb.runtime.table import human_bytes, table

SIZES = ("416x608", "640x640", "800x1344")  # 600x400, padded, is 416x608


def export_attention(shape: Shape, memory_bytes: int, path: Path) -> None:
    """One embedded attention as the export writes it: query, key, value ``[B, d, N]`` in, output out."""
    from wnlb.export.block import WeightedNonLocalBlock
    from wnlb.export.graph.attention import plan_attention

    block = WeightedNonLocalBlock(2 * shape.d, inner_channels=shape.d)
    torch.nn.init.ones_(block.w)
    plan = plan_attention(shape.level, block, 1, shape.n, shape.batch, memory_bytes)

    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            rows = -(-shape.n // plan.chunks)
            tokens = value.transpose(1, 2)
            parts = [torch.softmax(part @ key, -1) @ tokens for part in query.transpose(1, 2).split(rows, 1)]
            return torch.cat(parts, 1).transpose(1, 2)

    example = tuple(torch.zeros(shape.batch, shape.d, shape.n) for _ in range(3))
    names = ["query", "key", "value"]
    torch.onnx.export(Attention(), example, path, input_names=names, output_names=["y"], dynamo=False, opset_version=18)


def run_on_cpu(shape: Shape, model: Path, threads: int) -> dict[str, float]:
    """Median milliseconds and peak memory, in a process that does nothing else: the peak is that of the runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    scale = (2.25 / shape.d) ** 0.25
    dims = (shape.batch, shape.d, shape.n)
    feeds = {name: (rng.standard_normal(dims) * scale).astype(np.float32) for name in ("query", "key", "value")}
    before = _resident_peak()
    for _ in range(2):
        session.run(None, feeds)
    measured = []
    for _ in range(7):
        start = time.perf_counter()
        session.run(None, feeds)
        measured.append(1000 * (time.perf_counter() - start))
    return {"ms": statistics.median(measured), "bytes": _resident_peak() - before}


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


def on_cpu(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows, lines = [], []
    for shape in shapes(arguments.sizes.split(","), batch=1):
        found = {}
        for name, memory in (("in pieces", 32 * 2**20), ("plain", 2**40)):
            if name == "plain" and 3 * 4 * shape.n**2 > _available():
                found[name] = None  # the matrix, its softmax and room to spare
                continue
            with tempfile.TemporaryDirectory() as folder:
                model, task = Path(folder) / "attention.onnx", Path(folder) / "task.json"
                export_attention(shape, memory, model)
                task.write_text(json.dumps({**vars(shape), "model": str(model), "threads": arguments.threads}))
                command = [sys.executable, __file__, "--one", str(task)]
                done = subprocess.run(command, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
        rows.append({**vars(shape), "peers": found})
        ours, plain = found["in pieces"], found["plain"]
        cells = [[f"{peer['ms']:.1f}", human_bytes(peer["bytes"])] if peer else ["-", "-"] for peer in (ours, plain)]
        ratio = f"{plain['ms'] / ours['ms']:.2f}" if ours and plain else "-"
        lines.append((shape.size, shape.level, shape.n, shape.d, *cells[0], *cells[1], ratio))
    header = ("input", "level", "N", "d", "pieces ms", "memory", "plain ms", "memory", "times ours")
    print(table(header, lines))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), metavar="HxW,...", help="inputs (default: %(default)s)")
    parser.add_argument("--threads", type=from_(1), default=2, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        task = json.loads(arguments.one.read_text())
        shape = Shape(task["size"], task["level"], task["batch"], task["d"], task["n"])
        print(json.dumps(run_on_cpu(shape, Path(task["model"]), task["threads"])))
        return 0
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    rows = on_cpu(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
