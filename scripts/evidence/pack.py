"""What a GPU machine without a network needs and cannot make: kernels, plugin, conformance program, wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from evidence.checkout import ROOT, commit
from evidence.kernels import folder_of
from wnlb.plugins.tiles import PORTABLE, SHARED_MEMORY
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.files import make_folder
from wnlb.runtime.table import human_bytes

LIMIT = 60 << 20  # bytes


def pack(folder: Path, archs: list[int], tensorrt: str, python: str, wheels: list[str]) -> None:
    """Fill ``folder``, and print what it holds and what it does not.

    Args:
        archs: compute capabilities times ten of the GPUs; portable kernels are always there.
        tensorrt: a folder with TensorRT's headers, for the conformance program; "" where CMake finds them.
        python: version of the other machine's Python, "3.12".
        wheels: packages for it.

    Raises:
        WnlbError: a step failed, or all of it is larger than 60 MiB.
    """
    unknown = [arch for arch in archs if arch not in SHARED_MEMORY or arch == PORTABLE]
    if unknown or not archs:
        known = ", ".join(str(arch) for arch in SHARED_MEMORY if arch != PORTABLE)
        raise WnlbError(f"there are no kernels for {unknown or 'no architecture'}; expected some of {known}")
    make_folder(folder)
    for arch in (*archs, PORTABLE):
        target = folder / folder_of(arch)
        words = ["-m", "wnlb.plugins.build", "--arch", "ptx" if arch == PORTABLE else str(arch), "-o", str(target)]
        _run("kernels", [sys.executable, *words])
    missing = {}
    try:
        build_plugin(folder, archs[0], folder / "plugin", tensorrt)
        program = folder / "plugin" / "wnlb_conformance"
        _run("conformance", [str(program), str(program.with_name("libwnlb_plugins.so"))])
    except MissingDependency as error:
        missing["plugin"] = str(error)
    for wheel in wheels:
        words = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", python]
        words += ["--implementation", "cp", *_platforms(), "-q", "-d", str(folder / "wheels"), wheel]
        try:
            _run(wheel, [sys.executable, *words])
        except WnlbError as error:
            missing[wheel] = str(error)
    (folder / "pack.json").write_text(json.dumps({"commit": commit(), "archs": archs, "missing": missing}, indent=1))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for part in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{human_bytes(part.stat().st_size):>10}  {part.relative_to(folder)}")
    for name, reason in missing.items():
        print(f"  left out  {name}: {reason}")
    print(f"{human_bytes(size):>10}  in all: carry {folder}")
    if size > LIMIT:
        raise WnlbError(f"{folder} holds {human_bytes(size)}; at most {human_bytes(LIMIT)} are to be carried")


def build_plugin(carried: Path, arch: int, target: Path, tensorrt: str) -> None:
    """The conformance program and a library with the GPU's own kernels, and one with portable kernels alone.

    Args:
        carried: where the kernels lie.
        target: folder for the three files.
        tensorrt: a folder with TensorRT's headers; "" where CMake finds them by itself, as on a Jetson.

    Raises:
        MissingDependency: CMake, headers or kernels are missing.
        WnlbError: it does not compile, or does not conform as far as no GPU is needed.
    """
    if shutil.which("cmake") is None:
        raise MissingDependency("cmake is not installed")
    headers = cuda_headers()
    make_folder(target)
    for which, name in ((arch, "libwnlb_plugins.so"), (PORTABLE, "libwnlb_plugins_ptx.so")):
        with tempfile.TemporaryDirectory() as build:
            words = ["cmake", "-S", str(ROOT / "plugins"), "-B", build]
            words += [f"-DCUDAToolkit_ROOT={headers.parent}", f"-DCUDA_INCLUDE={headers}"]
            words += [f"-DTensorRT_ROOT={tensorrt}"] if tensorrt else []
            words += [f"-DWNLB_KERNELS={(carried / folder_of(which) / 'kernels.bin').resolve()}"]
            # The machine that runs it may have an older C++ library.
            words += [f"-DCMAKE_{kind}_LINKER_FLAGS=-static-libstdc++ -static-libgcc" for kind in ("SHARED", "EXE")]
            try:
                _run("TensorRT's headers and kernels", words)
            except WnlbError as error:
                raise MissingDependency(f"{error}; give --tensorrt-root (or TensorRT_ROOT)") from error
            _run("the plugin", ["cmake", "--build", build])
            shutil.copy(Path(build) / "libwnlb_plugins.so", target / name)
            shutil.copy(Path(build) / "wnlb_conformance", target)


def cuda_headers() -> Path:
    """The folder of cuda.h: of a CUDA toolkit, or of the wheels that PyTorch and Triton bring."""
    site = Path(sysconfig.get_path("purelib"))
    named = os.environ.get("CUDA_HOME", "")
    places = [*([Path(named) / "include"] if named else []), Path("/usr/local/cuda/include")]
    places += [*site.glob("nvidia/*/include"), site / "triton" / "backends" / "nvidia" / "include"]
    for place in places:
        if (place / "cuda.h").exists() and (place / "cuda_runtime_api.h").exists():
            return place
    raise MissingDependency("CUDA's headers (cuda.h, cuda_runtime_api.h) are not found; give CUDA_HOME")


def _platforms() -> list[str]:
    names = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    return [word for name in names for word in ("--platform", name)]


def _run(what: str, words: list[str]) -> None:
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        said = ran.stderr.strip() or ran.stdout.strip() or f"exit code {ran.returncode}"
        raise WnlbError(f"{what}: {' '.join(said.split())[-300:]}")
