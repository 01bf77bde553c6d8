"""``triton://host:8001/model``, against a server of the same protocol that runs the same file."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_triton import FakeTriton
from held_picture import WAIT
from real_triton import free_port

from wnlb.runtime.backend import open_backend
from wnlb.runtime.contract import Contract
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import ContractError, Unavailable, WnlbError
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.serving.config import Queue, picture_config
from wnlb.runtime.serving.repository import How, read_models, start_of, write_repository

HOW = How(device="cpu")


def write(paths: list[Path], output: Path) -> Path:
    models = read_models(paths, "net")
    write_repository(models, HOW, start_of(models, HOW, "26.05", "127.0.0.1"), output)
    return output


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory,
    planted_model_path: Path,
    planted_batches_path: Path,
    brief_model_path: Path,
) -> Path:
    """planted: two frames a run; batches: one to five; brief: a network."""
    return write([planted_model_path, planted_batches_path, brief_model_path], tmp_path_factory.mktemp("a") / "served")


@pytest.fixture
def server(repository: Path) -> Iterator[FakeTriton]:
    with FakeTriton(repository) as server:
        yield server


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(180, 256, (40 + 13 * i, 90, 3), np.uint8) for i in range(count)]


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(expected) > 0
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert len(found.masks) == len(expected.masks)
    for one, other in zip(found.masks, expected.masks, strict=True):
        assert (one.x, one.y) == (other.x, other.y)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_the_same_detections_as_of_the_file(server: FakeTriton, brief_model_path: Path) -> None:
    with Predictor(server.address("brief")) as served, Predictor(brief_model_path, device="cpu") as local:
        assert served.contract == local.contract
        assert served.backend.description == f"Triton 2.51.0 at 127.0.0.1:{server.port}, model brief, onnxruntime"
        for frame in frames(2):
            assert_equal(served(frame), local(frame))


@pytest.mark.parametrize(("name", "counts"), [("planted", (1, 2)), ("batches", (1, 3, 5))])
def test_batches(
    server: FakeTriton, planted_model_path: Path, planted_batches_path: Path, name: str, counts: Any
) -> None:
    path = {"planted": planted_model_path, "batches": planted_batches_path}[name]
    with Predictor(server.address(name)) as served, Predictor(path, device="cpu") as local:
        for count in counts:
            found, expected = served.predict_batch(frames(count)), local.predict_batch(frames(count))
            for one, other in zip(found, expected, strict=True):
                assert_equal(one, other)


def test_many_clients_at_once(server: FakeTriton, planted_batches_path: Path) -> None:
    shown = frames(8)
    with Predictor(planted_batches_path, device="cpu") as local:
        expected = [local(frame) for frame in shown]

    def ask(frame: np.ndarray) -> Detections:
        with Predictor(server.address("batches")) as served:
            return served(frame)

    with ThreadPoolExecutor(8) as clients:
        for one, other in zip(clients.map(ask, shown), expected, strict=True):
            assert_equal(one, other)


def test_predict_evaluate_run_and_profile_take_an_address(
    server: FakeTriton, planted_model_path: Path, tmp_path: Path, wnlb_here: Callable[..., Any]
) -> None:
    """predict and run find what they find with the file; evaluate agrees with the file in all."""
    for i, frame in enumerate(frames(2)):
        (tmp_path / "night").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "night" / f"{i}.png"), frame)
    night, address = tmp_path / "night", server.address("planted")
    found = []
    for model, output in ((address, "served"), (planted_model_path, "local")):
        ran = wnlb_here("predict", model, night, "-o", tmp_path / output, "--score-threshold", "0.1", "--quiet")
        assert ran.code == 0, ran.err
        coco = tmp_path / f"{output}.json"
        ran = wnlb_here("run", model, night, "--coco", coco, "--score-threshold", "0.1", "--quiet")
        assert ran.code == 0, ran.err
        found.append([json.loads(path.read_text()) for path in (tmp_path / output / "detections.json", coco)])
    assert found[0] == found[1]
    assert found[0][0]["annotations"]

    ran = wnlb_here(
        "evaluate", address, "--baseline", planted_model_path, "--images", night, "--device", "cpu", "--json"
    )
    assert ran.code == 0, ran.err

    words = ("--images", night, "--duration", "0.05", "--iterations", "2", "--warm-up", "1", "--no-accuracy", "--json")
    ran = wnlb_here("profile", address, "--device", "cpu", *words)
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)["rows"]
    assert (row["name"], row["backend"], row["failure"]) == (address, "triton", "")
    assert row["description"].startswith("Triton 2.51.0 at ")
    assert row["parts"]["infer"]["p50"] > 0


def test_a_full_queue_is_waited_for(server: FakeTriton) -> None:
    server.full = 3
    with Predictor(server.address("planted")) as predictor:
        assert len(predictor(frames(1)[0])) == 2
    assert server.full == 0
    assert len(server.timeouts) == 4
    assert all(0 < timeout <= 60e6 for timeout in server.timeouts)  # so the server drops what nobody waits for


def test_a_queue_that_stays_full(server: FakeTriton) -> None:
    server.full = 10**6
    with (
        Predictor(f"{server.address('planted')}?timeout=1") as predictor,
        pytest.raises(Unavailable, match="waiting"),
    ):
        predictor(frames(1)[0])


def test_a_server_that_hangs(server: FakeTriton) -> None:
    server.gate.clear()
    with Predictor(f"{server.address('planted')}?timeout=1") as predictor:
        with pytest.raises(Unavailable, match="did not answer in time"):
            predictor(frames(1)[0])
        server.gate.set()
        assert len(_patiently(predictor, frames(1)[0])) == 2


def test_a_server_that_is_stopped_and_comes_back(repository: Path) -> None:
    port = free_port()  # nobody else is given it while the server is away
    with FakeTriton(repository, port) as server:
        predictor = Predictor(server.address("planted"))
        expected = predictor(frames(1)[0])
        server.gate.clear()
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(predictor, frames(1)[0])
            for _ in range(2):
                assert server.entered.acquire(timeout=WAIT)
            server.stop()
            with pytest.raises(Unavailable, match="no server answers"):
                asked.result(timeout=WAIT)
    with predictor, FakeTriton(repository, port):
        assert_equal(_patiently(predictor, frames(1)[0]), expected)


def test_a_server_that_comes_back_with_another_model(
    repository: Path, tmp_path: Path, planted_model: Callable[..., Path], make_contract: Callable[..., Contract]
) -> None:
    port = free_port()  # nobody else is given it while the server is away
    with FakeTriton(repository, port) as server:
        predictor = Predictor(server.address("planted"))
    other = write(
        [planted_model(tmp_path / "planted.onnx", make_contract(batch=2, class_names=("a", "b")))], tmp_path / "b"
    )
    with predictor:
        with pytest.raises(Unavailable):
            predictor(frames(1)[0])
        with FakeTriton(other, port), pytest.raises(WnlbError, match="another model than before"):
            _patiently(predictor, frames(1)[0])


def _patiently(predictor: Predictor, frame: np.ndarray) -> Detections:
    """gRPC connects again by itself, within seconds."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return predictor(frame)
        except Unavailable:
            assert time.monotonic() < end, "it did not come back"
            time.sleep(0.1)


def test_no_server(wnlb_here: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        ran = wnlb_here("predict", f"triton://127.0.0.1:{port}/planted", tmp_path, "-o", tmp_path / "out")
        cv2.imwrite(str(tmp_path / "a.png"), frames(1)[0])
        ran = wnlb_here("predict", f"triton://127.0.0.1:{port}/planted", tmp_path, "-o", tmp_path / "out")
    assert f"no server answers at 127.0.0.1:{port}" in ran.refused()


def test_models_that_are_not_there_or_not_ours(server: FakeTriton, make_contract: Callable[..., Contract]) -> None:
    from google.protobuf import text_format

    with pytest.raises(WnlbError, match="the server has no model 'nothing'"):
        open_backend(server.address("nothing"))
    for key in server.configs["brief"].parameters:
        server.configs["brief"].parameters[key].string_value = "{}"
    text_format.Parse(picture_config("batches", make_contract(), "model.onnx", 1, 0.5, Queue()), _emptied(server))
    server.configs["planted"].output[0].dims[0] = 7
    for name, match in {"brief": "full", "batches": "encoded pictures", "planted": "unlike its contract"}.items():
        with pytest.raises(ContractError, match=match):
            open_backend(server.address(name))
    server.configs["brief"].parameters.clear()
    with pytest.raises(ContractError, match="is not ours: it has no wnlb contract"):
        open_backend(server.address("brief"))


def _emptied(server: FakeTriton) -> Any:
    server.configs["batches"].Clear()
    return server.configs["batches"]


def test_answers_that_do_not_fit(server: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a server whose Python gives empty tensors."""
    with Predictor(server.address("planted")) as predictor:
        model = server.models["planted"]
        monkeypatch.setattr(model, "run", lambda inputs: {name: np.zeros((0,), np.float32) for name in _outputs(model)})
        with pytest.raises(WnlbError, match=r"answered float32 \[0\] as boxes; expected float32 \[2, 2, 4\]"):
            predictor(frames(1)[0])
        predictor.close()
        with pytest.raises(WnlbError, match="closed"):
            predictor(frames(1)[0])


def _outputs(model: Any) -> list[str]:
    return [*model.contract.output_shapes]


def test_inputs_that_do_not_fit(server: FakeTriton) -> None:
    backend = open_backend(server.address("planted"))
    with pytest.raises(WnlbError, match=r"input image is float32 \[1\]; expected uint8 \[2, 64, 96, 3\]"):
        backend.run({"image": np.zeros(1, np.float32)})
    backend.close()
    backend.close()


def test_labels_of_two_models_at_one_address_are_not_mixed(
    repository: Path, planted_model: Callable[..., Path], make_contract: Any, tmp_path: Path, wnlb_here: Any
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'wnlb-deploy[label]'")
    (tmp_path / "pictures").mkdir()
    for i, frame in enumerate(frames(3)):
        cv2.imwrite(str(tmp_path / "pictures" / f"{i}.png"), frame)
    words = ["-o", tmp_path / "labels", "--workers", 1]
    with FakeTriton(repository) as server:
        port, address = server.port, server.address("planted")
        assert wnlb_here("label", address, tmp_path / "pictures", *words).code == 0
        assert wnlb_here("label", f"{address}?timeout=9", tmp_path / "pictures", *words).code == 0
    other = planted_model(tmp_path / "planted.onnx", make_contract(batch=2, checkpoint_sha256="f" * 64))
    with FakeTriton(write([other], tmp_path / "served"), port):
        assert "labels" in wnlb_here("label", address, tmp_path / "pictures", *words).refused()
