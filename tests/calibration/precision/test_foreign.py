"""``wnlb convert`` of a file that is not ours: a YOLO-seg network with two blocks, as its own tool wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_yolo import write_small_yolo
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.calibration.precision.foreign import ForeignFile
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention
from wnlb.runtime.errors import WnlbError

HALF = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_yolo(tmp_path_factory.mktemp("foreign") / "best.onnx")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for i in range(3):
        np.savez(folder / f"{i}.npz", images=rng.random((1, 3, 64, 96), np.float32) * np.float32(0.3))
    return folder


def interface(model: onnx.ModelProto) -> list[bytes]:
    return [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)]


def types_of(model: onnx.ModelProto, op_type: str) -> list[int]:
    """Of what these nodes make."""
    made = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*made.value_info, *made.output)}
    return [types[node.output[0]] for node in model.graph.node if node.op_type == op_type]


def test_fp16(original: Path, arrays: Path, tmp_path: Path, wnlb_here: Callable[..., Any]) -> None:
    path = tmp_path / "half.onnx"
    ran = wnlb_here("convert", original, "--precision", "fp16", "-o", path, "--inputs", arrays, "--json")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert told["inputs"] == 3
    assert all(0 < error < 0.01 for error in told["errors"].values())
    model = onnx.load(path)
    assert interface(model) == interface(onnx.load(original))
    assert set(types_of(model, "Conv")) == {HALF}
    assert HALF not in types_of(model, "Softmax")
    assert "wnlb.contract" not in {entry.key for entry in model.metadata_props}
    build_in_tensorrt_rtx(path)
    assert fuse_attention(model)
    assert sum(node.op_type == PLUGIN_OP for node in model.graph.node) == 2


def test_int8(original: Path, arrays: Path, tmp_path: Path, wnlb_here: Callable[..., Any]) -> None:
    path = tmp_path / "int8.onnx"
    ran = wnlb_here("convert", original, "--precision", "int8", "-o", path, "--inputs", arrays)
    assert ran.code == 0, ran
    assert "calibrator" in ran.out
    model = onnx.load(path)
    assert interface(model) == interface(onnx.load(original))
    makers = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    quantized = [node for node in convolutions if makers[node.input[0]].op_type == "DequantizeLinear"]
    # But the first, and on three maps the last of boxes, classes and coefficients, and that of the prototypes.
    assert len(quantized) == len(convolutions) - 1 - 9 - 1
    build_in_tensorrt_rtx(path)


def test_one_array_and_no_arrays(original: Path, arrays: Path, tmp_path: Path, wnlb_here: Callable[..., Any]) -> None:
    np.save(tmp_path / "one.npy", np.load(arrays / "0.npz")["images"])
    words = ("convert", original, "--precision", "fp16", "-o", tmp_path / "half.onnx")
    assert wnlb_here(*words, "--inputs", tmp_path / "one.npy").code == 0
    ran = wnlb_here(*words)
    assert ran.code == 0
    assert "values beyond FP16's range are looked for on noise" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["int8"], "needs --inputs: .npz or .npy files of arrays"),
        (["fp16", "--images", "scenes"], "--images is for files of ours"),
        (["int8", "--inputs", "{}", "--max-ap-drop", "1"], "--max-ap-drop is for files of ours"),
        (["fp16", "--inputs", "{}/none"], "does not exist; expected .npz or .npy files"),
        (
            ["fp16", "--inputs", "{}"],
            "wide.npz: input images is float32 [1, 3, 64, 97]; expected float32 [1, 3, 64, 96]",
        ),
        (["fp16", "--inputs", "{}/no.npy"], "no.npy cannot be read as arrays"),
    ],
)
def test_refusals(original: Path, tmp_path: Path, words: list[str], said: str, wnlb_here: Callable[..., Any]) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.savez(folder / "wide.npz", images=np.zeros((1, 3, 64, 97), np.float32))
    (folder / "no.npy").write_text("no array")
    own = [word.format(folder) for word in words]
    if said.startswith("wide"):
        (folder / "no.npy").unlink()
    ran = wnlb_here("convert", original, "-o", tmp_path / "other.onnx", "--precision", *own)
    assert said in ran.refused()
    assert not (tmp_path / "other.onnx").exists()


def test_files_that_are_not_converted(original: Path, tmp_path: Path) -> None:
    half, _ = ForeignFile(original).half("fp16")
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(WnlbError, match="in a lower precision already"):
        ForeignFile(tmp_path / "half.onnx")
    model = onnx.load(original)
    fuse_attention(model)
    onnx.save(model, tmp_path / "fused.onnx")
    fused, _ = ForeignFile(tmp_path / "fused.onnx").half("fp16")
    assert sum(node.op_type == PLUGIN_OP for node in fused.graph.node) == 2
