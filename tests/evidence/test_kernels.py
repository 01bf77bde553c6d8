"""What carries kernels from the archive to the GPU, on a planted driver that runs them in host memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evidence.attention import channels_first, decided, draw, errors, exact, peers, some_rows, tokens
from evidence.kernels import fits, kernels_of
from evidence.stage import Context

from wnlb.plugins.build import Built, Job, read, write
from wnlb.plugins.tiles import Tile
from wnlb.runtime.errors import KernelError, MissingDependency

HERE = Path(__file__).parent
LAUNCH = """
import json, sys, torch
from evidence.attention import draw, errors, exact, some_rows
from evidence.kernels import launcher
from wnlb.plugins.build import read
from pathlib import Path
for kernel in read(Path(sys.argv[1])):
    e, n = 2 * kernel.job.tile.value, 37
    inputs = draw(3, kernel.job.d, e, n, torch.float32, "cpu", seed=1)
    output = torch.full_like(inputs[2], float("nan"))
    launcher(kernel, interpret=False)(*inputs, output)
    rows = some_rows(n, "cpu")
    print(json.dumps(errors(output, exact(inputs, rows), rows)))
"""


def planted(code: bytes, *, arch: int = 90, d: int = 16, value: int = 8, shared: int = 512, multiple: int = 1) -> Built:
    tile = Tile(16, 16, 16, value, 4, 2)
    return Built(Job(arch, "float32", d, tile, multiple, 1), code, 40, 0, shared, 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("code", "right"), [(b"16 8 16 128 512", True), (b"16 8 16 64 512", False), (b"not a kernel", False)]
)
def test_a_launch_hands_over_what_the_kernel_wants(code: bytes, right: bool, tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    options = ["-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["g++", *options, "-o", library, HERE / "planted_driver.cpp"], check=True)
    write([planted(code + b"\0")], tmp_path / "kernels")
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(HERE.parents[1] / "scripts")}
    command = [sys.executable, "-c", LAUNCH, tmp_path / "kernels"]
    ran = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True)
    if right:
        assert ran.returncode == 0, ran.stderr
        assert max(map(float, ran.stdout.strip("[]\n").split(", "))) < 1e-6
    else:
        assert "planted refusal" in ran.stderr.splitlines()[-1]


def test_an_archive_is_read_as_it_was_written(tmp_path: Path) -> None:
    kernels = [planted(b"one"), planted(b"the other\0", arch=0, d=32, value=16, shared=99)]
    write(kernels, tmp_path)
    assert read(tmp_path) == kernels
    content = (tmp_path / "kernels.bin").read_bytes()
    (tmp_path / "kernels.bin").write_bytes(content[:-1] + b"?")
    with pytest.raises(KernelError, match=r"is not the file that manifest\.json beside it describes"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(KernelError, match="damaged"):
        read(tmp_path)
    with pytest.raises(KernelError, match="No such file"):
        read(tmp_path / "elsewhere")


def test_carried_kernels_come_first_and_a_gpu_without_its_own_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evidence.kernels.KERNELS", tmp_path / "package")
    write([planted(b"carried", arch=87)], tmp_path / "kernels" / "sm_87")
    write([planted(b"ours", arch=87), planted(b"portable", arch=0)], tmp_path / "package")
    context = Context(tmp_path / "part.json", 0, tmp_path)
    assert [kernel.code for kernel in kernels_of(context, 87)] == [b"carried"]
    assert [kernel.code for kernel in kernels_of(context, 0)] == [b"portable"]
    with pytest.raises(MissingDependency, match=r"no kernels for SM 10\.3"):
        kernels_of(context, 103)


def test_which_kernels_take_a_shape() -> None:
    kernel = planted(b"")
    assert fits(kernel, 16, 8, 37, "float32")
    assert not fits(kernel, 16, 4, 37, "float32")
    assert not fits(kernel, 32, 8, 37, "float32")
    assert not fits(kernel, 16, 8, 37, "float16")
    assert [n for n in range(36, 48) if fits(planted(b"", multiple=4), 16, 8, n, "float32")] == [36, 40, 44]


def test_the_oracle_and_the_peers_agree_and_what_is_not_written_shows() -> None:
    inputs = draw(2, 16, 16, 23, torch.float32, "cpu", seed=3)
    rows = some_rows(23, "cpu", at_most=7)
    assert rows.tolist() == [0, 3, 7, 11, 14, 18, 22]
    expected = exact(inputs, rows)
    by_hand = torch.einsum("bdi,bdj->bij", inputs[0].double(), inputs[1].double()).softmax(2)
    assert torch.allclose(expected, torch.einsum("bij,bej->bei", by_hand, inputs[2].double())[:, :, rows])
    for name in ("sdpa math", "matmul/softmax"):
        assert max(errors(peers(inputs)[name](), expected, rows)) < 1e-5
    laid_out = channels_first(tokens(inputs)[2])
    assert torch.equal(laid_out, inputs[2])
    got = peers(inputs)["matmul/softmax"]().clone()
    got[1, 5, 22] = float("nan")
    for counts in (None, torch.zeros(2, 1, 7)):
        assert all(error != error for error in errors(got, expected, rows, counts))


def test_only_positions_that_one_key_decides_count_among_huge_logits() -> None:
    query = torch.zeros(1, 16, 3)
    query[0, 0] = torch.tensor([1e4, 1e4, 1.0])
    key = torch.zeros(1, 16, 3)
    key[0, 0] = torch.tensor([1.0, 0.5, 0.0])
    inputs, rows = [query, key, key], torch.tensor([0, 2])
    assert decided(inputs, rows).tolist() == [[[True, False]]]
