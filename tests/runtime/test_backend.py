import dataclasses

import numpy as np
import pytest
from model_inputs import whole

from wnlb.runtime import onnxruntime_backend
from wnlb.runtime.backend import open_backend
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.onnxruntime_backend import open_session


@pytest.mark.parametrize("image", [0, 51, 255])
def test_runs_a_model_as_its_contract_says(planted_model_path, image):
    backend = open_backend(planted_model_path, device="cpu", threads=1)
    outputs = backend.run(whole(np.full(backend.contract.input_shape, image, np.uint8)))
    assert {name: values.shape for name, values in outputs.items()} == backend.contract.output_shapes
    kinds = {"labels": np.int32, "count": np.int32}
    assert all(values.dtype == kinds.get(name, np.float32) for name, values in outputs.items())
    np.testing.assert_allclose(outputs["scores"], [[image / 255, image / 510]] * 2, rtol=1e-6)
    assert backend.description.endswith("CPU, 1 threads")


def test_runs_at_once_share_the_threads(planted_model_path, monkeypatch):
    """Who runs a session works in it, beside one thread less than it has: two callers and two others are four."""
    own = []

    def opened(path, *, device, threads):
        own.append(threads)
        return open_session(path, device=device, threads=threads)

    monkeypatch.setattr(onnxruntime_backend, "open_session", opened)
    for threads, at_once, left, taken in ((4, 2, 3, 2), (2, 2, 1, 2), (1, 2, 1, 1), (3, 1, 3, 1)):
        backend = open_backend(planted_model_path, device="cpu", threads=threads, at_once=at_once)
        assert (own.pop(), backend.at_once) == (left, taken)
        told = ", 2 frames at once" if taken == 2 else ""
        assert backend.description.endswith(f"CPU, {threads} threads{told}")


def test_threads_that_wait_soon_leave_their_core_to_others(planted_model_path):
    options = open_session(planted_model_path, device="cpu", threads=2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "100"


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing.onnx", "does not exist"), ("folder.onnx", "is a folder"), ("model.pth", "expected .onnx")],
)
def test_a_path_that_is_no_onnx_file_is_refused(tmp_path, name, said):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "model.pth").write_bytes(b"weights")
    with pytest.raises(WnlbError, match=said) as refused:
        open_backend(tmp_path / name)
    assert name in str(refused.value)


def test_an_unknown_device_is_refused(planted_model_path):
    with pytest.raises(WnlbError, match="device is 'tpu'; expected auto, cpu, cuda"):
        open_backend(planted_model_path, device="tpu")


@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_a_truncated_file_is_refused(planted_model_path, tmp_path, kept):
    data = planted_model_path.read_bytes()
    path = tmp_path / "truncated.onnx"
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(WnlbError, match="cannot be opened by ONNX Runtime") as refused:
        open_backend(path, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_model_without_a_contract_or_unlike_it_is_refused(planted_model, make_contract, tmp_path):
    with pytest.raises(ContractError, match="has no wnlb contract"):
        open_backend(planted_model(tmp_path / "none.onnx", producer="someone"), device="cpu")
    boxes_only = dataclasses.replace(make_contract(), masks="none")
    path = planted_model(tmp_path / "unlike.onnx", **{METADATA_KEY: boxes_only.to_json()})
    with pytest.raises(ContractError, match="outputs boxes, scores, labels, masks, count, unlike its contract"):
        open_backend(path, device="cpu")
