"""``wnlb triton``: what it writes, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import configparser
import dataclasses
import errno
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_triton import read_config

from wnlb.plugins import library
from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.manifest import Manifest, manifest_path
from wnlb.runtime.files import sha256_of
from wnlb.runtime.serving import probe, repository

Command = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def engine(tmp_path: Path, make_contract: Callable[..., Contract]) -> Callable[..., Path]:
    """Writes an engine, which nothing here opens, with its manifest."""

    def write(name: str = "night", **entries: Any) -> Path:
        path = tmp_path / f"{name}.engine"
        path.write_bytes(name.encode())
        facts = {"engine_sha256": sha256_of(path), "engine_bytes": len(name), "onnx": f"{name}.onnx", "onnx_sha256": ""}
        facts |= {"library": "tensorrt", "version": "10.13.2.6", "gpu": "NVIDIA L4", "compute_capability": "8.9"}
        facts |= {"driver": "", "cuda": "", "attention": "standard", "plugin_sha256": "", "options": {}, "inputs": {}}
        contract = dataclasses.asdict(make_contract(batch=8, min_batch=1))
        facts |= {"outputs": {}, "contract": contract, "tool_version": "0", "build_seconds": 1.0}
        manifest_path(path).write_text(Manifest(**{**facts, **entries}).to_json())
        return path

    return write


def test_a_repository_of_files(
    planted_model_path: Path, planted_batches_path: Path, tmp_path: Path, wnlb_here: Command
) -> None:
    output = tmp_path / "served"
    ran = wnlb_here("triton", planted_model_path, planted_batches_path, "-o", output)
    assert ran.code == 0, ran.err
    assert set(contents(output)) == {
        *("planted/config.pbtxt", "planted/1/model.onnx", "batches/config.pbtxt", "batches/1/model.onnx"),
        *("probe.py", "compose.yaml", "wnlb-triton.service"),
    }
    assert (output / "batches" / "1" / "model.onnx").read_bytes() == planted_batches_path.read_bytes()
    assert (output / "probe.py").read_text() == Path(probe.__file__).read_text()
    assert read_config(output / "planted" / "config.pbtxt").instance_group[0].count == 2
    assert "triton://127.0.0.1:8001/batches  (batches.onnx, GPU, 1-5 frames a run)" in ran.out
    command = next(shlex.split(line) for line in ran.out.splitlines() if line.startswith("  docker run "))
    assert f"--volume={output}:/models:ro" in command
    assert {"--gpus=all", "--publish=127.0.0.1:8001:8001", "--disable-auto-complete-config"} <= set(command)
    assert "nvcr.io/nvidia/tritonserver:26.05-py3" in command
    assert os.listdir(tmp_path) == ["served"]


def test_what_starts_and_watches_the_server(planted_model_path: Path, tmp_path: Path, wnlb_here: Command) -> None:
    """By systemd's own check, where it is; and the compose file as YAML."""
    output = tmp_path / "a folder 100%"
    words = ("--device", "cpu", "--listen", "0.0.0.0", "--container", "26.04")
    assert wnlb_here("triton", planted_model_path, "-o", output, *words).code == 0
    unit = configparser.RawConfigParser(strict=False)
    unit.read(output / "wnlb-triton.service")
    assert unit["Service"]["Type"] == "notify"
    assert int(unit["Service"]["WatchdogSec"]) > 3 * probe.TIMEOUT_S
    words = shlex.split(unit["Service"]["ExecStart"].replace("%%", "%"))
    assert words[:3] == ["/usr/bin/python3", f"{output}/probe.py", "--url=http://127.0.0.1:8000"]
    assert words[words.index("--") + 1 :][:2] == ["docker", "run"]
    assert "--gpus=all" not in words
    if analyse := shutil.which("systemd-analyze"):
        told = subprocess.run([analyse, "verify", output / "wnlb-triton.service"], capture_output=True, text=True)
        assert "wnlb-triton.service:" not in told.stderr.replace("docker is not executable", ""), told.stderr
    service = yaml.safe_load((output / "compose.yaml").read_text())["services"]["triton"]
    assert service["image"] == "nvcr.io/nvidia/tritonserver:26.04-py3"
    assert service["command"][:4] == ["python3", "/models/probe.py", "--watch=15", "--"]
    assert service["healthcheck"]["test"] == ["CMD", "python3", "/models/probe.py"]
    assert (service["restart"], service["ports"][1]) == ("always", "0.0.0.0:8001:8001")
    assert "gpus" not in service


def test_pictures_need_this_package_on_the_server(planted_model_path: Path, tmp_path: Path, wnlb_here: Command) -> None:
    output = tmp_path / "served"
    ran = wnlb_here("triton", planted_model_path, "-o", output, "--variant", "full", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert {"planted/1/model.py", "planted/1/model.onnx", "Dockerfile"} <= set(contents(output))
    assert "docker build -t wnlb-triton:26.05" in ran.out
    assert "'numpy<2'" in (output / "Dockerfile").read_text()
    assert yaml.safe_load((output / "compose.yaml").read_text())["services"]["triton"]["build"]["context"] == "."


def test_engines(engine: Callable[..., Path], tmp_path: Path, wnlb_here: Command) -> None:
    """The container is to be named: an engine fits one version of TensorRT."""
    path, output = engine(), tmp_path / "served"
    told = wnlb_here("triton", path, "-o", output).refused()
    assert "needs the container with TensorRT 10.13.2.6" in told
    ran = wnlb_here("triton", path, "-o", output, "--container", "25.08")
    assert ran.code == 0, ran.err
    assert "night.engine needs TensorRT 10.13.2.6 and SM 8.9" in ran.out
    assert (output / "night" / "1" / "model.plan").read_bytes() == b"night"
    assert read_config(output / "night" / "config.pbtxt").max_batch_size == 8
    ran = wnlb_here("triton", path, "-o", output, "--variant", "full", "--overwrite")  # brings its own TensorRT
    assert {"night/1/model.engine", "night/1/model.engine.json"} <= set(contents(output))
    assert "tensorrt==10.13.2.6 cuda-python" in (output / "Dockerfile").read_text()
    rtx = engine("rtx", library="tensorrt-rtx", version="1.7.1")
    ran = wnlb_here("triton", rtx, "-o", output, "--variant", "full", "--overwrite")
    assert "rtx.engine needs TensorRT-RTX 1.7.1" in ran.out
    assert "tensorrt-rtx-cu13-libs==1.7.1 tensorrt-rtx-cu13-bindings==1.7.1" in (output / "Dockerfile").read_text()


def test_the_plugin_library_goes_along(
    engine: Callable[..., Path], tmp_path: Path, wnlb_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "libwnlb_plugins.so"
    plugin.write_bytes(b"plugin")
    path, output = engine(plugin_sha256=sha256_of(plugin)), tmp_path / "served"
    asked = []

    def load(sha256: str) -> library.PluginLibrary:
        asked.append(sha256)
        return library.PluginLibrary(plugin, sha256, "10.13.2", 1)

    monkeypatch.setattr(library, "load", load)
    ran = wnlb_here("triton", path, "-o", output, "--container", "25.08")
    assert ran.code == 0, ran.err
    assert set(asked) == {sha256_of(plugin)}
    assert (output / "libwnlb_plugins.so").read_bytes() == b"plugin"
    assert "--backend-config=tensorrt,plugins=/models/libwnlb_plugins.so" in ran.out
    ran = wnlb_here("triton", path, "-o", output, "--variant", "full", "--overwrite")
    assert "--backend-config" not in ran.out
    assert (output / "libwnlb_plugins.so").read_bytes() == b"plugin"
    assert "ENV WNLB_PLUGIN_LIBRARY=/models/libwnlb_plugins.so" in (output / "Dockerfile").read_text()


def test_engines_that_do_not_fit(engine: Callable[..., Path], tmp_path: Path, wnlb_here: Command) -> None:
    def refused(*words: object) -> str:
        return wnlb_here("triton", *words, "-o", tmp_path / "served", "--container", "25.08").refused()

    rtx = engine("rtx", library="tensorrt-rtx", version="1.7.1")
    assert "TensorRT-RTX, which Triton has no backend for" in refused(rtx)
    parts = engine("parts", options={"masks": {"at": 3, "rows": [8, 100]}})
    assert "holds two networks, and Triton runs one; build it with --mask-rows all" in refused(parts)
    assert "TensorRT 10.13.2.6 and 10.9.0.34 do not fit one server" in refused(
        engine(), engine("b", version="10.9.0.34")
    )
    assert "different plugin libraries" in refused(engine("c", plugin_sha256="1"), engine("d", plugin_sha256="2"))
    assert "did not write" in refused(engine("e", contract={}))
    engine("f").write_bytes(b"g")
    assert "has not the SHA-256 that its manifest says" in refused(tmp_path / "f.engine")
    assert not (tmp_path / "served").exists()


def test_what_is_there_is_kept(planted_model_path: Path, tmp_path: Path, wnlb_here: Command) -> None:
    output = tmp_path / "served"
    output.mkdir()  # an empty folder may be taken
    assert wnlb_here("triton", planted_model_path, "-o", output).code == 0
    first = contents(output)
    assert "exists; --overwrite replaces it" in wnlb_here("triton", planted_model_path, "-o", output).refused()
    assert contents(output) == first
    assert wnlb_here("triton", planted_model_path, "-o", output, "--overwrite", "--instances", 7).code == 0
    assert read_config(output / "planted" / "config.pbtxt").instance_group[0].count == 7
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    told = wnlb_here("triton", planted_model_path, "-o", other, "--overwrite").refused()
    assert "holds something else than a repository of ours" in told
    assert (
        "is no folder" in wnlb_here("triton", planted_model_path, "-o", other / "thesis.tex", "--overwrite").refused()
    )
    assert sorted(os.listdir(tmp_path)) == ["other", "served"]


def test_a_full_disk_leaves_what_was_there(
    planted_model_path: Path, tmp_path: Path, wnlb_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "served"
    assert wnlb_here("triton", planted_model_path, "-o", output).code == 0
    first = contents(output)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, name in ((shutil, "copyfile"), (repository.os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            told = wnlb_here("triton", planted_model_path, "-o", output, "--overwrite").refused()
        assert "cannot be written: No space left on device" in told
        assert contents(output) == first
        assert os.listdir(tmp_path) == ["served"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no model or no output"),
        (("MODEL",), "no model or no output"),
        (("absent.onnx", "-o", "out"), "absent.onnx does not exist"),
        (("a.pth", "-o", "out"), "expected .onnx or .engine"),
        (("MODEL", "MODEL", "-o", "out"), "2 models would be called planted"),
        (("sp ace.onnx", "-o", "out"), "rename it"),
        (("MODEL", "-o", "out", "--max-queue", "0"), "--max-queue is 0"),
        (("MODEL", "-o", "out", "--queue-timeout", "0"), "--queue-timeout is 0"),
        (("MODEL", "-o", "out", "--instances", "-1"), "--instances is -1"),
        (("MODEL", "-o", "out", "--score-threshold", "2"), "score threshold is 2|--score-threshold is 2"),
        (("MODEL", "-o", "out", "--container", "latest"), "--container is 'latest'"),
        (("MODEL", "-o", "out", "--listen", "my host"), "--listen is 'my host'"),
        (("MODEL", "-o", "absent/out"), "cannot be written"),
        (("MODEL", "--probe", "http://127.0.0.1:1"), "leave models and -o out"),
        (("--probe", "127.0.0.1:8000"), "expected the address of Triton's HTTP port"),
    ],
)
def test_refusals(
    words: tuple[str, ...],
    message: str,
    planted_model_path: Path,
    tmp_path: Path,
    wnlb_here: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = wnlb_here("triton", *(planted_model_path if word == "MODEL" else word for word in words)).refused()
    assert any(each in told for each in message.split("|")), told
    assert os.listdir(tmp_path) == []
