"""Ahead-of-time compilation, for real but for few kernels; and the C++ that reads what it writes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wnlb.plugins.build import MAX_STACK, Built, Job, check, jobs
from wnlb.plugins.tiles import HEADS, ITEM_BYTES, PORTABLE, SHARED_MEMORY, Tile
from wnlb.runtime.errors import KernelError

PLUGINS = Path(__file__).parents[2] / "plugins"
RECORD = struct.Struct("<10I3Q")
ARCHS = [87, 90, PORTABLE]


def build(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, without the interpreter that the tests of the kernel use."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "wnlb.plugins.build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orin's, Hopper's and portable kernels for heads of 64 channels in FP16."""
    folder = tmp_path_factory.mktemp("kernels")
    done = build("--arch", "87,90,ptx", "--dtype", "float16", "--heads", "64", "-o", folder, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "sm_87" in done.stdout
    assert "shared KiB" in done.stdout
    return folder


def test_manifest_and_archive_tell_the_same(kernels: Path) -> None:
    manifest = json.loads((kernels / "manifest.json").read_text())
    content = (kernels / "kernels.bin").read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest["kernels_sha256"]
    magic, count = content[:8], int.from_bytes(content[8:16], "little")
    assert (magic, count) == (b"WNLBKRN2", len(manifest["kernels"]))
    assert count == len(jobs(ARCHS, ["float16"], [64]))
    for i, entry in enumerate(manifest["kernels"]):
        record = RECORD.unpack_from(content, 16 + i * RECORD.size)
        arch, kind, head, value, block_m, threads, shared, multiple, tactic, scratch, offset, size, digest = record
        tile = entry["tile"]
        assert (arch, kind, head) == (entry["arch"], 0, entry["d"])
        assert (value, block_m, threads) == (tile["value"], tile["block_m"], 32 * tile["warps"])
        assert (shared, multiple, tactic) == (entry["shared_bytes"], entry["multiple"], entry["tactic"])
        assert 0 <= scratch <= 4
        assert offset % 16 == 0
        code = content[offset : offset + size]
        if arch == PORTABLE:
            assert b".version 8.0\n.target sm_80\n" in code
            assert code.index(b"\0") == size - 1
        else:
            assert code.startswith(b"\x7fELF")
        assert b"non_local_attention_kernel" in code
        assert hashlib.sha256(code).hexdigest() == entry["sha256"]
        assert hashlib.sha256(code).digest()[:8] == digest.to_bytes(8, "little")
        assert 0 < entry["registers"] <= 255
        assert entry["stack_bytes"] <= MAX_STACK
        assert 0 < entry["shared_bytes"] <= SHARED_MEMORY[arch]


@pytest.mark.parametrize("arch", [80, 89, 90, 103, 110, 120, 121])
def test_portable_kernels_are_compiled_for_any_later_gpu(arch: int, kernels: Path, tmp_path: Path) -> None:
    """NVIDIA's assembler does here what the driver does; 10.3 and 12.1 are GPUs that Triton's list lacks."""
    from triton import knobs

    content = (kernels / "kernels.bin").read_bytes()
    records = (
        RECORD.unpack_from(content, 16 + i * RECORD.size) for i in range(int.from_bytes(content[8:16], "little"))
    )
    ptx = [content[offset : offset + size - 1] for owner, *_, offset, size, _ in records if owner == PORTABLE]
    assert len(ptx) == len(jobs([PORTABLE], ["float16"], [64]))
    for i, code in enumerate(ptx):
        source, cubin = tmp_path / f"{i}.ptx", tmp_path / f"{i}.cubin"
        source.write_bytes(code)
        subprocess.run([knobs.nvidia.ptxas_blackwell.path, f"-arch=sm_{arch}", source, "-o", cubin], check=True)
        assert cubin.stat().st_size > 0


def test_nothing_of_this_machine_is_in_the_archive(kernels: Path) -> None:
    content = (kernels / "kernels.bin").read_bytes()
    for path in (str(PLUGINS), sys.prefix, "attention.py", str(Path.home())):
        assert path.encode() not in content


def test_every_block_has_a_kernel_for_any_size_and_tactics_are_numbered() -> None:
    todo = jobs(list(SHARED_MEMORY), list(ITEM_BYTES), list(HEADS))
    assert len(set(todo)) == len(todo)
    for arch in SHARED_MEMORY:
        for dtype in ITEM_BYTES:
            for d in HEADS:
                for e in (d, d // 2):
                    own = [j for j in todo if (j.arch, j.dtype, j.d) == (arch, dtype, d) and e % j.tile.value == 0]
                    assert any(job.multiple == 1 for job in own)
                    numbered = [(job.tactic, job.multiple) for job in own if job.tactic]
                    assert len(set(numbered)) == len(numbered)
                    assert max(job.tactic for job in own) > 0


@pytest.mark.parametrize(
    ("stack", "shared", "message"),
    [
        (289, 1024, "keeps 289 bytes a thread in local memory; at most 288"),
        (0, 99 * 1024 + 1, r"wants 99.0 KiB of shared memory; the architecture has 99.0 KiB"),
    ],
)
def test_limits(stack: int, shared: int, message: str) -> None:
    job = Job(86, "float16", 64, Tile(64, 64, 64, 64, 4, 2), True, 1)
    check([Built(job, b"", 100, MAX_STACK, 99 * 1024, 0)], MAX_STACK)
    with pytest.raises(KernelError, match=message):
        check([Built(job, b"", 100, stack, shared, 0)], MAX_STACK)


def test_a_broken_limit_exits_with_1_and_writes_nothing(tmp_path: Path) -> None:
    done = build(
        "--arch", 90, "--dtype", "float16", "--heads", 32, "--max-stack", -1, "-o", tmp_path / "k", "--workers", 1
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: sm_90 float16 d=32")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "75"), "architecture '75' is not known; expected some of 80, 86, 87"),
        (("--dtype", "int8"), "type 'int8' is not known"),
        (("--heads", "96"), "head size '96' is not known"),
        (("--workers", "-1"), "-1 workers"),
        (("-o", __file__), "is a file; expected a folder"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = build(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_interpreter_is_refused() -> None:
    command = [sys.executable, "-m", "wnlb.plugins.build", "--arch", "87"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


# C++: what needs no header of TensorRT is compiled and run here


def cuda_headers() -> Path:
    """Triton carries cuda.h."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "backends" / "nvidia" / "include"


def compile_and_run(folder: Path, archive: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    assembly = (PLUGINS / "src" / "embed.S.in").read_text().replace("@WNLB_KERNELS@", str(archive))
    (folder / "embed.S").write_text(assembly)
    program = folder / "table_test"
    sources = [Path(__file__).with_name("kernel_table.cpp"), PLUGINS / "src" / "kernels.cpp"]
    sources += [PLUGINS / "src" / "driver.cpp", folder / "embed.S"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wpedantic", f"-I{PLUGINS / 'src'}"]
    flags += ["-isystem", str(cuda_headers())]
    subprocess.run(["g++", *flags, *map(str, sources), "-ldl", "-o", str(program)], check=True)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_plugin_finds_the_right_kernel(kernels: Path, tmp_path: Path) -> None:
    done = compile_and_run(tmp_path, kernels / "kernels.bin", len(jobs(ARCHS, ["float16"], [64])))
    assert done.returncode == 0, done.stdout
    damaged = tmp_path / "damaged.bin"
    content = (kernels / "kernels.bin").read_bytes()
    unended = content[:-1] + b"x"  # portable kernels come last
    for what, other in (
        ("cut off", content[:100]),
        ("no kernels", b"x" * 100),
        ("damaged", content[:-100]),
        ("damaged", unended),
    ):
        damaged.write_bytes(other)
        environment = {**os.environ, "WNLB_KERNELS": str(damaged)}
        refused = subprocess.run([tmp_path / "table_test", "0"], capture_output=True, text=True, env=environment)
        assert refused.returncode == 3
        assert what in refused.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_unknown_gpus_are_refused_where_nothing_is_portable(kernels: Path, tmp_path: Path) -> None:
    content = bytearray((kernels / "kernels.bin").read_bytes())
    for i in range(int.from_bytes(content[8:16], "little")):
        arch = int.from_bytes(content[16 + i * RECORD.size : 20 + i * RECORD.size], "little")
        content[16 + i * RECORD.size] = arch or 99
    (tmp_path / "own.bin").write_bytes(content)
    done = compile_and_run(tmp_path, tmp_path / "own.bin", "refuse", 121)
    assert done.returncode == 0, done.stdout
    assert "no kernel for compute capability 12.1; run `python -m wnlb.plugins.build`" in done.stdout


def tensorrt_roots() -> list[Path]:
    """Folders with TensorRT's headers: WNLB_TENSORRT_ROOTS, separated by colons."""
    return [Path(text) for text in os.environ.get("WNLB_TENSORRT_ROOTS", "").split(":") if text]


@pytest.mark.tensorrt
@pytest.mark.skipif(not tensorrt_roots(), reason="needs headers of TensorRT: WNLB_TENSORRT_ROOTS=/path/10.3:/path/11.0")
@pytest.mark.parametrize("root", tensorrt_roots(), ids=lambda root: root.name)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the next test checks this and the numbers")
def test_the_plugin_compiles_and_conforms(root: Path, kernels: Path, tmp_path: Path) -> None:
    conform(root, kernels / "kernels.bin", tmp_path)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.skipif(not tensorrt_roots(), reason="needs headers of TensorRT: WNLB_TENSORRT_ROOTS=/path/10.3:/path/11.0")
@pytest.mark.parametrize("arch", ["own", "ptx"])
def test_numbers_on_this_gpu(arch: str, tmp_path: Path) -> None:
    """All kernels of this GPU, and the portable ones, which its driver compiles, against float64."""
    own = "".join(map(str, torch.cuda.get_device_capability()))
    done = build("--arch", own if arch == "own" else "ptx", "-o", tmp_path / "kernels")
    assert done.returncode == 0, done.stderr
    said = conform(tensorrt_roots()[-1], tmp_path / "kernels" / "kernels.bin", tmp_path)
    assert "no GPU" not in said


def conform(root: Path, archive: Path, folder: Path) -> str:
    """Compile library and conformance program, run it; what it says."""
    configure = ["cmake", "-S", str(PLUGINS), "-B", str(folder), f"-DTensorRT_ROOT={root}"]
    configure += [f"-DCUDAToolkit_ROOT={cuda_headers().parent}", f"-DCUDA_INCLUDE={cuda_headers()}"]
    configure += [f"-DWNLB_KERNELS={archive}"]
    for command in (configure, ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    ran = subprocess.run([folder / "wnlb_conformance", folder / "libwnlb_plugins.so"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert " 0 failed" in ran.stdout
    return ran.stdout
