"""The emulated machine of these tests, which tests/runtime/test_emulated.py runs in a process of their own."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_inputs import whole

HERE = Path(__file__).parent


def pytest_configure() -> None:
    """Before anything looks for a driver."""
    folder = Path(os.environ["EMULATED_FOLDER"])
    _compile(HERE / "cuda.cpp", folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
    ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    pycuda = importlib.util.find_spec("pycuda")
    if pycuda:  # it wants all of the driver's functions to be there
        binding = next(Path(str(pycuda.origin)).parent.glob("_driver*.so"))
        listed = subprocess.run(["nm", "-D", "--undefined-only", binding], capture_output=True, text=True, check=True)
        names = {line.split()[-1] for line in listed.stdout.splitlines() if line.split()[-1].startswith("cu")}
        driver = ctypes.CDLL("libcuda.so.1")
        missing = [name for name in names if not hasattr(driver, name)]
        (folder / "rest.cpp").write_text("".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in missing))
        _compile(folder / "rest.cpp", folder / "librest.so")
        ctypes.CDLL(str(folder / "librest.so"), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(HERE))  # `import tensorrt` is the emulated one


def _compile(source: Path, library: Path, *options: str) -> None:
    if not library.exists():
        command = ["g++", "-std=c++17", "-shared", "-fPIC", *options, "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)


@pytest.fixture(params=["PyCUDA", "cuda-python"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two packages that GPU memory comes from."""
    if request.param == "PyCUDA":
        pytest.importorskip("pycuda", reason="PyCUDA is not installed")
    else:
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    return request.param


@pytest.fixture
def driver() -> Iterator[Any]:
    """The emulated driver, as new; at the end nothing may be left of what the test made."""
    library = ctypes.CDLL("libcuda.so.1")
    library.emulatedTakes.argtypes = [ctypes.c_double] * 4
    library.emulatedTakes(0, 0, 0, 0)
    library.emulatedQueriesBeforeReady(0)
    library.emulatedMachine(1, 87, 0)
    library.emulatedFailAt(0)
    before = library.emulatedAlive()
    yield library
    assert library.emulatedAlive() == before
    assert library.emulatedContexts() == 0
    assert library.emulatedOnDefaultStream() == 0


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The emulated TensorRT, as new, with caches of its own."""
    import tensorrt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WNLB_PLUGIN_LIBRARY", raising=False)
    tensorrt.emulate("10.3.0")
    monkeypatch.setattr("wnlb.plugins.library._registered", {})
    yield tensorrt
    tensorrt.emulate("10.3.0")


@pytest.fixture
def planted() -> Path:
    """A model of batch 2 that finds a lamp, which scores as bright as the frame, and a dark cat."""
    return Path(os.environ["EMULATED_MODEL"])


@pytest.fixture
def batches() -> Path:
    """The same for 1 to 5 frames."""
    return Path(os.environ["EMULATED_MODEL_OF_BATCHES"])


@pytest.fixture
def fused() -> Path:
    """A real model whose attention is plugin nodes with function bodies."""
    return Path(os.environ["EMULATED_FUSED_MODEL"])


@pytest.fixture
def peer() -> Path:
    """A real model of mmdetection, with 12 rows."""
    return Path(os.environ["EMULATED_PEER_MODEL"])


@pytest.fixture
def make_plugin(tmp_path: Path) -> Callable[..., Path]:
    """Compiles a library with the two functions that our plugin library exports."""

    def made(version: int = 100300, arch: int = 87) -> Path:
        code = f'extern "C" int wnlbTensorRtVersion() {{ return {version}; }}\n'
        code += f'extern "C" int wnlbKernelCount(int arch) {{ return arch == {arch} || arch == 0 ? 2 : 0; }}\n'
        source = tmp_path / f"plugin{version}.cpp"
        source.write_text(code)
        library = tmp_path / f"libplugin{version}_{arch}.so"
        _compile(source, library)
        return library

    return made


def images(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8) for _ in range(count)]


def of_batch(count: int, number: int = 0) -> dict[str, Any]:
    """Inputs of as many frames, others for each number; every content differs."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256 - 20 * number, (count, 64, 96, 3), dtype=np.uint8)
    return {"image": image, "content": rng.integers(20, 64, (count, 2), dtype=np.int32)}


def run_thrice(backend: Any) -> None:
    for _ in range(3):
        backend.run(whole(images(1)[0]))


def take_all_times(backend: Any) -> None:
    for spin_wait in (False, True):
        backend.timed(True, True, spin_wait)
    backend.timed(False, False, False)
    backend.layer_times(2)
    assert backend.device_bytes > 0


def engine_from(model: Path, folder: Path) -> Path:
    """An engine of the emulated TensorRT, with its manifest."""
    from wnlb.runtime.engine.build import BuildOptions, build_engine

    engine = folder / "model.engine"
    build_engine(model, engine, BuildOptions(target="tensorrt"))
    return engine


assert shutil.which("g++"), "these tests need g++"
