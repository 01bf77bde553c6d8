"""What is measured of a model, and by which commands it is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from wnlb.runtime.engine.driver import Gpu
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.profile import variants
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.profile.variants import Wanted, is_checkpoint, variants_of


class Library:
    version = "10.3.0"
    sha256 = "0123"  # of the plugin's library


class PlantedMaker(Maker):
    """Makes nothing; fails at one precision."""

    def __init__(self, folder: Path, fails_at: str = "") -> None:
        super().__init__(folder, quiet=True)
        self.words: list[str] = []
        self.inputs: dict[str, list[str]] = {}
        self._fails_at = fails_at

    def make(self, name: str, words: Sequence[str | Path], inputs: Sequence[Path | str]) -> Path:
        said = " ".join(map(str, words)).replace(f"{self.folder}/", "")
        self.words.append(f"{said} -> {name}")
        self.inputs[name] = [str(entry).replace(f"{self.folder}/", "") for entry in inputs]
        if self._fails_at and self._fails_at in said:
            raise WnlbError(f"no {self._fails_at}")
        return self.folder / name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "find_gpu", lambda: Gpu("Orin", "8.7", "12.6", 1 << 33, True))
    monkeypatch.setattr(variants, "load_tensorrt", lambda name: Library)
    monkeypatch.setattr(variants, "load", lambda: Library)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependency("no NVIDIA driver")

    monkeypatch.setattr(variants, "find_gpu", missing)


def test_everything_of_a_checkpoint(gpu: None, tmp_path: Path) -> None:
    maker = PlantedMaker(tmp_path)
    files = {"classes": Path("names.txt"), "config": Path("net.yaml")}
    wanted = Wanted(("fp32", "int8"), size="64x96", **files, images="night", cpu=False)
    found = variants_of(Path("my.net.pth"), wanted, maker)
    assert [variant.name for variant in found] == [
        "my.net.onnx",
        "my.net.tensorrt.engine",
        "my.net.tensorrt.plugin.engine",
        "my.net.tensorrt-rtx.engine",
        "my.net.int8.onnx",
        "my.net.int8.tensorrt.engine",
        "my.net.int8.tensorrt.plugin.engine",
        "my.net.int8.tensorrt-rtx.engine",
    ]
    assert not any(variant.failure for variant in found)
    assert {variant.reference for variant in found} == {tmp_path / "my.net.onnx"}
    assert [variant.onnx.name for variant in found if variant.onnx] == ["my.net.onnx"] * 4 + ["my.net.int8.onnx"] * 4
    assert maker.words[0] == "export my.net.pth --size 64x96 --classes names.txt --config net.yaml -> my.net.onnx"
    assert "convert my.net.onnx --precision int8 --images night -> my.net.int8.onnx" in maker.words
    plugin = "build my.net.onnx --target tensorrt --attention plugin -> my.net.tensorrt.plugin.engine"
    assert plugin in maker.words
    standard, plugin = maker.inputs["my.net.tensorrt.engine"], maker.inputs["my.net.tensorrt.plugin.engine"]
    assert standard[:2] == ["my.net.onnx", "10.3.0"]
    assert plugin == [*standard, "0123"]  # another library, another engine
    assert len([words for words in maker.words if words.startswith(("export", "convert"))]) == 2  # each once


def test_on_a_cpu_the_rest_bears_the_reason(no_gpu: None, tmp_path: Path) -> None:
    maker = PlantedMaker(tmp_path)
    found = variants_of(Path("net.pth"), Wanted(("fp32",), size="64x96"), maker)
    assert [(variant.name, variant.failure) for variant in found] == [
        ("net.onnx", ""),
        ("net.tensorrt.engine", "no NVIDIA driver"),
        ("net.tensorrt.plugin.engine", "no NVIDIA driver"),
        ("net.tensorrt-rtx.engine", "no NVIDIA driver"),
        ("net.cpu.onnx", ""),
    ]
    assert maker.words == [
        "export net.pth --size 64x96 -> net.onnx",
        "export net.pth --size 64x96 --target cpu -> net.cpu.onnx",
    ]


def test_what_cannot_be_made_costs_only_what_needs_it(gpu: None, tmp_path: Path) -> None:
    wanted = Wanted(("fp32", "fp16"), ("standard",), ("onnxruntime", "tensorrt"), size="64x96", cpu=False)
    maker = PlantedMaker(tmp_path, "convert")
    found = variants_of(Path("net.pth"), wanted, maker)
    assert [variant.failure for variant in found] == ["", "", "no convert", "no convert"]
    assert sum("convert" in words for words in maker.words) == 1  # not tried again
    broken = variants_of(Path("net.pth"), wanted, PlantedMaker(tmp_path, "export"))
    assert {variant.failure for variant in broken} == {"no export"}


def test_files_are_taken_as_they_are_unless_asked(no_gpu: None, tmp_path: Path) -> None:
    maker, source = PlantedMaker(tmp_path), Path("some/model.fp16.onnx")
    (variant,) = variants_of(source, Wanted((), backends=("onnxruntime",)), maker)
    assert (variant.name, variant.path, variant.onnx, variant.reference) == ("model.fp16.onnx", source, source, None)
    assert maker.words == []
    (variant,) = variants_of(Path("some/net.onnx"), Wanted(("fp16",), backends=("onnxruntime",)), maker)
    assert (variant.path, variant.reference) == (tmp_path / "net.fp16.onnx", Path("some/net.onnx"))
    assert maker.words == ["convert some/net.onnx --precision fp16 -> net.fp16.onnx"]


def test_the_plugin_where_there_is_none(no_gpu: None, tmp_path: Path) -> None:
    wanted = Wanted((), ("plugin",), ("onnxruntime",))
    (variant,) = variants_of(Path("net.onnx"), wanted, PlantedMaker(tmp_path))
    assert variant.failure == "ONNX Runtime has no plugin: it computes the standard form"


def test_the_plugin_without_its_library(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependency("the plugin library is missing: build it")

    monkeypatch.setattr(variants, "load", missing)
    found = variants_of(Path("net.onnx"), Wanted(backends=("tensorrt",)), PlantedMaker(tmp_path))
    assert [variant.failure for variant in found] == ["", "the plugin library is missing: build it"]


def test_an_engine_without_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"1")
    (variant,) = variants_of(tmp_path / "a.engine", Wanted(), PlantedMaker(tmp_path))
    assert "has no manifest" in variant.failure


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_checkpoint(Path("sample"))
    assert is_checkpoint(Path("a.PTH"))
    assert not is_checkpoint(Path("a.onnx"))
    for names in ({"precisions": ("fp8",)}, {"attention": ("flash",)}, {"backends": ("openvino",)}):
        with pytest.raises(WnlbError, match="expected some of"):
            Wanted(**names)
