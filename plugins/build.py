"""Compile the attention kernel ahead of time, for every architecture, on a machine that needs no GPU.

    python -m wnlb.plugins.build                           # all architectures, into the package
    python -m wnlb.plugins.build --arch 87,ptx -o kernels/ # one, and PTX for all others, elsewhere

Machine code (cubins) for each architecture, and PTX of compute capability 8.0 for later GPUs without kernels of their
own: the driver (CUDA 12.0 or later) compiles it when a model is loaded.

Writes kernels.bin (what the TensorRT plugin embeds: a header, a record for each kernel as in src/kernels.h, the cubins
and the PTX) and manifest.json (the same for people and programs, with registers, shared memory, stack and hashes).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from wnlb.plugins.tiles import (
    HEADS,
    ITEM_BYTES,
    LOAD_BYTES,
    PORTABLE,
    SHARED_MEMORY,
    Tile,
    multiples,
    tile_for_narrow_loads,
    tiles_for,
)
from wnlb.runtime.errors import KernelError, WnlbError, exit_code
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.table import human_bytes, table

KERNELS = Path(__file__).resolve().with_name("kernels")  # in the source tree where the install is editable
MAX_STACK = 288  # bytes of local memory a thread: what does not fit into its registers
_MAGIC = b"WNLBKRN2"
_RECORD = struct.Struct("<10I3Q")  # Kernel of src/kernels.h
_TYPES = {"float16": ("*fp16", 0), "bfloat16": ("*bf16", 1), "float32": ("*fp32", 2)}
_ALIGNMENT = 16  # of code in the file
_PTX_ARCH, _PTX_VERSION = 80, 80  # what portable kernels ask of a GPU, and of a driver: ISA 8.0, CUDA 12.0
_ARCHS = {"ptx" if arch == PORTABLE else str(arch): arch for arch in SHARED_MEMORY}


@dataclass(frozen=True)
class Job:
    """One kernel to compile, for N that are a multiple of ``multiple``; ``tactic`` 0 stands in for all the others."""

    arch: int
    dtype: str
    d: int
    tile: Tile
    multiple: int
    tactic: int


@dataclass(frozen=True)
class Built:
    """A compiled kernel and what the assembler says of it."""

    job: Job
    code: bytes  # the cubin; of portable kernels PTX, terminated by a zero
    registers: int  # of portable kernels on 8.0, as all that follows
    stack: int  # bytes a thread
    shared: int  # bytes a block
    scratch: int  # pointers behind the kernel's own parameters


def jobs(archs: Sequence[int], dtypes: Sequence[str], heads: Sequence[int]) -> list[Job]:
    """All kernels for blocks of these head sizes: e = d (embedded) and e = d / 2 (gaussian)."""
    found: dict[Job, None] = {}
    for arch in archs:
        for dtype in dtypes:
            for d in heads:
                for e in (d, d // 2):
                    tiles, (widest, *narrow) = tiles_for(arch, d, e, dtype), multiples(dtype)
                    numbers = {tile: i for i, tile in enumerate(tiles_for(arch, d, d, dtype), 1)}
                    for tile in tiles:
                        tactic = numbers.get(tile, len(numbers) + tiles.index(tile) + 1)
                        found[Job(arch, dtype, d, tile, widest, tactic)] = None
                    for multiple in narrow:
                        tile = tile_for_narrow_loads(arch, d, e, dtype, multiple)
                        found[Job(arch, dtype, d, tile, multiple, 0)] = None
    return list(found)


def compile_kernel(job: Job) -> Built:
    """Compile one kernel. Raises KernelError with the compiler's reason."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wnlb.plugins.attention import non_local_attention_kernel

    knobs.compilation.disable_line_info = True  # no paths of this machine in what is shipped
    tile, portable = job.tile, job.arch == PORTABLE
    constants = {"D": job.d, "PIECE": tile.piece, "VALUE": tile.value, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    signature = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "y_ptr"), _TYPES[job.dtype][0])
    signature |= {"N": "i32", **dict.fromkeys(constants, "constexpr")}
    divisible = {(i,): [["tt.divisibility", LOAD_BYTES]] for i in range(4)}  # bytes; of N it is a number
    divisible[(4,)] = [["tt.divisibility", job.multiple]]
    try:
        compiled = triton.compile(
            ASTSource(non_local_attention_kernel, signature, constants, divisible),
            target=GPUTarget("cuda", _PTX_ARCH if portable else job.arch, 32),
            options={
                "num_warps": tile.warps,
                "num_stages": tile.stages,
                "enable_fp_fusion": True,
                "ptx_version": _PTX_VERSION if portable else None,
            },
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KernelError(f"Triton {triton.__version__} cannot compile {name_of(job)}: {reason}") from error
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    registers, stack = _resources(cubin, knobs.nvidia.cuobjdump.path)
    parameters = len(re.findall(r"\.param \.\w+ .*kernel_param_\d+", ptx))
    code = ptx.encode() + b"\0" if portable else cubin
    return Built(job, code, registers, stack, compiled.metadata.shared, parameters - 5)


def name_of(job: Job) -> str:
    return f"{_target(job.arch)} {job.dtype} d={job.d} {job.tile.name} N={positions_of(job)}"


def positions_of(job: Job) -> str:
    """The N that it takes: "8k", or "any"."""
    return f"{job.multiple}k" if job.multiple > 1 else "any"


def _target(arch: int) -> str:
    return "ptx" if arch == PORTABLE else f"sm_{arch}"


def check(kernels: Sequence[Built], max_stack: int) -> None:
    """Raise KernelError for kernels that spill too much or want more shared memory than their architecture has."""
    for kernel in kernels:
        limit = SHARED_MEMORY[kernel.job.arch]
        if kernel.shared > limit:
            got = f"{human_bytes(kernel.shared)} of shared memory; the architecture has {human_bytes(limit)}"
            raise KernelError(f"{name_of(kernel.job)} wants {got} for a block: choose a smaller tile")
        if kernel.stack > max_stack:
            raise KernelError(
                f"{name_of(kernel.job)} keeps {kernel.stack} bytes a thread in local memory; at most {max_stack} are "
                "allowed: choose a smaller tile or raise --max-stack"
            )


def write(kernels: Sequence[Built], output: Path) -> None:
    """kernels.bin and manifest.json, each whole or not at all."""
    import triton

    offset = len(_MAGIC) + 8 + len(kernels) * _RECORD.size
    records, code, entries = b"", b"", []
    for kernel in kernels:
        job, digest = kernel.job, hashlib.sha256(kernel.code)
        padding = -(offset + len(code)) % _ALIGNMENT
        code += b"\0" * padding
        position = offset + len(code)
        code += kernel.code
        records += _RECORD.pack(
            job.arch, _TYPES[job.dtype][1], job.d, job.tile.value, job.tile.block_m, 32 * job.tile.warps,
            kernel.shared, job.multiple, job.tactic, kernel.scratch,
            position, len(kernel.code), int.from_bytes(digest.digest()[:8], "little"),
        )  # fmt: skip
        entries.append(
            {
                **asdict(job),
                "target": _target(job.arch),
                "registers": kernel.registers,
                "stack_bytes": kernel.stack,
                "shared_bytes": kernel.shared,
                "code_bytes": len(kernel.code),
                "sha256": digest.hexdigest(),
            }
        )
    content = _MAGIC + struct.pack("<Q", len(kernels)) + records + code
    manifest = {
        "triton": triton.__version__,
        "symbol": "non_local_attention_kernel",
        "grid": ["ceil(N / block_m)", "e / value", "B"],
        "kernels_sha256": hashlib.sha256(content).hexdigest(),
        "kernels": entries,
    }
    make_folder(output)
    with atomic_path(output / "kernels.bin") as temporary:
        temporary.write_bytes(content)
    with atomic_path(output / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))


def read(folder: Path) -> list[Built]:
    """What ``write`` wrote. Raises KernelError where the two files are missing, damaged or do not belong together."""
    try:
        content, manifest = (folder / "kernels.bin").read_bytes(), json.loads((folder / "manifest.json").read_text())
        entries = manifest["kernels"]
        if hashlib.sha256(content).hexdigest() != manifest["kernels_sha256"]:
            raise KernelError(f"{folder / 'kernels.bin'} is not the file that manifest.json beside it describes")
        kernels = []
        for i, entry in enumerate(entries):
            *_, scratch, offset, size, _ = _RECORD.unpack_from(content, len(_MAGIC) + 8 + i * _RECORD.size)
            job = Job(**{**{f.name: entry[f.name] for f in fields(Job)}, "tile": Tile(**entry["tile"])})
            used = entry["registers"], entry["stack_bytes"], entry["shared_bytes"]
            kernels.append(Built(job, content[offset : offset + size], *used, scratch))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"damaged ({type(error).__name__})"
        raise KernelError(f"no kernels in {folder}: {reason}; run 'python -m wnlb.plugins.build'") from error
    return kernels


def report(kernels: Sequence[Built]) -> str:
    """The table that the command prints."""
    rows = []
    for kernel in kernels:
        job, tile = kernel.job, kernel.job.tile
        rows.append(
            (
                _target(job.arch), job.dtype, job.d, f"{tile.block_m} x {tile.block_n}", tile.piece, tile.value,
                tile.warps, positions_of(job), job.tactic, kernel.registers, kernel.stack,
                f"{kernel.shared / 1024:.0f} of {SHARED_MEMORY[job.arch] // 1024}", f"{len(kernel.code) / 1024:.0f}",
            )
        )  # fmt: skip
    header = (
        "arch",
        "type",
        "d",
        "tile",
        "piece",
        "value",
        "warps",
        "N",
        "tactic",
        "regs",
        "stack B",
        "shared KiB",
        "KiB",
    )
    return table(header, rows)


def _resources(cubin: bytes, cuobjdump: str) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if done.returncode or not found:
        raise KernelError(f"cuobjdump does not tell what a kernel uses: {done.stderr.strip() or done.stdout.strip()}")
    return int(found[1]), int(found[2])


def _compile_all(todo: Sequence[Job], workers: int) -> Iterator[Built]:
    if workers == 1:
        yield from map(compile_kernel, todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_kernel, todo)


def _choices(text: str, allowed: Sequence[str], what: str) -> list[str]:
    chosen = text.split(",")
    wrong = [item for item in chosen if item not in allowed]
    if wrong:
        raise WnlbError(f"{what} {wrong[0]!r} is not known; expected some of {', '.join(allowed)}")
    return chosen


def run(arguments: argparse.Namespace) -> None:
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise WnlbError("TRITON_INTERPRET is set, with which Triton compiles nothing; unset it")
    archs = [_ARCHS[text] for text in _choices(arguments.arch, list(_ARCHS), "architecture")]
    dtypes = _choices(arguments.dtype, list(ITEM_BYTES), "type")
    heads = [int(text) for text in _choices(arguments.heads, [str(d) for d in HEADS], "head size")]
    if arguments.workers < 0:
        raise WnlbError(f"{arguments.workers} workers; expected 0 (one per core) or more")
    if arguments.output.exists() and not arguments.output.is_dir():  # told before all that compiling
        raise WnlbError(f"output {arguments.output} is a file; expected a folder")
    todo = jobs(archs, dtypes, heads)
    built = []
    with tqdm(total=len(todo), unit="kernel", disable=None, file=sys.stderr, leave=False) as bar:
        for kernel in _compile_all(todo, arguments.workers or os.cpu_count() or 1):
            bar.update()
            bar.set_postfix_str(name_of(kernel.job))
            built.append(kernel)
    print(report(built))
    check(built, arguments.max_stack)
    write(built, arguments.output)
    size = (arguments.output / "kernels.bin").stat().st_size
    print(f"\nwrote {arguments.output / 'kernels.bin'}: {len(built)} kernels, {human_bytes(size)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wnlb.plugins.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=KERNELS, metavar="DIR", help="folder (default: kernels/ in the package)"
    )
    every = ",".join(_ARCHS)
    text = f"compute capabilities; ptx: for all others from 8.0 on (default: {every})"
    parser.add_argument("--arch", default=every, metavar="A,A,...", help=text)
    every = ",".join(ITEM_BYTES)
    parser.add_argument("--dtype", default=every, metavar="T,T,...", help=f"types (default: {every})")
    every = ",".join(map(str, HEADS))
    parser.add_argument("--heads", default=every, metavar="D,D,...", help=f"head sizes (default: {every})")
    parser.add_argument(
        "--max-stack",
        type=int,
        default=MAX_STACK,
        metavar="BYTES",
        help="spills allowed a thread (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    arguments = parser.parse_args()
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
