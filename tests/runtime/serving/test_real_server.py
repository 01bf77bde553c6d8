"""``wnlb triton``'s repositories in a real Triton server, started and watched by their own probe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import real_triton
import tritonclient.grpc as triton
from pycocotools import mask as coco_mask
from real_triton import RealTriton, started
from tritonclient.utils import InferenceServerException

from wnlb.runtime.cli import main
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import Unavailable, WnlbError
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.serving import probe

MISSING = real_triton.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
LIMIT_S = 400
NOTHING = [  # a black frame
    {"name": "image", "shape": [1, 64, 96, 3], "datatype": "UINT8", "data": [0] * (64 * 96 * 3)},
    {"name": "content", "shape": [1, 2], "datatype": "INT32", "data": [0, 0]},
]


@pytest.fixture(autouse=True)
def hard_limit() -> Iterator[None]:
    """No test waits for a server for ever."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
    brief_model_path: Path,
    batches_cpu_model_path: Path,
    planted_model_path: Path,
) -> Iterator[Callable[[str], RealTriton]]:
    """The server of a variant, started when it is first asked for, and again where a test has ended it."""
    running: dict[str, RealTriton] = {}
    models = {
        "net": (brief_model_path, batches_cpu_model_path, planted_model_path, "--device", "cpu", "--max-queue", 2),
        "full": (batches_cpu_model_path, "--variant", "full", "--score-threshold", 0.1),
    }
    # With a killed worker a server waits for the whole of its time to end; an orderly end on a busy machine needs more.
    watched, exit_s = {"net": "planted", "full": "batches.cpu"}, {"net": 2, "full": 20}
    with ExitStack() as stack:

        def server(variant: str) -> RealTriton:
            if variant not in running or running[variant].process.poll() is not None:
                folder = tmp_path_factory.mktemp(variant)
                assert main(["triton", *map(str, models[variant]), "-o", str(folder / "repository")]) == 0
                running[variant] = stack.enter_context(
                    started(folder / "repository", folder, watched[variant], exit_s=exit_s[variant])
                )
            return running[variant]

        yield server


@pytest.fixture
def net(servers: Callable[[str], RealTriton]) -> RealTriton:
    """brief: one frame a run; batches.cpu: one to five; planted: two, which is what the probe watches. Two may wait."""
    return servers("net")


@pytest.fixture
def full(servers: Callable[[str], RealTriton]) -> RealTriton:
    return servers("full")


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (50 + 9 * i, 96, 3), np.uint8) for i in range(count)]


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(expected) > 0
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for one, other in zip(found.full_masks(), expected.full_masks(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_eight_clients_find_what_the_file_finds(net: RealTriton, brief_model_path: Path) -> None:
    """With a queue of two, so that most are refused at first and ask again."""
    shown = frames(8)
    with Predictor(brief_model_path, device="cpu") as local:
        expected = [local(frame) for frame in shown]

    def ask(frame: np.ndarray) -> Detections:
        with Predictor(net.address("brief")) as served:
            return served(frame)

    with ThreadPoolExecutor(8) as clients:
        for one, other in zip(clients.map(ask, shown), expected, strict=True):
            assert_equal(one, other)


def test_the_server_makes_batches(net: RealTriton, batches_cpu_model_path: Path) -> None:
    """Requests that came while it was busy run together, and each gets its own rows."""
    shown = frames(3)
    with Predictor(batches_cpu_model_path, device="cpu") as local:
        expected = [local(frame) for frame in shown]
        together = local.predict_batch(shown)
    with Predictor(net.address("batches.cpu")) as served, ThreadPoolExecutor(3) as clients:
        assert_equal(served.predict_batch(shown)[1], together[1])
        net.close_gate("batches.cpu")
        asked = [clients.submit(Predictor(net.address("batches.cpu")), shown[0])]
        net.wait_until("batches.cpu", pending=0)
        asked += [clients.submit(Predictor(net.address("batches.cpu")), frame) for frame in shown[1:]]
        net.wait_until("batches.cpu", pending=2)
        net.open_gate("batches.cpu")
        for one, other in zip(asked, expected, strict=True):
            found = one.result()
            np.testing.assert_allclose(found.boxes, other.boxes, atol=1e-3)
            np.testing.assert_array_equal(found.labels, other.labels)
    with urllib.request.urlopen(f"{net.url}/v2/models/batches.cpu/stats", timeout=120) as answer:
        sizes = {int(each["batch_size"]) for each in json.load(answer)["model_stats"][0]["batch_stats"]}
    assert sizes == {1, 2, 3}


def test_overload_deadlines_and_a_killed_client(net: RealTriton) -> None:
    frame = frames(1)[0]
    net.close_gate("brief")
    script = "from wnlb.runtime.predictor import Predictor; import numpy as np\n"
    script += f"Predictor({net.address('brief')!r})(np.zeros((64, 96, 3), np.uint8))"
    client = subprocess.Popen([sys.executable, "-c", script])
    net.wait_until("brief", pending=0)
    client.kill()
    assert client.wait() < 0
    with ThreadPoolExecutor(2) as waiting:
        patient = [waiting.submit(Predictor(net.address("brief")), frame) for _ in range(2)]
        net.wait_until("brief", pending=2)
        with pytest.raises(Unavailable, match=r"too many requests waiting .*queue size"):
            Predictor(f"{net.address('brief')}?timeout=2")(frame)
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(net, "brief", {"inputs": NOTHING})
        assert refused.value.code == 503
        net.open_gate("brief")
        first, second = (one.result() for one in patient)
    assert_equal(first, second)
    net.close_gate("brief")
    with pytest.raises(Unavailable, match="did not answer in time"):
        Predictor(f"{net.address('brief')}?timeout=2")(frame)
    net.open_gate("brief")
    assert_equal(Predictor(net.address("brief"))(frame), first)


def test_models_that_are_not_there_or_take_pictures(net: RealTriton, full: RealTriton) -> None:
    with pytest.raises(WnlbError, match="the server has no model 'nothing'"):
        Predictor(net.address("nothing"))
    with pytest.raises(WnlbError, match="takes encoded pictures"):
        Predictor(full.address("batches.cpu"))


def test_pictures_in_detections_out(full: RealTriton, batches_cpu_model_path: Path) -> None:
    """Eight clients, one of whose pictures is none: that one is refused, the others are answered."""
    shown = frames(8)
    files = [cv2.imencode(".png", frame)[1].tobytes() for frame in shown]
    files[3] = files[3][:200]

    def ask(*pictures: bytes) -> dict[str, Any] | str:
        with triton.InferenceServerClient(full.address("").split("/")[2]) as client:
            value = triton.InferInput("picture", [len(pictures), 1], "BYTES")
            value.set_data_from_numpy(np.array([[each] for each in pictures], np.object_))
            try:
                answer = client.infer("batches.cpu", [value])
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    with (
        Predictor(batches_cpu_model_path, device="cpu", score_threshold=0.1) as local,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = [*clients.map(ask, files)]
        assert isinstance(answers[3], str)
        assert answers[3].startswith("StatusCode.INVALID_ARGUMENT picture 1 of 1 is truncated"), answers[3]
        for frame, answer in zip(shown, answers, strict=True):
            if isinstance(answer, dict):
                _assert_close(answer, 0, local(frame), local.contract.class_names)
        both = ask(files[0], files[5])
        assert isinstance(both, dict)
        for row, expected in enumerate(local.predict_batch([shown[0], shown[5]])):
            _assert_close(both, row, expected, local.contract.class_names)
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(
            full,
            "batches.cpu",
            {"inputs": [{"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": ["none"]}]},
        )
    assert refused.value.code == 400
    assert "damaged or of an unknown format" in refused.value.read().decode()


def _assert_close(answer: dict[str, Any], row: int, expected: Detections, names: Sequence[str]) -> None:
    """Within what another batch on the server changes in the last digits."""
    count = int(answer["count"][row, 0])
    assert count == len(expected) > 0
    assert answer["size"][row].tolist() == [expected.height, expected.width]
    np.testing.assert_allclose(answer["boxes"][row, :count], expected.boxes, atol=1e-3)
    np.testing.assert_allclose(answer["scores"][row, :count], expected.scores, atol=1e-5)
    np.testing.assert_array_equal(answer["labels"][row, :count], expected.labels)
    assert not answer["scores"][row, count:].any()
    assert [name.decode() for name in answer["class_names"][row, :count]] == [names[i - 1] for i in expected.labels]
    for text, mask in zip(answer["masks"][row, :count], expected.full_masks(), strict=True):
        assert (coco_mask.decode(json.loads(text)).astype(bool) != mask).mean() < 1e-3


def test_a_stop_leaves_nothing(full: RealTriton) -> None:
    """By SIGTERM of the probe, as systemd sends it."""
    assert probe.probe(full.url) == ["batches.cpu"]
    assert full.leaks()
    full.process.terminate()
    assert full.process.wait(200) == 0, full.log.read_text()[-2000:]
    assert full.leaks() == []


def test_a_killed_worker_is_noticed_and_the_server_ended(net: RealTriton, capsys: pytest.CaptureFixture[str]) -> None:
    """Triton itself goes on to call it ready."""
    assert main(["triton", "--probe", net.url]) == 0
    assert "batches.cpu, brief, planted answered" in capsys.readouterr().out
    assert len(net.stubs()) == 3
    for stub in net.stubs():
        stub.kill()
    with pytest.raises(Unavailable, match=r"is not healthy|is not ready|no server answers"):
        Predictor(net.address("brief"))(frames(1)[0])
    assert "is not healthy" in net.told("STATUS=http")
    assert net.process.wait(200) == 1


def _post(server: RealTriton, name: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{server.url}/v2/models/{name}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=200) as answer:
        return json.load(answer)
