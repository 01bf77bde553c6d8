"""Finding and checking the plugin library, with libraries made for the purpose."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from wnlb.plugins import load
from wnlb.plugins.library import NAME, VARIABLE
from wnlb.runtime.errors import MissingDependency, WnlbError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which no library is registered yet."""
    monkeypatch.setattr("wnlb.plugins.library._registered", {})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Compiles a library with the two functions that ours exports."""

    def compiled(version: int = 100300, kernels: int = 5, name: str = NAME) -> Path:
        code = f'extern "C" int wnlbTensorRtVersion() {{ return {version}; }}\n'
        code += f'extern "C" int wnlbKernelCount(int arch) {{ return arch == 87 ? 2 : arch ? 0 : {kernels}; }}\n'
        (tmp_path / "library.cpp").write_text(code)
        command = ["g++", "-shared", "-fPIC", "library.cpp", "-o", name]
        subprocess.run(command, cwd=tmp_path, check=True)
        return tmp_path / name

    return compiled


class Registry:
    def __init__(self, accepts: bool = True) -> None:
        self.accepts, self.loaded = accepts, []

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        return object() if self.accepts else None


def tensorrt(version: str, registry: Registry) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, get_plugin_registry=lambda: registry)


def test_found_checked_and_registered(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path, registry = make(), Registry()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = load(path, sha256=digest, tensorrt=tensorrt("10.13.2", registry))
    assert (found.path, found.sha256, found.tensorrt, found.kernels) == (path, digest, "10.3.0", 5)
    assert (found.kernels_for(87), found.kernels_for(90)) == (2, 0)
    assert registry.loaded == [str(path)]
    monkeypatch.setenv(VARIABLE, str(path))
    assert load() == found


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(MissingDependency, match=r"neither in .* build it: cmake -S .*plugins -B build"):
        load()
    with pytest.raises(MissingDependency, match=r"nothing\.so does not exist"):
        load(tmp_path / "nothing.so")


def test_wrong_libraries(make: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(WnlbError, match="is not our plugin library"):
        load(text)
    path = make()
    with pytest.raises(WnlbError, match=r"the engine was built with 0123456789ab\.\.\."):
        load(path, sha256="0123456789abcdef")
    with pytest.raises(WnlbError, match=r"compiled for TensorRT 10\.3\.0, this is 11\.0\.1"):
        load(path, tensorrt=tensorrt("11.0.1", Registry()))
    with pytest.raises(WnlbError, match=r"TensorRT 10\.3\.0 refuses"):
        load(path, tensorrt=tensorrt("10.3.0", Registry(accepts=False)))
    with pytest.raises(WnlbError, match="holds no kernels"):
        load(make(kernels=0, name="empty.so"))
