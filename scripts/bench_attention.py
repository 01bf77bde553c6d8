"""Non-local attention against its peers, on a GPU (our kernel) or on the CPU (the exported standard form).

    python scripts/bench_attention.py                    # on a GPU: every level of three input sizes, FP16 and FP32
    python scripts/bench_attention.py --sizes 640x640 --batch 1 --dtype float16
    python scripts/bench_attention.py --device cpu       # ONNX Runtime: in pieces against plain MatMul/Softmax

On a GPU, our kernel (each tile that is built for the card) competes with every backend of PyTorch's
scaled_dot_product_attention that takes the shape (scale=1) and with plain matmul and softmax. First all are compared
with float64 on random data; then each is captured in a CUDA graph and replayed, and the median of the replays counts.
Peers get [B, 1, N, d], the layout they like best, without being charged for the transposes that a network would need.
The share of the peak refers to the fastest matrix product of the same type measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wnlb.runtime.errors import exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.table import human_bytes, table

SIZES = ("416x608", "640x640", "800x1344")  # 600x400, padded, is 416x608
LEVELS = {"c2": (4, 128), "c3": (8, 256), "c4": (16, 512), "c5": (32, 1024)}  # stride, head of ResNet-50
LIMIT_SECONDS = 2.0  # a peer that takes longer for one run is measured once


@dataclass(frozen=True)
class Shape:
    """One attention: ``[batch, d, N]``."""

    size: str
    level: str
    batch: int
    d: int
    n: int

    @property
    def flops(self) -> float:
        return 4.0 * self.batch * self.n * self.n * self.d


def shapes(sizes: list[str], batches: list[int]) -> list[Shape]:
    found = []
    for size in sizes:
        height, width = parse_size(size)
        for level, (stride, d) in LEVELS.items():
            for batch in batches:
                found.append(Shape(size, level, batch, d, (height // stride) * (width // stride)))
    return found


# On a GPU


def draw(shape: Shape, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Query, key and value ``[B, d, N]`` whose logits have a standard deviation of 1.5."""
    generator = torch.Generator("cuda").manual_seed(seed)
    scale = (2.25 / shape.d) ** 0.25
    dims = (shape.batch, shape.d, shape.n)
    parts = [torch.randn(dims, device="cuda", generator=generator) for _ in range(3)]
    return [(part * factor).to(dtype) for part, factor in zip(parts, (scale, scale, 1.0), strict=True)]


def error_of(got: Tensor, inputs: list[Tensor]) -> float:
    """Relative error against float64, on up to 512 query positions."""
    query, key, value = inputs
    rows = torch.linspace(0, query.shape[2] - 1, min(512, query.shape[2]), device="cuda").long()
    wrong = norm = 0.0
    for i in range(query.shape[0]):
        logits = query[i][:, rows].double().T @ key[i].double()
        expected = value[i].double() @ logits.softmax(1).T
        wrong += (got[i][:, rows].double() - expected).square().sum().item()
        norm += expected.square().sum().item()
    return float((wrong / norm) ** 0.5)


def graph_time(action: Callable[[], Any], replays: int = 30) -> float:
    """Median milliseconds of one action: graphs of several, replayed, timed by events."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        action()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        action()
        end.record(stream)
        end.synchronize()
        single = start.elapsed_time(end)
        if single > 1000 * LIMIT_SECONDS:
            return single
        times = max(1, min(20, int(2.0 / max(single, 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(times):
                action()
        for _ in range(3):
            graph.replay()
        measured = []
        for _ in range(replays):
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            measured.append(start.elapsed_time(end) / times)
    return statistics.median(measured)


def peers(inputs: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Name to action; each returns ``[B, d, N]`` or a view of it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens = [t.transpose(1, 2).unsqueeze(1).contiguous() for t in inputs]  # [B, 1, N, d]
    query, key, value = inputs

    def backend(kind: SDPBackend) -> Callable[[], Tensor]:
        def action() -> Tensor:
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(*tokens, scale=1.0).squeeze(1).transpose(1, 2)

        return action

    def plain() -> Tensor:
        return value @ torch.softmax(query.transpose(1, 2) @ key, -1).transpose(1, 2)

    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    return {**{f"sdpa {name}": backend(kind) for name, kind in kinds.items()}, "matmul/softmax": plain}


def matrix_peak(dtype: torch.dtype) -> float:
    """TFLOP/s of the largest matrix product of this type."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / graph_time(lambda: a @ b, 10) / 1e9


def measure(action: Callable[[], Tensor], inputs: list[Tensor], shape: Shape) -> dict[str, Any]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    try:
        error = error_of(action(), inputs)
        memory = torch.cuda.max_memory_allocated() - held
        milliseconds = graph_time(action)
    except (RuntimeError, torch.OutOfMemoryError) as reason:
        return {"refused": str(reason).strip().splitlines()[0][:80]}
    return {"ms": milliseconds, "tflops": shape.flops / milliseconds / 1e9, "error": error, "bytes": memory}


def on_gpu(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from wnlb.plugins.attention import non_local_attention
    from wnlb.plugins.tiles import PORTABLE, SHARED_MEMORY, tiles_for

    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    tiles_of = arch if arch in SHARED_MEMORY else PORTABLE
    print(f"{torch.cuda.get_device_name()}, SM {major}.{minor}, PyTorch {torch.__version__}")
    rows = []
    for name in arguments.dtype.split(","):
        dtype = getattr(torch, name)
        peak = matrix_peak(dtype)
        print(f"{name}: matrix products reach {peak:.0f} TFLOP/s")
        for shape in shapes(arguments.sizes.split(","), [int(b) for b in arguments.batch.split(",")]):
            inputs = draw(shape, dtype, seed=len(rows))
            actions = peers(inputs)
            for tile in tiles_for(tiles_of, shape.d, shape.d, name):
                actions[f"ours {tile.name}"] = lambda tile=tile, inputs=inputs: non_local_attention(*inputs, tile)
            found = {peer: measure(action, inputs, shape) for peer, action in actions.items()}
            rows.append({"dtype": name, "peak_tflops": peak, **vars(shape), "peers": found})
            print(_line(rows[-1]), flush=True)
    return rows


def _best(found: dict[str, dict[str, Any]], ours: bool) -> tuple[str, dict[str, Any]] | None:
    timed = {k: v for k, v in found.items() if "ms" in v and k.startswith("ours") == ours}
    return min(timed.items(), key=lambda item: item[1]["ms"]) if timed else None


def _line(row: dict[str, Any]) -> str:
    head = f"{row['dtype']:9}{row['size']:>9} {row['level']} x{row['batch']} d={row['d']:<5}N={row['n']:<6}"
    ours, other = _best(row["peers"], True), _best(row["peers"], False)
    if ours is None or other is None:
        return f"{head} not measured: {row['peers']}"
    (tile, mine), (peer, best) = ours, other
    share = mine["tflops"] / row["peak_tflops"]
    return (
        f"{head}{mine['ms']:8.3f} ms {mine['tflops']:6.1f} TFLOP/s {share:4.0%} error {mine['error']:.0e} "
        f"{human_bytes(mine['bytes']):>10}  {best['ms'] / mine['ms']:5.2f} x faster than {peer} ({best['ms']:.3f} ms, "
        f"{human_bytes(best['bytes'])}) {tile}"
    )


# On the CPU


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
    for shape in shapes(arguments.sizes.split(","), [1]):
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
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default=",".join(SIZES), metavar="HxW,...", help="inputs (default: %(default)s)")
    parser.add_argument("--batch", default="1,4", metavar="B,...", help="on a GPU (default: %(default)s)")
    parser.add_argument("--dtype", default="float16,float32", metavar="T,...", help="on a GPU (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU (default: %(default)s)")
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
    rows = on_gpu(arguments) if arguments.device == "cuda" else on_cpu(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
